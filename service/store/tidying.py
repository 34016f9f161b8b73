"""Studies that have ended and whose checkpoints are still to be tidied up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, select, update

from service.store import tables
from service.store.database import Database


@dataclass(frozen=True, slots=True)
class UntidyStudy:
    """A study that has ended, `age_s` seconds ago. spec: as it is stored."""

    study_id: str
    spec: Mapping[str, Any]
    trial_ids: list[str]
    finished_at: datetime
    age_s: float


class TidyingStore:
    """What the controller reads and writes while it tidies up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def untidy(self) -> list[UntidyStudy]:
        """The one that ended first comes first."""
        table, trials = tables.studies, tables.trials
        with self._database.reading() as connection:
            now = self._database.now(connection)
            rows = connection.execute(
                select(table.c.id, table.c.spec, table.c.finished_at)
                .where(table.c.untidy)
                .order_by(table.c.finished_at, table.c.id)
            ).all()
            found: dict[str, list[str]] = {row.id: [] for row in rows}
            for trial in connection.execute(select(trials.c.study_id, trials.c.id).where(trials.c.study_id.in_(found))):
                found[trial.study_id].append(trial.id)
        return [
            UntidyStudy(row.id, row.spec, found[row.id], row.finished_at, (now - row.finished_at).total_seconds())
            for row in rows
        ]

    def is_at_that_end(self, study: UntidyStudy) -> bool:
        """Whether the study is there and has not gone on since."""
        with self._database.asking() as connection:
            return connection.execute(select(tables.studies.c.id).where(*_at_that_end(study))).first() is not None

    def done(self, study: UntidyStudy) -> None:
        """Nothing is left that is not to stay, unless the study went on and ended again meanwhile."""
        with self._database.writing() as connection:
            connection.execute(update(tables.studies).where(*_at_that_end(study)).values(untidy=False))


def _at_that_end(study: UntidyStudy) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return tables.studies.c.id == study.study_id, tables.studies.c.finished_at == study.finished_at
