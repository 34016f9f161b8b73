"""What users ask of a study once it is there: pause, go on, stop, cancel, retry, change, enqueue, archive, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from search_spaces.parameters import Point, Scalar, point_key
from service.errors import (
    ConfigurationExistsError,
    FieldProblem,
    InvalidPointError,
    InvalidTransitionError,
)
from service.spec import StudySpec, accepted_spec
from service.spec_sections import Budget
from service.store import records, tables
from service.store.changing import ChangePlan, StudyChanges, plan_change
from service.store.database import Database
from service.store.demands import at_target
from service.store.inserting import insert_configuration, last_number
from service.store.spending import used_up
from service.store.summaries import summarise_configurations
from service.study import (
    AttemptState,
    Configuration,
    Intent,
    Origin,
    Reason,
    Study,
    StudyState,
    Trial,
    TrialState,
)
from trainers.config import InvalidTrainConfigError


class LifecycleStore:
    """Studies as their users steer them. Every method raises StudyNotFoundError, and InvalidTransitionError.

    scope: the owner whose studies the caller may see; None: all. if_version, of every method: the version of the study
    that the user has seen; where it has another by now, VersionConflictError is raised. None: any.
    """

    def __init__(self, database: Database, scope: str | None = None) -> None:
        self._database = database
        self._scope = scope

    def pause(self, study_id: str, *, if_version: int | None = None) -> Study:
        """No new trials; running ones save their state and leave. A paused study stays as it is."""
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            if study.intent in (Intent.STOP, Intent.CANCEL) or state.is_final:
                raise records.impossible(study, "paused")
            if study.intent != Intent.PAUSE:
                study = self._want(connection, study, Intent.PAUSE, now)
                if state is StudyState.QUEUED:
                    records.end_as_intended(connection, study, at=now)
                elif state is StudyState.RUNNING:
                    records.set_study_state(connection, study, StudyState.STOPPING, at=now)
            return self._study(connection, study_id)

    def resume(self, study_id: str, *, if_version: int | None = None) -> Study:
        """Lets a paused study go on; one that is not paused stays as it is."""
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            if study.intent in (Intent.STOP, Intent.CANCEL) or state.is_final:
                raise records.impossible(study, "resumed")
            if study.intent == Intent.PAUSE:
                study = self._want(connection, study, Intent.RUN, now)
                if state is StudyState.PAUSED:
                    self._queue(connection, study, now, driver_losses=0)
                else:  # a driver that has begun to pause leaves all the same, and the next one goes on
                    records.set_study_state(connection, study, StudyState.RUNNING, at=now)
            return self._study(connection, study_id)

    def stop(self, study_id: str, *, if_version: int | None = None) -> Study:
        """No new trials; what has begun ends. At once where nothing has begun, or where the study is paused.

        A study that has ended so stays as it is.
        """
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            pausing = state is StudyState.STOPPING and study.intent == Intent.PAUSE
            is_stopped = state.is_final and study.intent == Intent.STOP
            if study.intent == Intent.CANCEL or pausing or (state.is_final and not is_stopped):
                raise records.impossible(study, "stopped")
            if study.intent != Intent.STOP:
                study = self._want(connection, study, Intent.STOP, now)
                if state is StudyState.RUNNING:
                    records.set_study_state(connection, study, StudyState.STOPPING, at=now)
                elif state is StudyState.PAUSED or not records.has_begun(connection, study_id):
                    records.end_as_intended(connection, study, at=now)
            return self._study(connection, study_id)

    def cancel(self, study_id: str, *, if_version: int | None = None) -> Study:
        """Ends everything of it now: at once where nothing runs. A cancelled study stays as it is."""
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            if state.is_final and state is not StudyState.CANCELLED:
                raise records.impossible(study, "cancelled")
            if not state.is_final and study.intent != Intent.CANCEL:
                study = self._want(connection, study, Intent.CANCEL, now)
                if not state.has_driver:
                    records.end_as_intended(connection, study, at=now)
                elif state is StudyState.RUNNING:
                    records.set_study_state(connection, study, StudyState.STOPPING, at=now)
            return self._study(connection, study_id)

    def retry(self, study_id: str, *, if_version: int | None = None) -> Study:
        """Runs the failed trials of a finished study again, from their checkpoints, and whatever its failure cut off.

        A trial that a cancel kept from its next attempt has failed or was lost all the same.
        A study that its user had ended does that and no more, one that has reached its target ends so again; any other
        goes on as far as its budget lets it, one whose drivers failed also where there are no such trials. Where that
        lets nothing run, nothing changes.
        """
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            if not state.is_final:
                raise InvalidTransitionError(f"study {study_id!r} is {state}: only what has ended can be retried")
            limit = used_up(connection, study, Budget.model_validate(study.spec["budget"]))
            if limit is not None:
                raise InvalidTransitionError(f"study {study_id!r} has used up budget.{limit}: raise that first")
            by_user = study.reason == Reason.USER or study.intent == Intent.STOP
            trials = records.trials_in(connection, study_id, [TrialState.FAILED])
            trials += self._kept_from_another_attempt(connection, study_id)
            cut_off: list[str] = []
            if state is StudyState.FAILED:
                cancelled = records.trials_in(
                    connection, study_id, [TrialState.CANCELLED], begun=by_user, ended_at=study.finished_at
                )
                known = set(trials)
                cut_off = [trial_id for trial_id in cancelled if trial_id not in known]
            if not (trials or cut_off) and (by_user or study.reason != Reason.DRIVER_FAILED):
                raise InvalidTransitionError(f"study {study_id!r} has no trial that failed or was lost")
            self._reopen_trials(connection, study_id, trials, now, retried_after=tables.trials.c.attempt)
            self._reopen_trials(connection, study_id, cut_off, now)
            if study.archived_at:
                records.add_event(connection, study_id, "study.changed", {"archived": False}, at=now)
            study = self._want(connection, study, Intent.STOP if by_user else Intent.RUN, now)
            self._queue(connection, study, now, driver_losses=0, archived_at=None)
            return self._study(connection, study_id)

    def patch(self, study_id: str, changes: StudyChanges, *, if_version: int | None) -> Study:
        """Changes budget, confirm, labels or description; a higher limit reopens a finished study, with all it knows.

        Where nothing but failed trials is left, for which there was no time, there is now, and a retry runs them.
        `confirm` reopens one to run its best again on the seeds that it has not, and no more: it searches on only where
        max_trials is raised too.
        Raises InvalidSpecError, and InvalidTransitionError where another limit would end the study at once.
        """
        with self._database.writing() as connection:
            study, _state, now = self._locked(connection, study_id, if_version)
            plan = plan_change(connection, study, changes)
            self._write_change(connection, study, plan, now)
            return self._study(connection, study_id)

    def enqueue(
        self, study_id: str, point: Mapping[str, Scalar], *, if_version: int | None = None
    ) -> tuple[Configuration, list[Trial]]:
        """Records a point that the user wants tried, with a trial for each seed; it is run before new proposals.

        It is recorded with the values that the search has: 0.3 where 0.30000000000000004 is given for a step of 0.1.
        Raises InvalidPointError, ConfigurationExistsError, and InvalidTransitionError where it would never run.
        """
        try:
            with self._database.writing() as connection:
                study, state, now = self._locked(connection, study_id, if_version)
                if state.is_final or study.intent in (Intent.STOP, Intent.CANCEL):
                    first = " before a larger budget.max_trials lets it go on" if _goes_on(study) else ""
                    raise records.impossible(study, f"given another point{first}")
                if study.id in at_target(connection, [study]):
                    raise InvalidTransitionError(
                        f"study {study_id!r} has reached objective.target: it begins no other point"
                    )
                spec = accepted_spec(study.spec)
                point = _checked_point(spec, point)
                seeds, most = spec.replicates.seeds, spec.configuration_budget()
                known = last_number(connection, tables.configurations, study_id)
                if most is not None and known >= most:
                    raise InvalidTransitionError(
                        f"study {study_id!r} has {known} configurations, as many as budget.max_trials allows: raise it"
                    )
                added = insert_configuration(
                    connection, study_id, point, point_key(point), seeds, at=now, origin=Origin.USER
                )
                records.touch_study(connection, study_id, version=study.version + 1)
                data = {"configuration_id": added[0].id, "point": point, "origin": Origin.USER}
                records.add_event(connection, study_id, "configuration.added", data, at=now)
                return added
        except IntegrityError as error:
            raise ConfigurationExistsError(f"study {study_id!r} has this point already") from error

    def archive(self, study_id: str, *, archived: bool = True, if_version: int | None = None) -> Study:
        """Puts a finished study out of sight of lists that do not ask for it, or back."""
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            if archived and not state.is_final:
                raise InvalidTransitionError(f"study {study_id!r} is {state}: only what has ended can be archived")
            if archived != (study.archived_at is not None):
                values = {"archived_at": now if archived else None, "version": study.version + 1}
                row = tables.studies.c.id == study_id  # its revision stays: MLflow shows nothing of this
                connection.execute(update(tables.studies).where(row).values(values))
                records.add_event(connection, study_id, "study.changed", {"archived": archived}, at=now)
            return self._study(connection, study_id)

    def delete(self, study_id: str, *, delete_runs: bool, if_version: int | None = None) -> None:
        """Forgets a finished study and all of its results; the controller then removes its files.

        delete_runs: its runs in MLflow too. Runs that stay have to show what the study found: InvalidTransitionError is
        raised where MLflow lacks some of it.
        """
        with self._database.writing() as connection:
            study, state, now = self._locked(connection, study_id, if_version)
            if not state.is_final:
                raise InvalidTransitionError(f"study {study_id!r} is {state}: cancel it before you delete it")
            if not delete_runs and study.revision != study.exported_revision:
                raise InvalidTransitionError(
                    f"MLflow does not show study {study_id!r} as it is yet: wait until it does, or delete its runs "
                    "with it (runs=delete), which needs no MLflow"
                )
            is_known = study.mlflow_run_id is not None  # else the exporter may be making its runs in another experiment
            connection.execute(
                insert(tables.removals).values(
                    study_id=study_id,
                    mlflow_experiment_id=study.mlflow_experiment_id if is_known else None,
                    delete_runs=delete_runs,
                    requested_at=now,
                )
            )
            connection.execute(delete(tables.studies).where(tables.studies.c.id == study_id))

    def _locked(
        self, connection: Connection, study_id: str, if_version: int | None
    ) -> tuple[Row[Any], StudyState, datetime]:
        study = records.locked_study(connection, study_id, scope=self._scope)
        records.check_version(study, if_version)
        return study, StudyState(study.state), self._database.now(connection)

    def _write_change(self, connection: Connection, study: Row[Any], plan: ChangePlan, now: datetime) -> None:
        values = {"description": plan.spec["description"], "labels": plan.spec["labels"], "spec": plan.spec}
        records.touch_study(connection, study.id, version=study.version + 1, **values)
        shows_again = {"archived": False} if plan.reopens and study.archived_at else {}
        records.add_event(connection, study.id, "study.changed", {**plan.told(), **shows_again}, at=now)
        if plan.reopens:
            self._reopen_trials(connection, study.id, plan.cut_off, now)
            study = self._want(connection, study, Intent.RUN, now)
            self._queue(connection, study, now, driver_losses=0, archived_at=None)

    @staticmethod
    def _want(connection: Connection, study: Row[Any], intent: Intent, now: datetime) -> Row[Any]:
        records.touch_study(connection, study.id, intent=intent, intent_at=now, version=tables.studies.c.version + 1)
        return records.locked_study(connection, study.id)

    @staticmethod
    def _queue(connection: Connection, study: Row[Any], now: datetime, **values: Any) -> None:
        waiting_reason = "waits for its driver"
        records.set_study_state(connection, study, StudyState.QUEUED, at=now, waiting_reason=waiting_reason, **values)

    @staticmethod
    def _kept_from_another_attempt(connection: Connection, study_id: str) -> list[str]:
        """Ids of the cancelled trials whose newest attempt failed or was lost, in the order of their numbers."""
        table, attempts = tables.trials, tables.attempts
        newest = (attempts.c.trial_id == table.c.id) & (attempts.c.number == table.c.attempt)
        query = (
            select(table.c.id)
            .join(attempts, newest)
            .where(
                table.c.study_id == study_id,
                table.c.state == TrialState.CANCELLED,
                attempts.c.state.in_([AttemptState.FAILED, AttemptState.LOST]),
            )
        )
        return list(connection.execute(query.order_by(table.c.number)).scalars())

    @staticmethod
    def _reopen_trials(
        connection: Connection, study_id: str, trial_ids: Sequence[str], now: datetime, **values: Any
    ) -> None:
        """Those that their user retries begin anew with their limits: retried_after says so. The others go on."""
        table = tables.trials
        forgotten = {"objective": None, "error": None, "note": None, "finished_at": None}
        records.move_trials(connection, study_id, trial_ids, TrialState.PENDING, at=now, **values, **forgotten)
        touched: set[str] = set()
        for some in records.in_parts(trial_ids):
            touched.update(connection.execute(select(table.c.configuration_id).where(table.c.id.in_(some))).scalars())
        summarise_configurations(connection, touched)

    @staticmethod
    def _study(connection: Connection, study_id: str) -> Study:
        row = connection.execute(select(tables.studies).where(tables.studies.c.id == study_id)).one()
        return records.as_record(Study, row)


def _goes_on(study: Row[Any]) -> bool:
    """Whether a larger budget lets it: not on its way to its end, nor at its target, nor where its drivers failed."""
    at_its_end = study.reason in (Reason.TARGET_REACHED, Reason.DRIVER_FAILED, Reason.SPACE_EXHAUSTED)
    return StudyState(study.state).is_final and not at_its_end


def _checked_point(spec: StudySpec, point: Mapping[str, Scalar]) -> Point:
    """The point as the space has it. Raises InvalidPointError."""
    problems = [
        FieldProblem(".".join(("point", *map(str, problem.path))), problem.message)
        for problem in spec.space.point_problems(point)
    ]
    if not problems:
        point = spec.space.snapped(point)
        try:
            spec.train_config(point, spec.replicates.seeds[0])
        except InvalidTrainConfigError as error:
            problems = [FieldProblem(f"point.{problem.field}", problem.message) for problem in error.problems]
    if problems:
        raise InvalidPointError(
            "; ".join(f"{problem.field}: {problem.message}" for problem in problems), problems=problems
        )
    return dict(point)
