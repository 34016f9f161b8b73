"""What the store's modules share: reading rows as domain objects, locking a study, writing its events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection, Row, Table, insert, select, update

from service.errors import StudyNotFoundError
from service.store import tables
from service.study import AttemptState, Reason, StudyState, TrialState, check_study_transition

Record = TypeVar("Record", bound=BaseModel)


def as_record(record_type: type[Record], row: Row[Any]) -> Record:
    """The row as a domain object; columns that the object does not have are the store's own and left out."""
    return record_type.model_validate(row._mapping)


def columns_of(table: Table, record_type: type[BaseModel]) -> list[Any]:
    """The table's columns that the domain object has."""
    return [table.c[name] for name in record_type.model_fields if name in table.c]


def locked_study(connection: Connection, study_id: str) -> Row[Any]:
    """The study's whole row, locked until the transaction ends; everything that writes to a study begins with this.

    The lock makes event ids grow in the order in which they become visible, so that no reader misses one.
    Raises StudyNotFoundError.
    """
    row = connection.execute(
        select(tables.studies).where(tables.studies.c.id == study_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise StudyNotFoundError(study_id)
    return row


def add_event(
    connection: Connection,
    study_id: str,
    kind: str,
    data: Mapping[str, Any],
    *,
    at: datetime,
    trial_id: str | None = None,
) -> None:
    """Records that something happened; the caller holds the study's lock."""
    connection.execute(
        insert(tables.events).values(study_id=study_id, trial_id=trial_id, kind=kind, data=dict(data), at=at)
    )


def touch_study(connection: Connection, study_id: str, **values: Any) -> None:
    """Writes these columns of a study and makes its revision grow, which tells the exporter."""
    connection.execute(
        update(tables.studies)
        .where(tables.studies.c.id == study_id)
        .values(revision=tables.studies.c.revision + 1, **values)
    )


def set_study_state(
    connection: Connection,
    study: Row[Any],
    state: StudyState,
    *,
    at: datetime,
    reason: Reason | None = None,
    error: str | None = None,
    **values: Any,
) -> None:
    """Moves a locked study into another state and says so in an event. Raises InvalidTransitionError."""
    check_study_transition(StudyState(study.state), state)
    if state.is_final:
        values |= {"finished_at": at, "reason": reason, "error": error, "lease_expires_at": None}
        values |= {"waiting_reason": None}
    elif state is StudyState.RUNNING and study.started_at is None:
        values |= {"started_at": at}
    touch_study(connection, study.id, state=state, **values)
    add_event(connection, study.id, "study.state", {"state": state, "reason": reason, "error": error}, at=at)


def touch_trial(connection: Connection, trial_id: str, **values: Any) -> None:
    """Writes these columns of a trial and makes its revision grow, which tells the exporter."""
    connection.execute(
        update(tables.trials)
        .where(tables.trials.c.id == trial_id)
        .values(revision=tables.trials.c.revision + 1, **values)
    )


def end_open_trials(connection: Connection, study_id: str, *, at: datetime) -> None:
    """Cancels every trial of the study that has not ended, and its attempt."""
    open_trials = connection.execute(
        select(tables.trials.c.id).where(
            tables.trials.c.study_id == study_id,
            tables.trials.c.state.in_([TrialState.PENDING, TrialState.RUNNING]),
        )
    ).scalars()
    for trial_id in list(open_trials):
        end_open_attempts(connection, trial_id, AttemptState.CANCELLED, at=at)
        touch_trial(connection, trial_id, state=TrialState.CANCELLED, finished_at=at)
        add_event(connection, study_id, "trial.state", {"state": TrialState.CANCELLED}, at=at, trial_id=trial_id)


def end_open_attempts(
    connection: Connection, trial_id: str, state: AttemptState, *, at: datetime, error: str | None = None
) -> None:
    """Ends the trial's running attempt, where there is one."""
    connection.execute(
        update(tables.attempts)
        .where(tables.attempts.c.trial_id == trial_id, tables.attempts.c.state == AttemptState.RUNNING)
        .values(state=state, finished_at=at, error=error)
    )
