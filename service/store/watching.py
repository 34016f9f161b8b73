"""How the service is doing, as the store shows it: what waits, how long, and whose lease runs out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, exists, func, select

from service.store import records, tables
from service.store.database import Database
from service.study import DRIVEN_STATES, StudyState, TrialState
from service.webhook import STUDY_STATE

CONTROLLER_LEASE = "controller"
"""Name of the lease by which a controller leads."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many there are, and since how many seconds the oldest waits; 0 where there is none."""

    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds it, and for how many seconds yet: negative since it ran out."""

    holder: str
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Sight:
    """The whole service at one moment.

    queued: since they became QUEUED, the last time. driver_lease_s: what is left of the lease that runs out first,
    negative since it ran out; None where no study has a driver. controller: None where nobody has ever led, or the
    last leader has left. idle: studies that a driver has and of which no trial trains, since their last event.
    behind: studies that MLflow does not show as they are; the age is that of the oldest result that it lacks; where
    it lacks none, of the study's last event or newest result, whichever came later. deliveries: of webhooks,
    neither delivered nor given up. removals: of deleted studies. warned: running trials whose attempt has had a
    warning, as of a checkpoint that could not be written.
    """

    at: datetime
    studies: dict[StudyState, int]
    trials: dict[TrialState, int]
    queued: Waiting
    drivers: int
    overdue_drivers: int
    driver_lease_s: float | None
    controller: Lease | None
    idle: Waiting
    behind: Waiting
    deliveries: Waiting
    removals: Waiting
    warned: int


class WatchingStore:
    """The store as metrics and `samstudy doctor` read it: every owner's studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def look(self) -> Sight:
        """One consistent look. Raises StoreUnavailableError."""
        studies, trials = tables.studies, tables.trials
        deliveries, removals = tables.webhook_deliveries, tables.removals
        with self._database.reading() as connection:
            now = self._database.now(connection)
            lease_end = case(
                (studies.c.lease_expires_at == records.GIVEN_UP, studies.c.seen_at), else_=studies.c.lease_expires_at
            )
            drivers, overdue, first = connection.execute(
                select(
                    func.count(),
                    func.sum(case((studies.c.lease_expires_at < now, 1), else_=0)),
                    func.min(lease_end),
                ).where(studies.c.state.in_(DRIVEN_STATES))
            ).one()
            open_deliveries = select(func.count(), func.min(deliveries.c.created_at)).where(
                deliveries.c.next_attempt_at.is_not(None)
            )
            return Sight(
                at=now,
                studies={StudyState(state): count for state, count in connection.execute(_by(studies.c.state))},
                trials={TrialState(state): count for state, count in connection.execute(_by(trials.c.state))},
                queued=_waiting(connection, _queued_since(), now),
                drivers=drivers,
                overdue_drivers=overdue or 0,
                driver_lease_s=(first - now).total_seconds() if first else None,
                controller=controller_lease(connection, now),
                idle=_waiting(connection, _idle_since(), now),
                behind=_waiting(connection, _behind_since(), now),
                deliveries=_waiting(connection, open_deliveries, now),
                removals=_waiting(connection, select(func.count(), func.min(removals.c.requested_at)), now),
                warned=connection.execute(_warned()).scalar_one(),
            )

    def run_in_mlflow(self) -> str | None:
        """The id of a run in MLflow that some study has: the youngest study's; None where no study has one."""
        table = tables.studies
        query = select(table.c.mlflow_run_id).where(table.c.mlflow_run_id.is_not(None))
        with self._database.reading() as connection:
            return connection.execute(query.order_by(table.c.created_at.desc()).limit(1)).scalar_one_or_none()

    def waiting_reasons(self, *, at_most: int, idle: bool = False) -> list[tuple[str, str, str | None]]:
        """Id, name and waiting reason of studies that are QUEUED, or of those that are idle, the oldest first."""
        table = tables.studies
        query = select(table.c.id, table.c.name, table.c.waiting_reason)
        query = query.where(_is_idle() if idle else table.c.state == StudyState.QUEUED)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.created_at, table.c.id).limit(at_most))
            return [(row.id, row.name, row.waiting_reason) for row in rows]


def _warned() -> Select[int]:
    trials, attempts = tables.trials, tables.attempts
    present = (attempts.c.trial_id == trials.c.id) & (attempts.c.number == trials.c.attempt)
    running = select(func.count()).select_from(trials.join(attempts, present))
    return running.where(trials.c.state == TrialState.RUNNING, attempts.c.warning.is_not(None))


def _by(state: Any) -> Select[Any, int]:
    return select(state, func.count()).group_by(state)


def _queued_since() -> Select[int, Any]:
    """When the studies in the queue came there: their last change of state; they may be old and reopened."""
    studies, events = tables.studies, tables.events
    queued_at = (
        select(func.max(events.c.at))
        .where(events.c.study_id == studies.c.id, events.c.kind == STUDY_STATE)
        .correlate(studies)
        .scalar_subquery()
    )
    each = select(func.coalesce(queued_at, studies.c.created_at).label("since"))
    return _count_and_oldest(each.where(studies.c.state == StudyState.QUEUED))


def _is_idle() -> ColumnElement[bool]:
    """Whether the study has a driver, and none of its trials trains."""
    studies, trials = tables.studies, tables.trials
    trains = exists().where(trials.c.study_id == studies.c.id, trials.c.state == TrialState.RUNNING)
    return studies.c.state.in_(DRIVEN_STATES) & ~trains


def _idle_since() -> Select[int, Any]:
    studies, events = tables.studies, tables.events
    last_event = select(func.max(events.c.at)).where(events.c.study_id == studies.c.id).correlate(studies)
    each = select(func.coalesce(last_event.scalar_subquery(), studies.c.created_at).label("since"))
    return _count_and_oldest(each.where(_is_idle()))


def _behind_since() -> Select[int, Any]:
    """Since when MLflow lacks something of the studies that it does not show as they are.

    Where it has every result, what it lacks is no older than the last event or the newest result: an epoch, which makes
    no event, leaves the parent run behind until that is due. Trials that do not run have had an event since their last.
    """
    studies, trials, results, events = tables.studies, tables.trials, tables.results, tables.events
    of_trial = (
        select(results.c.recorded_at)
        .where(results.c.trial_id == trials.c.id, results.c.epoch > trials.c.exported_epoch)
        .order_by(results.c.epoch)
        .limit(1)
        .correlate(trials)
        .scalar_subquery()
    )
    of_results = (
        select(func.min(of_trial))
        .where(trials.c.study_id == studies.c.id, trials.c.revision != trials.c.exported_revision)
        .correlate(studies)
        .scalar_subquery()
    )
    last_event = (
        select(events.c.at)
        .where(events.c.study_id == studies.c.id)
        .order_by(events.c.id.desc())
        .limit(1)
        .correlate(studies)
        .scalar_subquery()
    )
    newest_of_trial = (
        select(results.c.recorded_at)
        .where(results.c.trial_id == trials.c.id)
        .order_by(results.c.epoch.desc())
        .limit(1)
        .correlate(trials)
        .scalar_subquery()
    )
    newest_result = (
        select(func.max(newest_of_trial))
        .where(trials.c.study_id == studies.c.id, trials.c.state == TrialState.RUNNING)
        .correlate(studies)
        .scalar_subquery()
    )
    last_change = case((newest_result > last_event, newest_result), else_=last_event)
    each = select(func.coalesce(of_results, last_change, studies.c.created_at).label("since"))
    return _count_and_oldest(each.where(studies.c.revision != studies.c.exported_revision))


def _count_and_oldest(each: Select[Any]) -> Select[int, Any]:
    times = each.subquery()
    return select(func.count(), func.min(times.c.since))


def _waiting(connection: Connection, count_and_oldest: Select[int, Any], now: datetime) -> Waiting:
    count, oldest = connection.execute(count_and_oldest).one()
    return Waiting(count, max(0.0, (now - oldest).total_seconds()) if oldest else 0.0)


def controller_lease(connection: Connection, now: datetime) -> Lease | None:
    """The lease of the controller that leads; None where nobody has ever led, or the last leader has left."""
    table = tables.leases
    row = connection.execute(select(table).where(table.c.name == CONTROLLER_LEASE)).one_or_none()
    return None if row is None else Lease(row.holder, (row.expires_at - now).total_seconds())
