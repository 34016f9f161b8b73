"""New configurations and trials, for the driver that proposes them and the user who enqueues them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from service.store import tables
from service.study import Configuration, Origin, Purpose, Scalar, Trial, TrialState

_UNEXPORTED = {"revision": 1, "exported_revision": 0, "exported_epoch": 0}


def last_number(connection: Connection, table: Table, study_id: str) -> int:
    """The highest number of the study's rows in this table; 0 where it has none."""
    query = select(func.max(table.c.number)).where(table.c.study_id == study_id)
    return int(connection.execute(query).scalar_one() or 0)


def insert_configuration(
    connection: Connection,
    study_id: str,
    point: Mapping[str, Scalar],
    point_key: str,
    seeds: Sequence[int],
    *,
    at: datetime,
    origin: Origin,
) -> tuple[Configuration, list[Trial]]:
    """A point with a PENDING trial for each seed; the caller holds the study's lock.

    Raises IntegrityError where the study has the point already.
    """
    number = 1 + last_number(connection, tables.configurations, study_id)
    configuration = Configuration(
        id=f"{study_id}-{number}", study_id=study_id, number=number, point=dict(point), origin=origin, created_at=at
    )
    values: dict[str, Any] = {**configuration.model_dump(), "point_key": digest(point_key)}
    connection.execute(insert(tables.configurations).values(**values))
    return configuration, insert_trials(connection, study_id, configuration.id, seeds, at=at, purpose=Purpose.SEARCH)


def insert_trials(
    connection: Connection,
    study_id: str,
    configuration_id: str,
    seeds: Sequence[int],
    *,
    at: datetime,
    purpose: Purpose,
) -> list[Trial]:
    """PENDING trials of the configuration with these seeds; the caller holds the study's lock."""
    first = 1 + last_number(connection, tables.trials, study_id)
    trials = [
        Trial(
            id=f"{configuration_id}-{seed}",
            study_id=study_id,
            configuration_id=configuration_id,
            number=first + index,
            seed=seed,
            purpose=purpose,
            state=TrialState.PENDING,
            attempt=0,
            epochs_done=0,
            metrics={},
            objective=None,
            error=None,
            note=None,
            created_at=at,
            started_at=None,
            finished_at=None,
            mlflow_run_id=None,
        )
        for index, seed in enumerate(seeds)
    ]
    connection.execute(insert(tables.trials), [{**trial.model_dump(), **_UNEXPORTED} for trial in trials])
    return trials


def digest(point_key: str) -> str:
    """What stands for a point in the store."""
    return hashlib.sha256(point_key.encode()).hexdigest()
