"""What the store's modules share: reading rows as domain objects, locking a study, moving it on, its events."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection, Row, Select, Table, insert, select, update

from service.errors import InvalidTransitionError, StudyNotFoundError, VersionConflictError
from service.store import tables
from service.store.outbox import put_into_outbox
from service.store.sleeping import awake_s, sleeps_of
from service.store.tables import storable_text
from service.study import (
    OPEN_TRIAL_STATES,
    AttemptState,
    Intent,
    Reason,
    StudyState,
    TrialState,
    check_study_transition,
)
from service.webhook import STUDY_STATE

GIVEN_UP = datetime(1970, 1, 1, tzinfo=UTC)
"""When the lease of a driver ended that has given it up by itself."""

_IDS_AT_A_TIME = 500

Record = TypeVar("Record", bound=BaseModel)


def as_record(record_type: type[Record], row: Row[Any]) -> Record:
    """The row as a domain object; columns that the object does not have are the store's own and left out."""
    return record_type.model_validate(dict(zip(row._fields, row, strict=True)))  # a mapping is read at half the speed


@cache
def selected(table: Table, record_type: type[BaseModel]) -> Select[Any]:
    """The table's columns that the domain object has."""
    return select(*(table.c[name] for name in record_type.model_fields if name in table.c))


def locked_study(connection: Connection, study_id: str, *, scope: str | None = None) -> Row[Any]:
    """The study's whole row, locked until the transaction ends; everything that writes to a study begins with this.

    The lock makes event ids grow in the order in which they become visible, so that no reader misses one.
    scope: the owner whose studies the caller may see; None: all. Raises StudyNotFoundError.
    """
    query = select(tables.studies).where(tables.studies.c.id == study_id)
    if scope is not None:
        query = query.where(tables.studies.c.owner == scope)
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise StudyNotFoundError(study_id)
    return row


def check_version(study: Row[Any], if_version: int | None) -> None:
    """Raises VersionConflictError where a user has seen another version than the locked study's; None: any will do."""
    if if_version is not None and if_version != study.version:
        raise VersionConflictError(
            f"study {study.id!r} is at version {study.version} by now, not at {if_version}: read it again"
        )


def impossible(study: Row[Any], participle: str) -> InvalidTransitionError:
    """Says why a study that has ended, or is on its way there or to its pause, cannot be `participle`."""
    if StudyState(study.state).is_final:
        return InvalidTransitionError(
            f"study {study.id!r} has already ended as {study.state}: it cannot be {participle}"
        )
    on_its_way = {Intent.PAUSE: "paused", Intent.STOP: "stopped", Intent.CANCEL: "cancelled"}.get(study.intent)
    return InvalidTransitionError(f"study {study.id!r} is being {on_its_way}: it cannot be {participle}")


def add_event(
    connection: Connection,
    study_id: str,
    kind: str,
    data: Mapping[str, Any],
    *,
    at: datetime,
    trial_id: str | None = None,
) -> None:
    """Records that something happened, for webhooks too; the caller holds the study's lock."""
    data = _storable(data)
    connection.execute(insert(tables.events).values(study_id=study_id, trial_id=trial_id, kind=kind, data=data, at=at))
    if kind == STUDY_STATE:
        put_into_outbox(connection, study_id, data, at=at)


def touch_study(connection: Connection, study_id: str, **values: Any) -> None:
    """Writes these columns of a study and makes its revision grow, which tells the exporter."""
    connection.execute(
        update(tables.studies)
        .where(tables.studies.c.id == study_id)
        .values(revision=tables.studies.c.revision + 1, **values)
    )


def last_seen(study: Row[Any], now: datetime) -> datetime:
    """The last sign of life of a locked study's driver; the time since then, until somebody notices, is nobody's."""
    return now if study.seen_at is None else min(now, study.seen_at)


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
    """Moves a locked study into another state and says so in an event. Raises InvalidTransitionError.

    A driver that it had has worked on it until `last_seen`, while its machine was awake.
    """
    old = StudyState(study.state)
    check_study_transition(old, state)
    if state.has_driver and not old.has_driver:
        values |= {"running_since": at, "started_at": study.started_at or at}
    if old.has_driver and not state.has_driver:
        sleeps, began = sleeps_of(connection, study.id), study.running_since
        spent_s = awake_s(began, last_seen(study, at), sleeps) if began else 0.0
        values |= {"running_since": None, "elapsed_s": study.elapsed_s + spent_s, "slots": None}
        values |= {"lease_expires_at": None, "seen_at": None}
    if state.is_final:
        values |= {"finished_at": at, "reason": reason, "error": error, "waiting_reason": None, "untidy": True}
    elif old.is_final:
        values |= {"finished_at": None, "reason": None, "error": None, "untidy": False}
    intent = values.get("intent", study.intent)
    touch_study(connection, study.id, state=state, **values)
    if state is StudyState.QUEUED and told_state(connection, study.id) == state:
        return  # it has been there all the time, as far as anybody knows: its driver was lost before its start was told
    data = {"state": state, "intent": intent, "reason": reason, "error": error}
    add_event(connection, study.id, STUDY_STATE, data, at=at)


def told_state(connection: Connection, study_id: str) -> str | None:
    """The state of a study that the last event told."""
    table = tables.events
    query = select(table.c.data).where(table.c.study_id == study_id, table.c.kind == STUDY_STATE)
    data = connection.execute(query.order_by(table.c.id.desc()).limit(1)).scalar_one_or_none()
    return None if data is None else data["state"]


def tell_state(connection: Connection, study: Row[Any], state: StudyState, *, at: datetime) -> None:
    """Says in an event that a locked study has this state, unless the last one that tells a state says so."""
    if told_state(connection, study.id) != state:
        data = {"state": state, "intent": study.intent, "reason": None, "error": None}
        add_event(connection, study.id, STUDY_STATE, data, at=at)


def tell_start(connection: Connection, study: Row[Any], *, at: datetime) -> None:
    """A locked study has started, as the cluster has taken its driver; an event tells its state, once."""
    touch_study(connection, study.id, started_at=study.started_at or study.running_since)
    tell_state(connection, study, StudyState(study.state), at=at)


def end_as_intended(connection: Connection, study: Row[Any], *, at: datetime) -> None:
    """Brings a locked study, of which nothing runs any more, to where its intent wants it.

    A study that was to be drained has SUCCEEDED where a trial of it has, and is CANCELLED where none has. One whose
    user wants it to run after all waits for its next driver.
    """
    match Intent(study.intent):
        case Intent.PAUSE:
            set_study_state(connection, study, StudyState.PAUSED, at=at, waiting_reason="paused by its user")
        case Intent.RUN:
            queue_again(connection, study, at=at)
        case Intent.STOP:
            ended = StudyState.SUCCEEDED if _has_result(connection, study.id) else StudyState.CANCELLED
            cancel_open_trials(connection, study, at=at)
            set_study_state(connection, study, ended, at=at, reason=Reason.USER)
        case Intent.CANCEL:
            cancel_open_trials(connection, study, at=at)
            set_study_state(connection, study, StudyState.CANCELLED, at=at, reason=Reason.USER)


def queue_again(connection: Connection, study: Row[Any], *, at: datetime) -> None:
    """Lets a locked study, of which nothing runs any more, wait for its next driver."""
    set_study_state(connection, study, StudyState.QUEUED, at=at, waiting_reason="waits for its next driver")


def has_begun(connection: Connection, study_id: str) -> bool:
    """Whether a trial that has not ended has had an attempt."""
    table = tables.trials
    query = select(table.c.id).where(
        table.c.study_id == study_id, table.c.attempt > 0, table.c.state.in_(OPEN_TRIAL_STATES)
    )
    return connection.execute(query.limit(1)).first() is not None


def touch_trial(connection: Connection, trial_id: str, **values: Any) -> None:
    """Writes these columns of a trial and makes its revision grow, which tells the exporter."""
    connection.execute(
        update(tables.trials)
        .where(tables.trials.c.id == trial_id)
        .values(revision=tables.trials.c.revision + 1, **values)
    )


def move_trials(
    connection: Connection, study_id: str, trial_ids: Sequence[str], state: TrialState, *, at: datetime, **values: Any
) -> None:
    """Writes the new state of these trials with these columns, and says so in an event for each."""
    table = tables.trials
    told = {name: values[name] for name in ("objective", "error", "note") if values.get(name) is not None}
    data = _storable({"state": state, **told})
    for some in in_parts(trial_ids):
        connection.execute(
            update(table).where(table.c.id.in_(some)).values(revision=table.c.revision + 1, state=state, **values)
        )
        event = {"study_id": study_id, "kind": "trial.state", "data": data, "at": at}
        connection.execute(insert(tables.events), [{**event, "trial_id": trial_id} for trial_id in some])


def in_parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """A few at a time: databases limit the parameters of a statement."""
    return (ids[start : start + _IDS_AT_A_TIME] for start in range(0, len(ids), _IDS_AT_A_TIME))


def trials_in(
    connection: Connection,
    study_id: str,
    states: Collection[TrialState],
    *,
    begun: bool = False,
    ended_at: datetime | None = None,
) -> list[str]:
    """Ids of the study's trials in these states, in the order of their numbers.

    begun: only those that had started. ended_at: only those that ended at this moment.
    """
    trials = tables.trials
    query = select(trials.c.id).where(trials.c.study_id == study_id, trials.c.state.in_(states))
    if ended_at is not None:
        query = query.where(trials.c.finished_at == ended_at)
    if begun:
        query = query.where(trials.c.attempt > 0)
    return list(connection.execute(query.order_by(trials.c.number)).scalars())


def cancel_open_trials(connection: Connection, study: Row[Any], *, at: datetime) -> None:
    """Cancels every trial of a locked study that has not ended, and its attempt, which its driver has taken along."""
    trial_ids = trials_in(connection, study.id, OPEN_TRIAL_STATES)
    end_open_attempts(connection, trial_ids, AttemptState.CANCELLED, at=last_seen(study, at))
    move_trials(connection, study.id, trial_ids, TrialState.CANCELLED, at=at, finished_at=at)


def end_open_attempts(
    connection: Connection, trial_ids: Sequence[str], state: AttemptState, *, at: datetime, error: str | None = None
) -> None:
    """Ends the running attempts of these trials, where there are any."""
    table = tables.attempts
    for some in in_parts(trial_ids):
        running = (table.c.trial_id.in_(some), table.c.state == AttemptState.RUNNING)
        connection.execute(update(table).where(*running).values(state=state, finished_at=at, error=error))


def _storable(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: storable_text(value) if isinstance(value, str) else value for name, value in data.items()}


def _has_result(connection: Connection, study_id: str) -> bool:
    table = tables.trials
    query = select(table.c.id).where(table.c.study_id == study_id, table.c.state == TrialState.SUCCEEDED)
    return connection.execute(query.limit(1)).first() is not None
