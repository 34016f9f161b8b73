"""What a study's driver may write: everything under its lease, and nothing once another driver has taken over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from sys import intern
from typing import Any

from sqlalchemy import Connection, Row, Table, select

from service.errors import LeaseLostError, SamstudyError, StudyNotFoundError
from service.store import records, tables
from service.store.database import Database
from service.store.inserting import insert_configuration, insert_trials, last_number
from service.store.recording import pause_trial, record_report
from service.store.reports import Report
from service.store.sleeping import DRIVER_SLEPT, Sign, SleepWatch
from service.store.snapshots import EpochValue, Instructions, Known, StudySnapshot
from service.store.spending import spent_on_attempts
from service.study import (
    Configuration,
    Intent,
    Origin,
    Purpose,
    Reason,
    Scalar,
    Study,
    StudyState,
    Trial,
    TrialState,
)

_WAITED_S = 1.0
"""How old a report is that had to wait for the store: what is recorded at once keeps the order of the events' times."""

_RESULTS_AT_A_TIME = 5_000


class NewConfigurationsError(SamstudyError):
    """The study has configurations that its driver does not know yet; it reads them and proposes again."""

    status = 409
    code = "new_configurations"
    title = "The study has new configurations"


class DrivingStore:
    """The store as the driver with number `driver_attempt` of one study may use it.

    Every write locks the study's row and raises LeaseLostError where the study belongs to another driver by then, has
    ended, or was claimed again: a driver that wakes up late can do no harm.

    stopwatch: seconds that stand still while the machine sleeps, which no budget pays for.
    """

    def __init__(
        self,
        database: Database,
        study_id: str,
        driver_attempt: int,
        *,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self.study_id = study_id
        self._driver_attempt = driver_attempt
        self._sleep_watch = SleepWatch(stopwatch)
        self._recorded_until: datetime | None = None

    def heartbeat(self, lease_s: float, waiting_reason: str | None = None) -> Instructions:
        """Extends the lease and tells what is wanted by now.

        waiting_reason: why nothing trains, in plain words; None where something does.
        """
        with self._database.writing() as connection:
            study = self._lock(connection)
            sign = self._sign(connection)
            expires_at = sign.at + timedelta(seconds=lease_s)
            self._show_life(connection, study, sign, lease_expires_at=expires_at, waiting_reason=waiting_reason)
            return Instructions(
                intent=Intent(study.intent),
                budget=study.spec["budget"],
                slots=study.slots,
                last_configuration=self._last_number(connection, tables.configurations),
            )

    def snapshot(self) -> StudySnapshot:
        """The whole study as it stands.

        Records are made once the transaction is over: of a large study that takes a while, in which PostgreSQL hears
        nothing.
        """
        of_study = tables.trials.c.study_id == self.study_id
        with self._database.reading() as connection:
            study = connection.execute(select(tables.studies).where(tables.studies.c.id == self.study_id)).one_or_none()
            study = self._checked(study)
            configurations = connection.execute(
                select(tables.configurations)
                .where(tables.configurations.c.study_id == self.study_id)
                .order_by(tables.configurations.c.number)
            ).all()
            trials = connection.execute(select(tables.trials).where(of_study).order_by(tables.trials.c.number)).all()
            epoch_values = self._epoch_values(connection, study.spec["objective"]["metric"])
            spent = spent_on_attempts(connection, self.study_id)
            read_at = self._database.now(connection)
        return StudySnapshot(
            study=records.as_record(Study, study),
            configurations=[records.as_record(Configuration, row) for row in configurations],
            trials=[records.as_record(Trial, row) for row in trials],
            epoch_values=epoch_values,
            lost_attempts=spent.lost_attempts,
            trained_s=spent.trained_s,
            attempts_s=spent.attempts_s,
            read_at=read_at,
        )

    def configurations_after(self, number: int) -> list[tuple[Configuration, list[Trial]]]:
        """The configurations with higher numbers, in order, with their trials."""
        table, trials = tables.configurations, tables.trials
        with self._database.reading() as connection:
            rows = connection.execute(
                select(table).where(table.c.study_id == self.study_id, table.c.number > number).order_by(table.c.number)
            ).all()
            of_them = connection.execute(
                select(trials).where(trials.c.configuration_id.in_([row.id for row in rows])).order_by(trials.c.number)
            ).all()
        return [
            (
                records.as_record(Configuration, row),
                [records.as_record(Trial, trial) for trial in of_them if trial.configuration_id == row.id],
            )
            for row in rows
        ]

    def add_configuration(
        self, point: dict[str, Scalar], point_key: str, seeds: Sequence[int], *, last_known: int
    ) -> tuple[Configuration, list[Trial]]:
        """Records a new point of the search space with one PENDING trial for each seed.

        point_key: what makes the point unique within its study. last_known: the number of the last configuration that
        the driver knows; raises NewConfigurationsError where a user has enqueued another since then.
        """
        with self._database.writing() as connection:
            self._lock(connection)
            if self._last_number(connection, tables.configurations) != last_known:
                raise NewConfigurationsError(f"study {self.study_id} has configurations after number {last_known}")
            now = self._database.now(connection)
            added = insert_configuration(
                connection, self.study_id, point, point_key, seeds, at=now, origin=Origin.SEARCH
            )
            records.touch_study(connection, self.study_id)
            return added

    def add_confirming_trials(self, configuration_id: str, seeds: Sequence[int]) -> list[Trial]:
        """Records a PENDING trial of this configuration for each of the fresh seeds.

        Those that are there already are answered as they are, so that it can be asked again when an answer was lost.
        """
        table = tables.trials
        known = select(table).where(
            table.c.study_id == self.study_id,
            table.c.configuration_id == configuration_id,
            table.c.purpose == Purpose.CONFIRM,
            table.c.seed.in_(seeds),
        )
        with self._database.writing() as connection:
            self._lock(connection)
            there = [records.as_record(Trial, row) for row in connection.execute(known.order_by(table.c.number))]
            missing = [seed for seed in seeds if seed not in {trial.seed for trial in there}]
            if not missing:
                return there
            now = self._database.now(connection)
            added = insert_trials(connection, self.study_id, configuration_id, missing, at=now, purpose=Purpose.CONFIRM)
            records.touch_study(connection, self.study_id)
            return there + added

    def record(self, reports: Sequence[Report], *, happened_at_s: Sequence[float] = ()) -> None:
        """Records what happened, in this order, as one transaction.

        happened_at_s: when each of them happened, by the stopwatch, in this order; by default just now. It decides when
        an attempt began and ended, so that what trained while the store was away is paid for.
        Reports of an attempt that is no longer the trial's current one are left out. A new result forgives the study
        the drivers that it has lost; an epoch done again is none.
        """
        with self._database.writing() as connection:
            study = self._lock(connection)
            sign = self._sign(connection)
            slept_s = self._show_life(connection, study, sign)
            times = [sign.at] * len(reports)
            if happened_at_s and not slept_s:  # a sleep lies before the sign of life that tells of it, wherever it was
                times = [self._moment(at_s, sign, study.running_since) for at_s in happened_at_s]
            news = [record_report(connection, study, report, at=at) for report, at in zip(reports, times, strict=True)]
            forgiven = {"driver_losses": 0} if any(news) else {}
            records.touch_study(connection, self.study_id, **forgiven)
        self._recorded_until = times[-1] if times else self._recorded_until

    def finish(self, state: StudyState, reason: Reason, error: str | None = None, *, known: Known) -> StudyState:
        """Ends the study, and cancels its trials that have not ended; answers what has become of it.

        Where its user has changed the budget or enqueued a point since the driver decided, it does not end: the next
        driver decides anew. A trial that was training has left its worker by then. A cancel that came in between wins.
        A point that was enqueued before a stop is not waited for.
        """
        with self._database.writing() as connection:
            study, now = self._lock_once_more(connection)
            wanted = Known.of(study.spec, self._last_number(connection, tables.configurations))
            knew_all = known.budget == wanted.budget if study.intent == Intent.STOP else known == wanted
            if study.intent == Intent.CANCEL:
                records.end_as_intended(connection, study, at=now)
            elif not knew_all:
                for trial_id in records.trials_in(connection, self.study_id, [TrialState.RUNNING]):
                    pause_trial(connection, self.study_id, trial_id, at=now)
                self._go_as_intended(connection, study, now)
            else:
                records.cancel_open_trials(connection, study, at=now)
                records.set_study_state(connection, study, state, at=now, reason=reason, error=error)
            return StudyState(records.locked_study(connection, self.study_id).state)

    def give_up_lease(self) -> None:
        """Ends the lease at once, so that the next driver need not wait until it runs out. One that has is left so."""
        with self._database.writing() as connection:
            study, sign = self._lock(connection), self._sign(connection)
            has_run_out = study.lease_expires_at is not None and study.lease_expires_at < sign.at
            given_up = {} if has_run_out else {"lease_expires_at": records.GIVEN_UP}
            self._show_life(connection, study, sign, **given_up)

    def leave(self) -> StudyState:
        """Nothing of the study runs any more as its user wished: it becomes what they want by now; answers that.

        Where they want it drained although it has been paused meanwhile, its next driver finishes what has begun.
        """
        with self._database.writing() as connection:
            study, now = self._lock_once_more(connection)
            self._go_as_intended(connection, study, now)
            return StudyState(records.locked_study(connection, self.study_id).state)

    def _epoch_values(self, connection: Connection, metric: str) -> list[EpochValue]:
        """This metric of every epoch that reported it, in the order of their recording.

        It is picked here, from some thousand rows at a time: SQLite finds nothing in JSON that has a NaN.
        """
        table = tables.results
        query = (
            select(table.c.trial_id, table.c.epoch, table.c.metrics)
            .join(tables.trials, tables.trials.c.id == table.c.trial_id)
            .where(tables.trials.c.study_id == self.study_id)
            .order_by(table.c.id)
            .execution_options(yield_per=_RESULTS_AT_A_TIME)
        )
        return [
            EpochValue(intern(trial_id), epoch, metrics[metric])
            for trial_id, epoch, metrics in connection.execute(query)
            if metric in metrics
        ]

    def _go_as_intended(self, connection: Connection, study: Row[Any], now: datetime) -> None:
        """Its driver leaves it; the next one finishes what has begun of a study that is being stopped."""
        if study.intent == Intent.STOP and records.has_begun(connection, self.study_id):
            records.queue_again(connection, study, at=now)
        else:
            records.end_as_intended(connection, study, at=now)

    def _lock_once_more(self, connection: Connection) -> tuple[Row[Any], datetime]:
        """The study of a driver that ends by itself: its last sign of life is this moment.

        It has started, though whoever was to say so may have died.
        """
        study = self._lock(connection)
        sign = self._sign(connection)
        self._show_life(connection, study, sign)
        records.tell_start(connection, study, at=sign.at)
        return self._lock(connection), sign.at

    def _sign(self, connection: Connection) -> Sign:
        return self._sleep_watch.look(lambda: self._database.now(connection))

    def _moment(self, at_s: float, sign: Sign, running_since: datetime | None) -> datetime:
        """When a report's event was: now, unless it had to wait for the store.

        Not before the driver was there, nor before what it has recorded. Since when one is there that an older version
        has started, nobody knows.
        """
        age_s = sign.before_s - at_s
        if age_s < _WAITED_S:
            return sign.at
        earliest = self._recorded_until or running_since or sign.at
        return min(sign.at, max(sign.at - timedelta(seconds=age_s), earliest))

    def _show_life(self, connection: Connection, study: Row[Any], sign: Sign, **values: Any) -> float:
        """Writes these columns with the driver's sign of life, which is no change that anybody waits for.

        Answers the seconds that its machine has slept since the one before.
        """
        slept_s = self._sleep_watch.slept_s(study.seen_at, sign)
        if slept_s:
            data = {"driver_attempt": self._driver_attempt, "seconds": slept_s}
            records.add_event(connection, self.study_id, DRIVER_SLEPT, data, at=sign.at)
        table = tables.studies
        connection.execute(table.update().where(table.c.id == self.study_id).values(seen_at=sign.at, **values))
        return slept_s

    def _lock(self, connection: Connection) -> Row[Any]:
        try:
            return self._checked(records.locked_study(connection, self.study_id))
        except StudyNotFoundError:
            return self._checked(None)

    def _checked(self, study: Row[Any] | None) -> Row[Any]:
        if study is None:
            raise LeaseLostError(f"study {self.study_id} is gone")
        if study.driver_attempt != self._driver_attempt or not StudyState(study.state).has_driver:
            raise LeaseLostError(
                f"driver {self._driver_attempt} of study {self.study_id} has lost its lease: "
                f"the study is {study.state} under driver {study.driver_attempt}"
            )
        return study

    def _last_number(self, connection: Connection, table: Table) -> int:
        return last_number(connection, table, self.study_id)
