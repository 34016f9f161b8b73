"""What a study's driver may write: everything under its lease, and nothing once another driver has taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from service.errors import LeaseLostError, StudyNotFoundError
from service.store import records, tables
from service.store.database import Database
from service.study import (
    AttemptState,
    Configuration,
    Intent,
    Reason,
    Result,
    Scalar,
    Study,
    StudyState,
    Trial,
    TrialState,
    check_trial_transition,
)


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A worker has begun with a trial."""

    trial_id: str
    attempt: int
    node: str | None


@dataclass(frozen=True, slots=True)
class EpochReported:
    """A trial has finished an epoch."""

    trial_id: str
    attempt: int
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial has reached a final state; `objective` is None where it has nothing to say of the objective."""

    trial_id: str
    attempt: int
    state: TrialState
    objective: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """A worker or node went away; the trial waits for its next attempt."""

    trial_id: str
    attempt: int
    error: str


Report = AttemptStarted | EpochReported | TrialEnded | AttemptLost


@dataclass(frozen=True, slots=True)
class StudySnapshot:
    """All that a driver needs to go on where the one before stopped.

    results: in the order in which they were recorded. lost_attempts: by trial, how many attempts a worker took along.
    """

    study: Study
    configurations: list[Configuration]
    trials: list[Trial]
    results: list[Result]
    lost_attempts: dict[str, int]


class DrivingStore:
    """The store as the driver with number `driver_attempt` of one study may use it.

    Every write locks the study's row and raises LeaseLostError where the study belongs to another driver by then, has
    ended, or was claimed again: a driver that wakes up late can do no harm.
    """

    def __init__(self, database: Database, study_id: str, driver_attempt: int) -> None:
        self._database = database
        self._study_id = study_id
        self._driver_attempt = driver_attempt

    def heartbeat(self, lease_s: float, waiting_reason: str | None = None) -> Intent:
        """Extends the lease and tells what the user wants by now.

        waiting_reason: why nothing trains, in plain words; None where something does.
        """
        with self._database.writing() as connection:
            study = self._lock(connection)
            expires_at = self._database.now(connection) + timedelta(seconds=lease_s)
            connection.execute(
                tables.studies.update()
                .where(tables.studies.c.id == self._study_id)
                .values(lease_expires_at=expires_at, waiting_reason=waiting_reason)
            )
            return Intent(study.intent)

    def snapshot(self) -> StudySnapshot:
        """The whole study as it stands."""
        of_study = tables.trials.c.study_id == self._study_id
        with self._database.reading() as connection:
            study = connection.execute(
                select(tables.studies).where(tables.studies.c.id == self._study_id)
            ).one_or_none()
            study = self._checked(study)
            configurations = connection.execute(
                select(tables.configurations)
                .where(tables.configurations.c.study_id == self._study_id)
                .order_by(tables.configurations.c.number)
            ).all()
            trials = connection.execute(select(tables.trials).where(of_study).order_by(tables.trials.c.number)).all()
            results = connection.execute(
                select(tables.results)
                .join(tables.trials, tables.trials.c.id == tables.results.c.trial_id)
                .where(of_study)
                .order_by(tables.results.c.id)
            ).all()
            lost = connection.execute(
                select(tables.attempts.c.trial_id, func.count().label("losses"))
                .join(tables.trials, tables.trials.c.id == tables.attempts.c.trial_id)
                .where(
                    of_study,
                    tables.attempts.c.state == AttemptState.LOST,
                    tables.attempts.c.error.is_not(None),
                )
                .group_by(tables.attempts.c.trial_id)
            ).all()
            return StudySnapshot(
                study=records.as_record(Study, study),
                configurations=[records.as_record(Configuration, row) for row in configurations],
                trials=[records.as_record(Trial, row) for row in trials],
                results=[records.as_record(Result, row) for row in results],
                lost_attempts={row.trial_id: row.losses for row in lost},
            )

    def add_configuration(
        self, point: dict[str, Scalar], point_key: str, seeds: Sequence[int]
    ) -> tuple[Configuration, list[Trial]]:
        """Records a new point of the search space with one PENDING trial for each seed.

        point_key: what makes the point unique within its study.
        """
        with self._database.writing() as connection:
            self._lock(connection)
            now = self._database.now(connection)
            number = 1 + self._count(connection, tables.configurations.c.study_id)
            first_trial = 1 + self._count(connection, tables.trials.c.study_id)
            configuration = Configuration(
                id=f"{self._study_id}-{number}",
                study_id=self._study_id,
                number=number,
                point=point,
                created_at=now,
            )
            digest = hashlib.sha256(point_key.encode()).hexdigest()
            connection.execute(insert(tables.configurations).values(**configuration.model_dump(), point_key=digest))
            trials = [
                Trial(
                    id=f"{configuration.id}-{seed}",
                    study_id=self._study_id,
                    configuration_id=configuration.id,
                    number=first_trial + index,
                    seed=seed,
                    state=TrialState.PENDING,
                    attempt=0,
                    epochs_done=0,
                    metrics={},
                    objective=None,
                    error=None,
                    created_at=now,
                    started_at=None,
                    finished_at=None,
                    mlflow_run_id=None,
                )
                for index, seed in enumerate(seeds)
            ]
            unexported = {"revision": 1, "exported_revision": 0, "exported_epoch": 0}
            connection.execute(insert(tables.trials), [{**trial.model_dump(), **unexported} for trial in trials])
            records.touch_study(connection, self._study_id)
            return configuration, trials

    def record(self, reports: Sequence[Report]) -> None:
        """Records what happened, in this order, as one transaction.

        Reports of an attempt that is no longer the trial's current one are left out.
        """
        with self._database.writing() as connection:
            self._lock(connection)
            now = self._database.now(connection)
            for report in reports:
                self._record(connection, report, now)
            news = any(isinstance(report, (EpochReported, TrialEnded)) for report in reports)
            records.touch_study(connection, self._study_id, **({"driver_losses": 0} if news else {}))

    def finish(self, state: StudyState, reason: Reason, error: str | None = None) -> None:
        """Ends the study; trials that have not ended are cancelled."""
        with self._database.writing() as connection:
            study = self._lock(connection)
            now = self._database.now(connection)
            records.end_open_trials(connection, self._study_id, at=now)
            records.set_study_state(connection, study, state, at=now, reason=reason, error=error)

    def _record(self, connection: Connection, report: Report, now: datetime) -> None:
        trial = connection.execute(
            select(tables.trials.c.state, tables.trials.c.attempt, tables.trials.c.started_at).where(
                tables.trials.c.id == report.trial_id, tables.trials.c.study_id == self._study_id
            )
        ).one()
        state = TrialState(trial.state)
        if isinstance(report, AttemptStarted):
            if state is TrialState.PENDING and report.attempt == trial.attempt + 1:
                self._start_attempt(connection, report, trial.started_at or now, now)
            return
        if report.attempt != trial.attempt or state is not TrialState.RUNNING:
            return
        match report:
            case EpochReported():
                self._add_result(connection, report, now)
            case TrialEnded():
                check_trial_transition(state, report.state)
                records.end_open_attempts(
                    connection, report.trial_id, AttemptState(report.state), at=now, error=report.error
                )
                values = {"objective": report.objective, "error": report.error, "finished_at": now}
                self._set_trial_state(connection, report.trial_id, report.state, now, **values)
            case AttemptLost():
                records.end_open_attempts(connection, report.trial_id, AttemptState.LOST, at=now, error=report.error)
                self._set_trial_state(connection, report.trial_id, TrialState.PENDING, now)

    def _start_attempt(
        self, connection: Connection, report: AttemptStarted, started_at: datetime, now: datetime
    ) -> None:
        connection.execute(
            insert(tables.attempts).values(
                trial_id=report.trial_id,
                number=report.attempt,
                driver_attempt=self._driver_attempt,
                state=AttemptState.RUNNING,
                node=report.node,
                started_at=now,
            )
        )
        values = {"attempt": report.attempt, "started_at": started_at}
        self._set_trial_state(connection, report.trial_id, TrialState.RUNNING, now, **values)

    def _add_result(self, connection: Connection, report: EpochReported, now: datetime) -> None:
        insert_into = sqlite_insert if self._database.is_sqlite else postgresql_insert
        added = connection.execute(
            insert_into(tables.results)
            .values(
                trial_id=report.trial_id,
                epoch=report.epoch,
                attempt=report.attempt,
                metrics=report.metrics,
                recorded_at=now,
            )
            .on_conflict_do_nothing(index_elements=["trial_id", "epoch"])
            .returning(tables.results.c.id)
        )
        if added.first() is not None:  # rowcount does not say so on PostgreSQL
            values = {"epochs_done": report.epoch, "metrics": report.metrics}
            records.touch_trial(connection, report.trial_id, **values)

    def _set_trial_state(
        self, connection: Connection, trial_id: str, state: TrialState, now: datetime, **values: Any
    ) -> None:
        records.touch_trial(connection, trial_id, state=state, **values)
        data = {"state": state, "objective": values.get("objective"), "error": values.get("error")}
        records.add_event(connection, self._study_id, "trial.state", data, at=now, trial_id=trial_id)

    def _lock(self, connection: Connection) -> Row[Any]:
        try:
            return self._checked(records.locked_study(connection, self._study_id))
        except StudyNotFoundError:
            return self._checked(None)

    def _checked(self, study: Row[Any] | None) -> Row[Any]:
        if study is None:
            raise LeaseLostError(f"study {self._study_id} is gone")
        if study.driver_attempt != self._driver_attempt or StudyState(study.state) not in (
            StudyState.RUNNING,
            StudyState.STOPPING,
        ):
            raise LeaseLostError(
                f"driver {self._driver_attempt} of study {self._study_id} has lost its lease: "
                f"the study is {study.state} under driver {study.driver_attempt}"
            )
        return study

    def _count(self, connection: Connection, study_column: Any) -> int:
        query = select(func.count()).where(study_column == self._study_id)
        return int(connection.execute(query).scalar_one())
