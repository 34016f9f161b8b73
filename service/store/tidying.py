"""Studies that have ended and whose checkpoints are still to be tidied up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, select, update

from service.store import tables
from service.store.database import Database


@dataclass(frozen=True, slots=True)
class UntidyStudy:
    """A study that has ended. spec: as it is stored."""

    study_id: str
    spec: Mapping[str, Any]
    finished_at: datetime


class TidyingStore:
    """What the controller reads and writes while it tidies up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def untidy(self, *, ended_for_s: float = 0.0) -> list[UntidyStudy]:
        """Those that ended at least so long ago; the one that ended first comes first."""
        table = tables.studies
        query = select(table.c.id, table.c.spec, table.c.finished_at).order_by(table.c.finished_at, table.c.id)
        with self._database.reading() as connection:
            until = self._database.now(connection) - timedelta(seconds=ended_for_s)
            rows = connection.execute(query.where(table.c.untidy, table.c.finished_at <= until))
            return [UntidyStudy(*row) for row in rows]

    def trial_ids(self, study: UntidyStudy) -> list[str]:
        """Ids of the study's trials, in the order of their numbers."""
        table = tables.trials
        query = select(table.c.id).where(table.c.study_id == study.study_id).order_by(table.c.number)
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

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
