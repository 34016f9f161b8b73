"""What the controller does: claims studies for new drivers, declares drivers lost, and leads alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.settings import LONGEST_LEASE_S
from service.shares import Demand
from service.store import records, tables
from service.store.database import Database
from service.store.demands import demands_of
from service.study import DRIVEN_STATES, AttemptState, Intent, Reason, Study, StudyState, TrialState


@dataclass(frozen=True, slots=True)
class DriverClaim:
    """The right to run one study as its driver number `driver_attempt`."""

    study_id: str
    driver_attempt: int


@dataclass(frozen=True, slots=True)
class PendingCancel:
    """A study whose driver is still there although its user cancelled the study at `requested_at`."""

    study_id: str
    driver_attempt: int
    requested_at: datetime


@dataclass(frozen=True, slots=True)
class UnconfirmedStart:
    """A driver of whose start nobody was told. lives: it has shown a sign of life, so that the cluster took it."""

    claim: DriverClaim
    lives: bool


_STEADY = timedelta(minutes=10)
"""A driver that has lived for so long does not end by its own start."""


@dataclass(frozen=True, slots=True)
class QueuedStudy:
    """A study that waits for a driver."""

    study_id: str
    owner: str


@dataclass(frozen=True, slots=True)
class DrivenStudy:
    """A study that has a driver. slots: its present share; None: no limit."""

    claim: DriverClaim
    demand: Demand
    slots: int | None


class ReconcilingStore:
    """The store as the controller uses it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lead(self, name: str, holder: str, lease_s: float) -> bool:
        """Takes or renews the lease `name`; False while somebody else holds it.

        holder: unlike that of any other process, or two would lead.
        """
        try:
            return self._lead(name, holder, lease_s)
        except IntegrityError:  # somebody else took a lease that nobody held at this very moment
            return False

    def give_up_lead(self, name: str, holder: str) -> None:
        """Ends the lease at once, so that the next controller need not wait for it."""
        table = tables.leases
        with self._database.writing() as connection:
            connection.execute(table.delete().where(table.c.name == name, table.c.holder == holder))

    def queued(self) -> list[QueuedStudy]:
        """The studies that wait for a driver, the oldest first."""
        table = tables.studies
        query = select(table.c.id, table.c.owner).where(table.c.state == StudyState.QUEUED)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.created_at, table.c.id))
            return [QueuedStudy(row.id, row.owner) for row in rows]

    def driven(self) -> list[DrivenStudy]:
        """The studies that have a driver, the oldest first, with what they could use."""
        table = tables.studies
        with self._database.reading() as connection:
            rows = connection.execute(
                select(table).where(table.c.state.in_(DRIVEN_STATES)).order_by(table.c.created_at, table.c.id)
            )
            studies = rows.all()
            demands = demands_of(connection, studies)
        return [
            DrivenStudy(DriverClaim(study.id, study.driver_attempt), demand, study.slots)
            for demand, study in zip(demands, studies, strict=True)
        ]

    def needs(self, study_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
        """The CPUs and GPUs that a trial of each of these studies needs."""
        table = tables.studies
        with self._database.reading() as connection:
            rows = connection.execute(select(table.c.id, table.c.spec).where(table.c.id.in_(study_ids)))
            resources = {row.id: row.spec["resources_per_trial"] for row in rows}
        return {study_id: (float(of["cpu"]), float(of["gpu"])) for study_id, of in resources.items()}

    def set_slots(self, slots: Mapping[str, int | None]) -> None:
        """Says how many trials of each of these studies may train at once; their drivers hear it at a heartbeat."""
        table = tables.studies
        with self._database.writing() as connection:
            for study_id, number in slots.items():
                connection.execute(
                    update(table).where(table.c.id == study_id, table.c.state.in_(DRIVEN_STATES)).values(slots=number)
                )

    def set_waiting_reason(self, study_ids: Sequence[str], waiting_reason: str) -> None:
        """Says of these QUEUED studies why they wait."""
        table = tables.studies
        with self._database.writing() as connection:
            connection.execute(
                update(table)
                .where(table.c.id.in_(study_ids), table.c.state == StudyState.QUEUED)
                .values(waiting_reason=waiting_reason)
            )

    def claim(self, study_id: str, startup_lease_s: float) -> DriverClaim | None:
        """Gives a QUEUED study to a new driver; None where it is no longer QUEUED.

        It is RUNNING then, or STOPPING where its running trials are all that is left to do. Nobody is told before
        `confirm_start`, since the cluster may refuse the driver.
        """
        with self._database.writing() as connection:
            study = records.locked_study(connection, study_id)
            if study.state != StudyState.QUEUED:
                return None
            now = self._database.now(connection)
            driver_attempt = study.driver_attempt + 1
            self._write_untold(
                connection,
                study_id,
                state=StudyState.STOPPING if study.intent == Intent.STOP else StudyState.RUNNING,
                driver_attempt=driver_attempt,
                running_since=now,
                lease_expires_at=now + timedelta(seconds=startup_lease_s),
                seen_at=now,
                waiting_reason="its driver is starting",
            )
            return DriverClaim(study_id, driver_attempt)

    def confirm_start(self, claim: DriverClaim) -> None:
        """The cluster has taken the driver: the study has started, and an event tells its state, once."""
        with self._database.writing() as connection:
            study = records.locked_study(connection, claim.study_id)
            if study.driver_attempt != claim.driver_attempt or not StudyState(study.state).has_driver:
                return
            records.tell_start(connection, study, at=self._database.now(connection))

    def unconfirmed_starts(self) -> list[UnconfirmedStart]:
        """Drivers of whose start no event tells: it is under way, or whoever was to confirm it could not."""
        table = tables.studies
        with self._database.reading() as connection:
            rows = connection.execute(select(table).where(table.c.state.in_(DRIVEN_STATES)).order_by(table.c.id)).all()
            return [
                UnconfirmedStart(DriverClaim(row.id, row.driver_attempt), _lives(row))
                for row in rows
                if row.started_at is None or records.told_state(connection, row.id) != row.state
            ]

    def give_back(self, claim: DriverClaim, waiting_reason: str) -> bool:
        """Returns a study whose driver could not be started to the queue, with the reason why it waits.

        It has been there all the time, as far as anybody was told. False where its driver lives all the same: whoever
        was to start it answered late.
        """
        with self._database.writing() as connection:
            study = records.locked_study(connection, claim.study_id)
            if study.driver_attempt != claim.driver_attempt or not StudyState(study.state).has_driver:
                return True
            now = self._database.now(connection)
            if _lives(study):
                records.tell_start(connection, study, at=now)
                return False
            if study.intent in (Intent.PAUSE, Intent.CANCEL) or _is_drained(connection, study):
                records.end_as_intended(connection, study, at=now)
            else:
                nobody = {"running_since": None, "lease_expires_at": None, "seen_at": None, "slots": None}
                values = {"state": StudyState.QUEUED, "waiting_reason": waiting_reason, **nobody}
                self._write_untold(connection, study.id, **values)
                records.tell_state(connection, study, StudyState.QUEUED, at=now)
            return True

    def overdue_drivers(self, *, given_up: bool = False) -> list[DriverClaim]:
        """Drivers whose lease has run out; given_up: only those that have given it up themselves."""
        table = tables.studies
        with self._database.reading() as connection:
            now = records.GIVEN_UP + timedelta(seconds=1) if given_up else self._database.now(connection)
            rows = connection.execute(
                select(table.c.id, table.c.driver_attempt).where(
                    table.c.state.in_(DRIVEN_STATES),
                    table.c.lease_expires_at < now,
                )
            )
            return [DriverClaim(row.id, row.driver_attempt) for row in rows]

    def shorten_leases(self, lease_s: float) -> list[DriverClaim]:
        """Lets drivers' leases that the clock has left in the far future end `lease_s` from now; answers whose.

        A driver that lives renews it until then; one that is dead would be waited for until the clock is there again.
        """
        table = tables.studies
        with self._database.reading() as connection:
            latest = _latest_end(self._database.now(connection))
            far = select(table.c.id, table.c.driver_attempt).where(
                table.c.state.in_(DRIVEN_STATES), table.c.lease_expires_at > latest
            )
            claims = [DriverClaim(row.id, row.driver_attempt) for row in connection.execute(far)]
        if claims:
            with self._database.writing() as connection:
                now = self._database.now(connection)
                connection.execute(
                    update(table)
                    .where(table.c.state.in_(DRIVEN_STATES), table.c.lease_expires_at > _latest_end(now))
                    .values(lease_expires_at=now + timedelta(seconds=lease_s))
                )
        return claims

    def lose_driver(self, claim: DriverClaim, *, max_losses: int, was_asked: bool = False) -> Study | None:
        """Declares a driver with an expired lease lost; None where it is alive after all.

        was_asked: whether it was asked to end, as one that gave its lease up was in any case.

        It ended at its last sign of life: no budget pays for the time since then. No loss that counts is one that was
        asked to end, and gave its lease up, or one that has lived long and trained nothing when it ended: a study may
        wait for weeks for a node, and the machines where its drivers run may end meanwhile.
        Its attempts are LOST, their trials PENDING, the study QUEUED for its next driver: unless its user wants it
        paused, which it then is, or stopped and no trial has begun, or it has lost `max_losses` drivers in a row
        without a single new result, which FAILS it. One that is being cancelled ends by `cancel_now`, once the driver's
        job has ended.
        """
        with self._database.writing() as connection:
            study = records.locked_study(connection, claim.study_id)
            now = self._database.now(connection)
            alive = study.lease_expires_at is None or study.lease_expires_at >= now
            if study.driver_attempt != claim.driver_attempt or alive or not StudyState(study.state).has_driver:
                return None
            if study.intent == Intent.CANCEL:
                return None
            was_asked |= study.lease_expires_at == records.GIVEN_UP
            losses = study.driver_losses + (not (was_asked or _was_waiting(connection, study, at=now)))
            data = {"driver_attempt": claim.driver_attempt}
            records.add_event(connection, claim.study_id, "driver.lost", data, at=now)
            if study.intent == Intent.PAUSE or _is_drained(connection, study):
                _lose_attempts(connection, study, at=now)
                records.end_as_intended(connection, study, at=now)
            elif losses >= max_losses:
                error = (
                    f"{max_losses} drivers in a row were lost without a new result; the last one is Ray job "
                    f"{claim.study_id}-{claim.driver_attempt}"
                )
                records.cancel_open_trials(connection, study, at=now)
                records.set_study_state(
                    connection, study, StudyState.FAILED, at=now, reason=Reason.DRIVER_FAILED, error=error
                )
            else:
                _lose_attempts(connection, study, at=now)
                records.set_study_state(
                    connection,
                    study,
                    StudyState.QUEUED,
                    at=now,
                    driver_losses=losses,
                    waiting_reason=f"its driver was {'asked to end' if was_asked else 'lost'}; "
                    "a new one is being started",
                )
            after = connection.execute(select(tables.studies).where(tables.studies.c.id == claim.study_id)).one()
            return records.as_record(Study, after)

    def cancelling(self) -> list[PendingCancel]:
        """Studies whose cancel has been asked for and not yet been carried out by their driver."""
        table = tables.studies
        query = select(table.c.id, table.c.driver_attempt, table.c.intent_at).where(
            table.c.state == StudyState.STOPPING, table.c.intent == Intent.CANCEL
        )
        with self._database.reading() as connection:
            rows = connection.execute(query)
            return [PendingCancel(row.id, row.driver_attempt, row.intent_at) for row in rows]

    def cancel_now(self, claim: DriverClaim) -> None:
        """Ends a study that is being cancelled, its driver having been stopped."""
        with self._database.writing() as connection:
            study = records.locked_study(connection, claim.study_id)
            stopping = study.state == StudyState.STOPPING and study.intent == Intent.CANCEL
            if study.driver_attempt == claim.driver_attempt and stopping:
                records.end_as_intended(connection, study, at=self._database.now(connection))

    def now(self) -> datetime:
        """The store's time."""
        with self._database.reading() as connection:
            return self._database.now(connection)

    def _lead(self, name: str, holder: str, lease_s: float) -> bool:
        table = tables.leases
        with self._database.writing() as connection:
            lease = connection.execute(select(table).where(table.c.name == name).with_for_update()).one_or_none()
            now = self._database.now(connection)  # whoever held the row may have held it for long
            expires_at = now + timedelta(seconds=lease_s)
            if lease is None:
                connection.execute(insert(table).values(name=name, holder=holder, expires_at=expires_at))
            elif lease.holder == holder or not now <= lease.expires_at <= _latest_end(now):
                connection.execute(
                    update(table).where(table.c.name == name).values(holder=holder, expires_at=expires_at)
                )
            else:
                return False
            return True

    @staticmethod
    def _write_untold(connection: Connection, study_id: str, **values: Any) -> None:
        """Writes these columns of a locked study, which is no change that MLflow or anybody else waits for."""
        connection.execute(update(tables.studies).where(tables.studies.c.id == study_id).values(**values))


def _lose_attempts(connection: Connection, study: Row[Any], *, at: datetime) -> None:
    """Nobody trains a locked study's trials any more: their attempts are LOST, and they wait for the next ones."""
    trial_ids = records.trials_in(connection, study.id, [TrialState.RUNNING])
    records.end_open_attempts(connection, trial_ids, AttemptState.LOST, at=records.last_seen(study, at))
    records.move_trials(connection, study.id, trial_ids, TrialState.PENDING, at=at)


def _was_waiting(connection: Connection, study: Row[Any], *, at: datetime) -> bool:
    """Whether a locked study's driver, no longer young, trained nothing at its end.

    Of a driver that an older version has started nobody knows when that was.
    """
    if study.running_since is None:
        return False
    lived = records.last_seen(study, at) - study.running_since
    return lived >= _STEADY and not records.trials_in(connection, study.id, [TrialState.RUNNING])


def _is_drained(connection: Connection, study: Row[Any]) -> bool:
    """Whether its user has stopped the study and no trial has begun that is to be finished."""
    return study.intent == Intent.STOP and not records.has_begun(connection, study.id)


def _lives(study: Row[Any]) -> bool:
    """Whether the study's present driver has shown that it is there."""
    return study.seen_at is not None and study.seen_at > study.running_since


def _latest_end(now: datetime) -> datetime:
    """When a lease ends at the latest that was given by a clock which has not gone back since."""
    return now + timedelta(seconds=LONGEST_LEASE_S)
