"""What users ask of a study, as the store carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, update

from search_spaces.parameters import point_key
from service.errors import (
    ConfigurationExistsError,
    InvalidPointError,
    InvalidSpecError,
    InvalidTransitionError,
    StudyNotFoundError,
    VersionConflictError,
)
from service.spec import accepted_spec, parse_spec
from service.spec_sections import Confirm
from service.store import records, tables
from service.store.changing import StudyChanges
from service.store.driving import DrivingStore
from service.store.inserting import insert_configuration
from service.store.lifecycle import LifecycleStore
from service.store.reconciling import DriverClaim
from service.store.reports import AttemptLost, AttemptPaused, AttemptStarted, TrialEnded
from service.study import Intent, Origin, Reason, Study, StudyState, TrialState
from service.tuning.algorithms import algorithm_for
from service.tuning.decisions import Ending, IssuedTrial
from service.tuning.progress import StudyProgress

QUEUED, RUNNING, PAUSED, STOPPING = StudyState.QUEUED, StudyState.RUNNING, StudyState.PAUSED, StudyState.STOPPING
SUCCEEDED, FAILED, CANCELLED = StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED
USER = Origin.USER
VERBS = ("pause", "resume", "stop", "cancel", "retry", "archive")


@pytest.fixture
def lifecycle(stores: Any) -> LifecycleStore:
    return LifecycleStore(stores.database)


ONE_SEED = {"seeds": [0]}
TWO_POINTS = {"rho": {"type": "categorical", "choices": [0.1, 0.2]}}


@pytest.fixture
def create(stores: Any) -> Callable[..., Study]:
    """A study of 20 configurations with 2 seeds each; its spec changed in these sections."""

    def create(**changes: Any) -> Study:
        study: Study = stores.create(spec=spec_with(**changes))
        return study

    return create


def spec_with(**changes: Any) -> dict[str, Any]:
    spec = {
        "name": "s",
        "train": {"dataset": "digits", "model": "mlp", "epochs": 3},
        "search_space": "paper_lambda_rho",
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": [0, 1]},
        **changes,
    }
    return parse_spec(spec).to_mapping()


def progress_of(driver: DrivingStore) -> StudyProgress:
    """What the driver makes of what the store has."""
    snapshot = driver.snapshot()
    spec = accepted_spec(snapshot.study.spec)
    return StudyProgress(spec, snapshot, algorithm_for(spec, leg=0), driver)


def drive_to_its_end(stores: Any, study: Study, *, fails: Callable[[IssuedTrial], bool] = lambda _: False) -> int:
    """The study's next driver, whose trials that do not fail have 0.5; how many trials it ran."""
    driver: DrivingStore = stores.drive(study)
    progress = progress_of(driver)
    ran = 0
    while isinstance(issued := progress.next_trial(), IssuedTrial):
        trial_id, attempt = issued.trial_id, issued.attempt
        ended = TrialState.FAILED if fails(issued) else TrialState.SUCCEEDED
        progress.attempt_started(trial_id, attempt)
        if ended is TrialState.SUCCEEDED:
            progress.epoch_reported(trial_id, 3, 0.5)
        objective = progress.trial_ended(trial_id, ended)
        driver.record([AttemptStarted(trial_id, attempt, "n"), TrialEnded(trial_id, attempt, ended, objective)])
        ran += 1
    assert isinstance(issued, Ending)
    assert driver.finish(issued.state, issued.reason, issued.error, known=progress.known) is issued.state
    return ran


def end(driver: DrivingStore, trial: Any, state: TrialState, attempt: int = 1) -> None:
    driver.record([AttemptStarted(trial.id, attempt, "n"), TrialEnded(trial.id, attempt, state, 0.5)])


class TestPause:
    def test_a_queued_study_is_paused_at_once_and_not_claimed(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        assert lifecycle.pause(study.id).state is PAUSED
        assert lifecycle.pause(study.id).state is PAUSED
        assert stores.reconciling.queued() == []
        assert lifecycle.resume(study.id).state is QUEUED
        assert [queued.study_id for queued in stores.reconciling.queued()] == [study.id]

    def test_a_running_study_is_stopping_until_its_driver_has_left(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        assert lifecycle.pause(study.id).state is STOPPING
        assert driver.heartbeat(60).intent is Intent.PAUSE
        driver.record([AttemptPaused(trial.id, 1)])
        assert driver.leave() is PAUSED
        assert stores.studies.trial(study.id, trial.id).state is TrialState.PAUSED
        assert lifecycle.resume(study.id).state is QUEUED

    def test_a_pause_that_is_taken_back_in_time_leaves_the_study_running(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        lifecycle.pause(study.id)
        assert lifecycle.resume(study.id).state is RUNNING
        assert driver.leave() is QUEUED, "the driver had begun to leave, and the next one goes on"

    def test_a_paused_study_can_be_stopped_and_cancelled(
        self, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        for verb in (lifecycle.stop, lifecycle.cancel):
            study = create()
            lifecycle.pause(study.id)
            ended = verb(study.id)
            assert (ended.state, ended.reason) == (CANCELLED, Reason.USER)


class TestStopAndCancel:
    def test_a_study_resumed_and_stopped_while_it_pauses_is_drained_by_its_next_driver(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        lifecycle.pause(study.id)
        lifecycle.resume(study.id)
        lifecycle.stop(study.id)
        driver.record([AttemptPaused(trial.id, 1)])
        assert driver.leave() is QUEUED
        assert stores.studies.trial(study.id, trial.id).state is TrialState.PAUSED
        again = stores.drive(study)
        assert again.heartbeat(60).intent is Intent.STOP
        end(again, trial, TrialState.SUCCEEDED, attempt=2)
        assert again.leave() is SUCCEEDED

    def test_a_stopped_study_has_succeeded_where_a_trial_has(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        first, waiting = stores.propose(driver, seeds=[0, 1])
        end(driver, first, TrialState.SUCCEEDED)
        assert lifecycle.stop(study.id).state is STOPPING
        assert lifecycle.stop(study.id).state is STOPPING
        assert driver.leave() is SUCCEEDED
        assert stores.studies.get(study.id).reason is Reason.USER
        assert stores.studies.trial(study.id, waiting.id).state is TrialState.CANCELLED

    def test_a_queued_study_is_cancelled_at_once_with_its_trials(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        claim = stores.claim(study, lease_s=-1)
        trial = stores.begin(DrivingStore(stores.database, study.id, claim.driver_attempt))
        stores.lose(claim)
        cancelled = lifecycle.cancel(study.id)
        assert (cancelled.state, cancelled.reason) == (CANCELLED, Reason.USER)
        assert cancelled.finished_at is not None
        assert stores.studies.trial(study.id, trial.id).state is TrialState.CANCELLED

    def test_a_running_study_is_stopping_until_its_driver_ends_it(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        stopping = lifecycle.cancel(study.id)
        assert (stopping.state, stopping.intent, stopping.finished_at) == (STOPPING, Intent.CANCEL, None)
        assert lifecycle.cancel(study.id) == stopping
        assert driver.leave() is CANCELLED
        assert lifecycle.cancel(study.id).state is CANCELLED

    def test_a_cancel_outdoes_a_stop_and_a_pause_but_nothing_outdoes_a_cancel(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        for before in (lifecycle.pause, lifecycle.stop):
            study = create()
            stores.begin(stores.drive(study))
            before(study.id)
            assert lifecycle.cancel(study.id).intent is Intent.CANCEL
            for after in (lifecycle.pause, lifecycle.resume, lifecycle.stop):
                with pytest.raises(InvalidTransitionError, match="is being cancelled"):
                    after(study.id)


class TestRetry:
    def test_only_what_failed_runs_again_and_the_study_does_no_more_where_its_user_had_ended_it(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        good, bad = stores.propose(driver, seeds=[0, 1])
        end(driver, good, TrialState.SUCCEEDED)
        end(driver, bad, TrialState.FAILED)
        lifecycle.stop(study.id)
        driver.leave()
        retried = lifecycle.retry(study.id)
        assert (retried.state, retried.intent, retried.reason) == (QUEUED, Intent.STOP, None)
        states = [trial.state for trial in stores.studies.trials(study.id)]
        assert states == [TrialState.SUCCEEDED, TrialState.PENDING]
        assert stores.studies.summaries(study.id)[0].complete is False

    @pytest.mark.parametrize("ended", ["its driver was lost", "a trial failed"])
    def test_a_study_that_failed_while_it_was_stopped_begins_nothing_new(
        self, ended: str, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        begun, never = stores.propose(driver, seeds=[0, 1])
        driver.record([AttemptStarted(begun.id, 1, "node-1")])
        lifecycle.stop(study.id)
        if ended == "a trial failed":
            driver.record([TrialEnded(begun.id, 1, TrialState.FAILED, None, error="ValueError")])
            driver.finish(FAILED, Reason.TOO_MANY_FAILURES, "1 trial failed", known=driver.snapshot().known)
        else:
            driver.finish(FAILED, Reason.DRIVER_FAILED, "lost", known=driver.snapshot().known)
        retried = lifecycle.retry(study.id)
        assert (retried.state, retried.intent) == (QUEUED, Intent.STOP)
        states = {trial.id: trial.state for trial in stores.studies.trials(study.id)}
        assert states == {begun.id: TrialState.PENDING, never.id: TrialState.CANCELLED}

    def test_a_study_whose_trials_failed_it_goes_on(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        bad, waiting = stores.propose(driver, seeds=[0, 1])
        end(driver, bad, TrialState.FAILED)
        driver.finish(FAILED, Reason.TOO_MANY_FAILURES, "1 trial failed", known=driver.snapshot().known)
        retried = lifecycle.retry(study.id)
        assert (retried.state, retried.intent, retried.error) == (QUEUED, Intent.RUN, None)
        assert {trial.state for trial in stores.studies.trials(study.id)} == {TrialState.PENDING}
        assert waiting.attempt == 0

    def test_what_failed_is_gone_through_once_and_not_for_each_trial_that_was_cut_off(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[str] = []

        class Failed(list[str]):
            def __iter__(self) -> Iterator[str]:
                looks.append("at all of them")
                return super().__iter__()

        def trials_in(connection: Connection, study_id: str, states: list[TrialState], **which: Any) -> list[str]:
            found = found_in_store(connection, study_id, states, **which)
            return Failed(found) if states == [TrialState.FAILED] else found

        study = create()
        driver = stores.drive(study)
        bad, *waiting = stores.propose(driver, seeds=range(9))
        end(driver, bad, TrialState.FAILED)
        driver.finish(FAILED, Reason.TOO_MANY_FAILURES, "1 trial failed", known=driver.snapshot().known)
        found_in_store = records.trials_in
        monkeypatch.setattr(records, "trials_in", trials_in)
        lifecycle.retry(study.id)
        assert len(looks) < len(waiting)
        assert {trial.state for trial in stores.studies.trials(study.id)} == {TrialState.PENDING}

    def test_a_study_that_has_reached_its_target_ends_for_that_reason_again(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(objective={"metric": "val_accuracy", "mode": "max", "target": 0.5}, budget={"max_trials": 4})
        driver = stores.drive(study)
        for trial in stores.propose(driver, seeds=[0, 1]):
            end(driver, trial, TrialState.SUCCEEDED)
        bad, never = stores.propose(driver, seeds=[0, 1])
        end(driver, bad, TrialState.FAILED)
        driver.finish(SUCCEEDED, Reason.TARGET_REACHED, known=driver.snapshot().known)
        assert lifecycle.retry(study.id).intent is Intent.RUN
        again = stores.drive(study)
        progress = progress_of(again)
        issued = progress.next_trial()
        assert isinstance(issued, IssuedTrial)
        assert issued.trial_id == bad.id
        assert progress.attempt_started(bad.id, issued.attempt)
        end(again, bad, TrialState.FAILED, issued.attempt)
        progress.trial_ended(bad.id, TrialState.FAILED)
        ending = progress.next_trial()
        assert ending == Ending(SUCCEEDED, Reason.TARGET_REACHED)
        assert again.finish(ending.state, ending.reason, known=progress.known) is SUCCEEDED
        assert stores.studies.get(study.id).reason is Reason.TARGET_REACHED
        assert stores.studies.trial(study.id, never.id).attempt == 0
        with pytest.raises(InvalidTransitionError, match=r"objective\.target"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 8}), if_version=None)

    @pytest.mark.parametrize(
        ("limits", "gpus"),
        [({"max_wallclock_s": 100}, 0), ({"max_gpu_hours": 0.05}, 2)],
        ids=["seconds", "GPU hours"],
    )
    @pytest.mark.parametrize("reason", [Reason.TOO_MANY_FAILURES, Reason.DRIVER_FAILED, Reason.USER])
    def test_a_study_without_time_left_keeps_what_it_cannot_retry(
        self, timed_stores: Any, clock: Any, limits: dict[str, float], gpus: int, reason: Reason
    ) -> None:
        lifecycle = timed_stores.lifecycle
        study = timed_stores.create(spec=spec_with(budget=limits, resources_per_trial={"gpu": gpus}))
        driver = timed_stores.drive(study)
        trial = timed_stores.begin(driver)
        clock.advance(100)  # 2 GPUs × 100 s = 0.056 h
        driver.record([TrialEnded(trial.id, 1, TrialState.FAILED, None, "Traceback: why")])
        driver.finish(FAILED, reason, known=driver.snapshot().known)
        before = timed_stores.studies.get(study.id)
        (limit, value) = next(iter(limits.items()))
        with pytest.raises(InvalidTransitionError, match=rf"has used up budget\.{limit}: raise that first"):
            lifecycle.retry(study.id)
        assert timed_stores.studies.get(study.id) == before
        assert timed_stores.studies.trial(study.id, trial.id).error == "Traceback: why"
        lifecycle.patch(study.id, StudyChanges(budget={limit: 2 * value}), if_version=None)
        driver = timed_stores.drive(study)
        driver.finish(FAILED, reason, known=driver.snapshot().known)
        assert lifecycle.retry(study.id).state is QUEUED

    def test_what_a_cancel_kept_from_its_next_attempt_can_be_retried(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        failed, lost, cut_off = (stores.begin(driver) for _ in range(3))
        driver.record([TrialEnded(failed.id, 1, TrialState.FAILED, None, "why"), AttemptLost(lost.id, 1, "gone")])
        driver.finish(SUCCEEDED, Reason.USER, known=driver.snapshot().known)
        lifecycle.retry(study.id)
        lifecycle.cancel(study.id)
        states = {trial.id: trial.state for trial in stores.studies.trials(study.id)}
        assert set(states.values()) == {TrialState.CANCELLED}
        assert lifecycle.retry(study.id).state is QUEUED
        reopened = [trial.id for trial in stores.studies.trials(study.id) if trial.state is TrialState.PENDING]
        assert reopened == [failed.id, lost.id]
        assert cut_off.id in states

    def test_a_retry_of_an_archived_study_says_that_it_is_in_sight_again(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        driver.record([TrialEnded(stores.begin(driver).id, 1, TrialState.FAILED, None, "why")])
        stores.finish(driver)
        lifecycle.archive(study.id)
        assert lifecycle.retry(study.id).archived_at is None
        changes = [event.data for event in stores.studies.events(study.id) if event.kind == "study.changed"]
        assert [change["archived"] for change in changes] == [True, False]

    @pytest.mark.parametrize("verb", ["patch", "retry"])
    def test_what_was_cut_off_goes_on_with_what_is_left_of_its_limits(
        self, timed_stores: Any, clock: Any, verb: str
    ) -> None:
        lifecycle = timed_stores.lifecycle
        spec = spec_with(budget={"max_wallclock_s": 1_000, "max_trial_s": 100, "max_failed_trials": 0})
        study = timed_stores.create(spec=spec)
        driver = timed_stores.drive(study)
        cut_off, bad = timed_stores.begin(driver), timed_stores.begin(driver)
        clock.advance(50)
        driver.record([AttemptLost(cut_off.id, 1, "gone"), AttemptStarted(cut_off.id, 2, None)])
        clock.advance(40)
        driver.record([TrialEnded(bad.id, 1, TrialState.FAILED, None, "why")])
        driver.finish(FAILED, Reason.TOO_MANY_FAILURES, known=driver.snapshot().known)
        if verb == "patch":
            lifecycle.patch(study.id, StudyChanges(budget={"max_failed_trials": 1}), if_version=None)
        else:
            lifecycle.retry(study.id)
        again = timed_stores.drive(study).snapshot()
        assert again.trained_s[cut_off.id] == 90
        assert again.lost_attempts == {cut_off.id: 1}
        assert again.trained_s.get(bad.id) == (90 if verb == "patch" else None)

    def test_the_traceback_of_a_retried_trial_stays_with_its_attempt(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        driver.record([TrialEnded(trial.id, 1, TrialState.FAILED, None, "Traceback: why")])
        stores.finish(driver)
        lifecycle.retry(study.id)
        assert stores.studies.trial(study.id, trial.id).error is None
        assert [attempt.error for attempt in stores.studies.attempts(study.id, trial.id)] == ["Traceback: why"]

    @pytest.mark.parametrize("succeeded", [0, 1])
    def test_a_study_that_lost_its_drivers_goes_on_although_no_trial_failed(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], succeeded: int
    ) -> None:
        study = create()
        claim = stores.claim(study, lease_s=-1)
        driver = DrivingStore(stores.database, study.id, claim.driver_attempt)
        for _ in range(succeeded):
            stores.succeed(driver, stores.begin(driver))
        assert stores.lose(claim, max_losses=1).reason is Reason.DRIVER_FAILED
        retried = lifecycle.retry(study.id)
        assert (retried.state, retried.intent, retried.reason, retried.error) == (QUEUED, Intent.RUN, None, None)
        issued = progress_of(
            DrivingStore(stores.database, study.id, stores.claim(study, -1).driver_attempt)
        ).next_trial()
        assert isinstance(issued, IssuedTrial)
        again = DriverClaim(study.id, claim.driver_attempt + 1)
        assert stores.lose(again, max_losses=2).state is QUEUED  # the losses before the retry count no more

    def test_without_a_failure_there_is_nothing_to_retry(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        with pytest.raises(InvalidTransitionError, match="only what has ended"):
            lifecycle.retry(study.id)
        stores.finish(stores.drive(study))
        with pytest.raises(InvalidTransitionError, match="no trial that failed"):
            lifecycle.retry(study.id)


class TestVersions:
    @pytest.mark.parametrize("verb", VERBS)
    def test_a_verb_for_another_version_changes_nothing(
        self, verb: str, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        seen = create()
        study = lifecycle.patch(seen.id, StudyChanges(labels={"a": "b"}), if_version=seen.version)
        with pytest.raises(VersionConflictError):
            getattr(lifecycle, verb)(study.id, if_version=seen.version)
        assert stores.studies.get(study.id) == study

    def test_neither_is_a_point_taken_nor_a_run_forgotten(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        seen = create(search_space=TWO_POINTS)
        study = lifecycle.patch(seen.id, StudyChanges(labels={"a": "b"}), if_version=seen.version)
        with pytest.raises(VersionConflictError):
            lifecycle.enqueue(study.id, {"rho": 0.1}, if_version=seen.version)
        with pytest.raises(VersionConflictError):
            stores.exporting.forget(study.id, if_version=seen.version)
        assert stores.studies.get(study.id) == study
        lifecycle.enqueue(study.id, {"rho": 0.1}, if_version=study.version)


class TestPatch:
    def test_every_change_makes_another_version(self, lifecycle: LifecycleStore, create: Callable[..., Study]) -> None:
        study = create()
        changed = lifecycle.patch(study.id, StudyChanges(labels={"a": "b"}), if_version=study.version)
        assert (changed.version, changed.labels) == (study.version + 1, {"a": "b"})
        with pytest.raises(VersionConflictError):
            lifecycle.patch(study.id, StudyChanges(description="late"), if_version=study.version)

    def test_a_bad_budget_changes_nothing(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        with pytest.raises(InvalidSpecError) as refused:
            lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 3, "x": 1}), if_version=None)
        assert {problem.field for problem in refused.value.problems} == {"budget.max_trials", "budget.x"}
        assert stores.studies.get(study.id) == study

    def test_a_running_driver_hears_of_its_new_budget(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 6}), if_version=None)
        assert driver.heartbeat(60).budget["max_trials"] == 6

    @pytest.mark.parametrize(
        ("old", "new", "reopens"),
        [({"max_trials": 4}, 6, True), ({"max_trials": 4}, None, True), ({"max_trials": 4}, 2, False)],
    )
    def test_only_a_higher_limit_reopens_a_finished_study(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], old: Any, new: Any, reopens: bool
    ) -> None:
        study = create(budget=old)
        stores.finish(stores.drive(study))
        changed = lifecycle.patch(study.id, StudyChanges(budget={"max_trials": new}), if_version=None)
        assert changed.state is (QUEUED if reopens else SUCCEEDED)

    @pytest.mark.parametrize("limit", [{"max_wallclock_s": 2000}, {"max_failed_trials": 10}])
    def test_another_limit_than_the_one_that_ended_a_study_does_not_reopen_it(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], limit: dict[str, int]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 2, "max_wallclock_s": 1000, "max_failed_trials": 1})
        driver = stores.drive(study)
        for _ in range(2):
            stores.succeed(driver, stores.begin(driver))
        stores.finish(driver)
        before = stores.studies.get(study.id)
        with pytest.raises(InvalidTransitionError, match=r"has tried 2 configurations, as many as budget\.max_trials"):
            lifecycle.patch(study.id, StudyChanges(budget=limit), if_version=None)
        assert stores.studies.get(study.id) == before
        changed = lifecycle.patch(study.id, StudyChanges(budget={**limit, "max_trials": 3}), if_version=None)
        assert changed.state is QUEUED

    def test_no_budget_reopens_a_study_that_has_tried_its_whole_space(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        space = {"rho": {"type": "categorical", "choices": [0.1, 0.2]}}
        study = create(search_space=space, replicates=ONE_SEED, budget={"max_trials": 2})
        driver = stores.drive(study)
        for _ in range(2):
            stores.succeed(driver, stores.begin(driver))
        stores.finish(driver)
        with pytest.raises(InvalidTransitionError, match="its whole search space, 2 configurations: no budget"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 9}), if_version=None)

    def test_an_enqueued_point_is_one_of_the_space_that_has_been_tried(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(search_space=TWO_POINTS, replicates=ONE_SEED, algorithm={"name": "grid"})
        lifecycle.enqueue(study.id, {"rho": 0.2})
        assert drive_to_its_end(stores, study) == 2
        before = stores.studies.get(study.id)
        assert before.reason is Reason.SPACE_EXHAUSTED
        with pytest.raises(InvalidTransitionError, match="its whole search space, 2 configurations: no budget"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_failed_trials": 50}), if_version=None)
        assert stores.studies.get(study.id) == before

    @pytest.mark.parametrize("algorithm", ["grid", "random", "qmc", "tpe"])
    @pytest.mark.parametrize("point", [{"rho": 0.1 + 0.2}, {"rho": 0.25}, {"rho": 0.3, "gone": 1}])
    def test_a_point_that_an_older_version_took_beside_the_space_leaves_all_of_it_to_try(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], algorithm: str, point: Any
    ) -> None:
        study = create(
            search_space={"rho": {"type": "float", "low": 0.1, "high": 0.4, "step": 0.1}},
            replicates=ONE_SEED,
            algorithm={"name": algorithm},
            budget={"max_trials": 4},
        )
        with stores.database.writing() as connection:
            insert_configuration(connection, study.id, point, point_key(point), [0], at=study.created_at, origin=USER)
        assert drive_to_its_end(stores, study, fails=lambda trial: trial.point == point) == 4
        changes = StudyChanges(budget={"max_trials": 5})
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 1
        points = [one.point for one in stores.studies.configurations(study.id) if one.point != point]
        assert sorted(one["rho"] for one in points) == [0.1, 0.2, 0.3, 0.4]

    def test_a_study_whose_every_trial_failed_has_nothing_left_to_try_either(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(search_space=TWO_POINTS, replicates=ONE_SEED, algorithm={"name": "grid"})
        assert drive_to_its_end(stores, study, fails=lambda _: True) == 2
        before = stores.studies.get(study.id)
        assert (before.reason, before.error) == (Reason.TOO_MANY_FAILURES, "every trial failed")
        with pytest.raises(InvalidTransitionError, match="its whole search space"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_failed_trials": 50}), if_version=None)
        assert stores.studies.get(study.id) == before

    CONFIRM = Confirm(top_k=1, seeds=(100, 101))

    def test_the_best_of_a_finished_study_is_confirmed_and_no_more_is_searched(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 3})
        drive_to_its_end(stores, study)
        changed = lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None)
        assert (changed.state, changed.spec["confirm"]) == (QUEUED, {"top_k": 1, "seeds": [100, 101]})
        assert drive_to_its_end(stores, study) == 2
        assert stores.studies.get(study.id).state is SUCCEEDED
        again = lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None)
        assert again.state is SUCCEEDED  # all of that is there

    def test_more_seeds_and_more_of_the_best_add_to_what_is_confirmed(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        confirm = {"top_k": 1, "seeds": [100, 101]}
        study = create(replicates=ONE_SEED, budget={"max_trials": 3}, confirm=confirm)
        assert drive_to_its_end(stores, study) == 5
        before = stores.studies.get(study.id)
        fewer = StudyChanges(confirm=Confirm(seeds=(101, 102)))
        with pytest.raises(InvalidTransitionError, match=r"on seed 100: confirm\.seeds must keep 100, 101, and may"):
            lifecycle.patch(study.id, fewer, if_version=None)
        assert stores.studies.get(study.id) == before
        more = StudyChanges(confirm=Confirm(top_k=2, seeds=(100, 101, 102)))
        assert lifecycle.patch(study.id, more, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 1 + 3

    def test_a_stopped_study_confirms_what_it_has_where_its_search_is_to_end_there(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 10})
        driver = stores.drive(study)
        stores.succeed(driver, stores.begin(driver))
        stores.propose(driver)
        lifecycle.stop(study.id)
        driver.finish(SUCCEEDED, Reason.USER, known=driver.snapshot().known)
        before = stores.studies.get(study.id)
        said = r"ended before its search was over: with budget\.max_trials at 2, in the same change"
        with pytest.raises(InvalidTransitionError, match=said):
            lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None)
        assert stores.studies.get(study.id) == before
        both = StudyChanges(budget={"max_trials": 2}, confirm=self.CONFIRM)
        assert lifecycle.patch(study.id, both, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 2
        assert [trial.state for trial in stores.studies.trials(study.id)] == [SUCCEEDED, CANCELLED, *[SUCCEEDED] * 2]

    def test_confirming_trials_that_a_cancel_cut_off_go_on(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 1}, confirm={"top_k": 1, "seeds": [100]})
        driver = stores.drive(study)
        trial = stores.begin(driver)
        stores.succeed(driver, trial)
        driver.add_confirming_trials(trial.configuration_id, [100])
        lifecycle.cancel(study.id)
        driver.finish(CANCELLED, Reason.USER, known=driver.snapshot().known)
        assert lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 2

    def test_the_same_confirm_once_more_runs_what_a_cancel_has_left(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 1})
        drive_to_its_end(stores, study)
        changes = StudyChanges(confirm=self.CONFIRM)
        lifecycle.patch(study.id, changes, if_version=None)
        lifecycle.cancel(study.id)
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 2

    def test_a_seed_that_no_trial_has_begun_with_can_be_taken_back(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 1})
        drive_to_its_end(stores, study)
        lifecycle.patch(study.id, StudyChanges(confirm=Confirm(seeds=(1000,))), if_version=None)
        driver = stores.drive(study)
        assert progress_of(driver).next_trial() is not None
        lifecycle.cancel(study.id)
        driver.finish(CANCELLED, Reason.USER, known=driver.snapshot().known)
        lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None)
        assert drive_to_its_end(stores, study) == 2
        trials = {trial.seed: trial.state for trial in stores.studies.trials(study.id)}
        assert trials == {0: SUCCEEDED, 1000: CANCELLED, 100: SUCCEEDED, 101: SUCCEEDED}

    def test_time_for_what_confirms_is_not_time_for_the_search(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 9, "max_wallclock_s": 1000})
        driver = stores.drive(study)
        stores.succeed(driver, stores.begin(driver))
        stores.propose(driver)
        driver.finish(SUCCEEDED, Reason.BUDGET_EXHAUSTED, known=driver.snapshot().known)
        with stores.database.writing() as connection:
            connection.execute(update(tables.studies).where(tables.studies.c.id == study.id).values(elapsed_s=1001.0))
        for budget, said in (({}, "has used up"), ({"max_wallclock_s": 2000}, r"max_trials at 2, in the same change")):
            with pytest.raises(InvalidTransitionError, match=said):
                lifecycle.patch(study.id, StudyChanges(budget=budget, confirm=self.CONFIRM), if_version=None)
        both = StudyChanges(budget={"max_wallclock_s": 2000, "max_trials": 2}, confirm=self.CONFIRM)
        assert lifecycle.patch(study.id, both, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 2
        assert [trial.state for trial in stores.studies.trials(study.id)] == [SUCCEEDED, CANCELLED, *[SUCCEEDED] * 2]

    def test_a_retry_of_what_confirms_leaves_what_the_user_had_stopped(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 10, "max_failed_trials": 0})
        driver = stores.drive(study)
        stores.succeed(driver, stores.begin(driver))
        stores.propose(driver)
        lifecycle.stop(study.id)
        driver.finish(SUCCEEDED, Reason.USER, known=driver.snapshot().known)
        both = StudyChanges(budget={"max_trials": 2}, confirm=self.CONFIRM)
        lifecycle.patch(study.id, both, if_version=None)
        assert drive_to_its_end(stores, study, fails=lambda trial: trial.seed == 100) == 1
        assert stores.studies.get(study.id).state is FAILED
        lifecycle.retry(study.id)
        assert drive_to_its_end(stores, study) == 2
        assert [trial.state for trial in stores.studies.trials(study.id)] == [SUCCEEDED, CANCELLED, *[SUCCEEDED] * 2]

    def test_a_study_with_too_many_failures_by_now_is_not_reopened_to_fail(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 3})
        drive_to_its_end(stores, study, fails=lambda trial: trial.trial_id.endswith("-1-0"))
        before = stores.studies.get(study.id)
        changes = StudyChanges(budget={"max_failed_trials": 0}, confirm=self.CONFIRM)
        with pytest.raises(InvalidTransitionError, match=r"has 1 failed trials, more than budget\.max_failed_trials"):
            lifecycle.patch(study.id, changes, if_version=None)
        assert stores.studies.get(study.id) == before

    def test_a_failed_study_whose_limit_is_raised_confirms_as_it_is_told(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 3, "max_failed_trials": 0})
        assert drive_to_its_end(stores, study, fails=lambda trial: trial.trial_id.endswith("-2-0")) == 2
        changes = StudyChanges(budget={"max_failed_trials": 1}, confirm=self.CONFIRM)
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 1 + 2

    def test_what_is_at_its_target_is_confirmed_later_too(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        objective = {"metric": "val_accuracy", "mode": "max", "target": 0.4}
        study = create(replicates=ONE_SEED, objective=objective)
        assert drive_to_its_end(stores, study) == 1
        assert lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 2
        assert stores.studies.get(study.id).reason is Reason.TARGET_REACHED

    def test_a_driver_at_work_is_not_told_what_to_confirm_but_the_next_one_is(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 1})
        driver = stores.drive(study)
        changes = StudyChanges(confirm=self.CONFIRM)
        with pytest.raises(InvalidTransitionError, match="is RUNNING: pause it, or wait for its end, before"):
            lifecycle.patch(study.id, changes, if_version=None)
        lifecycle.pause(study.id)
        with pytest.raises(InvalidTransitionError, match="is STOPPING: pause it, or wait"):
            lifecycle.patch(study.id, changes, if_version=None)
        driver.leave()
        assert lifecycle.patch(study.id, changes, if_version=None).state is PAUSED
        lifecycle.resume(study.id)
        assert drive_to_its_end(stores, study) == 3

    @pytest.mark.parametrize(
        ("confirm", "fails", "said"),
        [
            (Confirm(seeds=(0,)), False, "0 is in replicates"),
            (Confirm(top_k=1000, seeds=tuple(range(1, 12))), False, "10,000 trials that confirm"),
            (CONFIRM, True, "has failed: retry it before"),
        ],
    )
    def test_what_cannot_be_confirmed_changes_nothing(
        self,
        stores: Any,
        lifecycle: LifecycleStore,
        create: Callable[..., Study],
        confirm: Confirm,
        fails: bool,
        said: str,
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 1})
        drive_to_its_end(stores, study, fails=lambda _: fails)
        before = stores.studies.get(study.id)
        with pytest.raises((InvalidSpecError, InvalidTransitionError), match=said):
            lifecycle.patch(study.id, StudyChanges(confirm=confirm), if_version=None)
        assert stores.studies.get(study.id) == before

    def test_without_a_result_or_with_its_time_used_up_nothing_is_confirmed(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        empty = create()
        lifecycle.cancel(empty.id)
        with pytest.raises(InvalidTransitionError, match="has no configuration with a result"):
            lifecycle.patch(empty.id, StudyChanges(confirm=self.CONFIRM), if_version=None)
        study = create(replicates=ONE_SEED, budget={"max_trials": 1, "max_wallclock_s": 1000})
        drive_to_its_end(stores, study)
        with stores.database.writing() as connection:
            connection.execute(update(tables.studies).where(tables.studies.c.id == study.id).values(elapsed_s=1001.0))
        with pytest.raises(InvalidTransitionError, match=r"has used up budget\.max_wallclock_s: raise that too"):
            lifecycle.patch(study.id, StudyChanges(confirm=self.CONFIRM), if_version=None)
        longer = StudyChanges(budget={"max_wallclock_s": 2000}, confirm=self.CONFIRM)
        assert lifecycle.patch(study.id, longer, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 2

    @pytest.mark.parametrize("longer", [7200, None])
    def test_time_for_failed_trials_alone_is_for_a_retry_to_use(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], longer: float | None
    ) -> None:
        """The time was up as the last trial failed, so nothing was cut off that a raised limit would go on with."""
        study = create(
            search_space=TWO_POINTS,
            replicates=ONE_SEED,
            algorithm={"name": "grid"},
            budget={"max_wallclock_s": 3600},
        )
        assert drive_to_its_end(stores, study, fails=lambda trial: trial.point["rho"] == 0.2) == 2
        (bad,) = [trial for trial in stores.studies.trials(study.id) if trial.state is TrialState.FAILED]
        with stores.database.writing() as connection:
            connection.execute(update(tables.studies).values(elapsed_s=3601.0, reason=Reason.BUDGET_EXHAUSTED))
        with pytest.raises(InvalidTransitionError, match=r"used up budget\.max_wallclock_s: raise that first"):
            lifecycle.retry(study.id)
        longer_one = lifecycle.patch(study.id, StudyChanges(budget={"max_wallclock_s": longer}), if_version=None)
        assert (longer_one.state, longer_one.spec["budget"]["max_wallclock_s"]) == (SUCCEEDED, longer)
        assert stores.studies.trial(study.id, bad.id).state is TrialState.FAILED
        assert lifecycle.retry(study.id).state is QUEUED
        assert drive_to_its_end(stores, study) == 1
        assert stores.studies.get(study.id).reason is Reason.SPACE_EXHAUSTED

    @pytest.mark.parametrize("top_k", [1, 2])
    @pytest.mark.parametrize("failed_seed", [None, 0, 100])
    def test_a_study_whose_best_are_confirmed_has_nothing_left_to_try(
        self,
        stores: Any,
        lifecycle: LifecycleStore,
        create: Callable[..., Study],
        top_k: int,
        failed_seed: int | None,
    ) -> None:
        """A raised limit runs no confirming trial again that failed, and what failed in the search is not confirmed."""
        study = create(
            search_space=TWO_POINTS,
            replicates=ONE_SEED,
            algorithm={"name": "grid"},
            confirm={"top_k": top_k, "seeds": [100]},
        )
        first = {"rho": 0.1}
        drive_to_its_end(stores, study, fails=lambda trial: trial.seed == failed_seed and trial.point == first)
        before = stores.studies.get(study.id)
        with pytest.raises(InvalidTransitionError, match="its whole search space"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_failed_trials": 50}), if_version=None)
        assert stores.studies.get(study.id) == before

    def test_a_better_configuration_is_confirmed_although_as_many_as_wanted_are(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        """The time was up after the search had found it, beside one that an earlier round had confirmed."""
        study = create(
            algorithm={"name": "grid"},
            replicates=ONE_SEED,
            budget={"max_trials": 2, "max_wallclock_s": 1000},
            confirm={"top_k": 1, "seeds": [100]},
        )
        driver = stores.drive(study)
        worse, better = stores.begin(driver), stores.begin(driver)
        (confirming,) = driver.add_confirming_trials(worse.configuration_id, [100])
        for trial, accuracy in ((worse, 0.5), (better, 0.6), (confirming, 0.5)):
            started, ended = AttemptStarted(trial.id, 1, "n"), TrialEnded(trial.id, 1, TrialState.SUCCEEDED, accuracy)
            driver.record([started, ended])
        stores.finish(driver)
        changes = StudyChanges(budget={"max_wallclock_s": 2000})
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 1
        with pytest.raises(InvalidTransitionError, match=r"as many as budget\.max_trials"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_wallclock_s": 3000}), if_version=None)

    def test_a_confirming_trial_that_was_cut_off_goes_on(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(
            algorithm={"name": "grid"},
            replicates=ONE_SEED,
            budget={"max_trials": 1},
            confirm={"top_k": 1, "seeds": [100]},
        )
        driver = stores.drive(study)
        trial = stores.begin(driver)
        stores.succeed(driver, trial)
        driver.add_confirming_trials(trial.configuration_id, [100])
        stores.finish(driver)
        changes = StudyChanges(budget={"max_failed_trials": 50})
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 1

    def test_a_study_whose_time_was_up_before_its_best_were_confirmed_goes_on_with_more(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(
            replicates=ONE_SEED,
            budget={"max_trials": 2, "max_wallclock_s": 1000},
            confirm={"top_k": 1, "seeds": [100]},
        )
        driver = stores.drive(study)
        for _ in range(2):
            stores.succeed(driver, stores.begin(driver))
        stores.finish(driver)
        changes = StudyChanges(budget={"max_wallclock_s": 2000})
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED

    def test_a_study_whose_last_trial_was_one_failure_too_many_can_end_well_with_a_higher_limit(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 2, "max_failed_trials": 0})
        driver = stores.drive(study)
        stores.succeed(driver, stores.begin(driver))
        driver.record([TrialEnded(stores.begin(driver).id, 1, TrialState.FAILED, None, "no")])
        driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "1 failed", known=driver.snapshot().known)
        changes = StudyChanges(budget={"max_failed_trials": 1})
        assert lifecycle.patch(study.id, changes, if_version=None).state is QUEUED
        assert drive_to_its_end(stores, study) == 0
        assert stores.studies.get(study.id).state is SUCCEEDED

    def test_a_study_whose_only_trial_was_one_failure_too_many_ends_no_better_with_a_higher_limit(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(replicates=ONE_SEED, budget={"max_trials": 1, "max_failed_trials": 0})
        assert drive_to_its_end(stores, study, fails=lambda _: True) == 1
        with pytest.raises(InvalidTransitionError, match=r"as many as budget\.max_trials"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_failed_trials": 1}), if_version=None)

    @pytest.mark.parametrize("pausing", [False, True])
    def test_a_budget_raised_while_the_driver_ends_is_not_lost(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], pausing: bool
    ) -> None:
        study = create(budget={"max_trials": 4})
        driver = stores.drive(study)
        known = driver.snapshot().known
        lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 8}), if_version=None)
        if pausing:
            lifecycle.pause(study.id)
        assert stores.end(driver, known) is (PAUSED if pausing else QUEUED)

    def test_a_trial_that_trains_while_its_driver_ends_for_nothing_goes_on_with_the_next(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_wallclock_s": 60})
        driver = stores.drive(study)
        trial = stores.begin(driver)
        known = driver.snapshot().known
        lifecycle.patch(study.id, StudyChanges(budget={"max_wallclock_s": 600}), if_version=None)
        assert stores.end(driver, known) is QUEUED
        assert stores.studies.trial(study.id, trial.id).state is TrialState.PAUSED
        stores.drive(study).record([AttemptStarted(trial.id, 2, "node-1")])
        assert stores.studies.trial(study.id, trial.id).state is TrialState.RUNNING

    def test_a_raised_limit_and_a_stop_while_the_driver_ends_leave_what_has_begun_to_the_next(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_wallclock_s": 100})
        driver = stores.drive(study)
        trial = stores.begin(driver)
        known = driver.snapshot().known
        lifecycle.patch(study.id, StudyChanges(budget={"max_wallclock_s": 1_000}), if_version=None)
        lifecycle.stop(study.id)
        assert driver.finish(SUCCEEDED, Reason.BUDGET_EXHAUSTED, known=known) is QUEUED
        assert stores.studies.trial(study.id, trial.id).state is TrialState.PAUSED
        again = stores.drive(study)
        end(again, trial, TrialState.SUCCEEDED, 2)
        assert again.leave() is SUCCEEDED
        assert stores.studies.get(study.id).reason is Reason.USER

    def test_a_study_on_its_way_to_its_end_takes_labels_and_no_budget(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 4})
        stores.begin(stores.drive(study))
        lifecycle.stop(study.id)
        with pytest.raises(InvalidTransitionError, match="is being stopped: it cannot be given another budget"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 8}), if_version=None)
        changes = StudyChanges(budget={"max_trials": 4}, labels={"team": "a"})
        assert lifecycle.patch(study.id, changes, if_version=None).labels == {"team": "a"}

    def test_another_ones_wish_is_a_change_too(self, lifecycle: LifecycleStore, create: Callable[..., Study]) -> None:
        study = create(budget={"max_trials": 4})
        lifecycle.cancel(study.id)
        with pytest.raises(VersionConflictError):
            lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 8}), if_version=study.version)

    def test_a_study_that_reached_its_target_is_not_reopened(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 4})
        driver = stores.drive(study)
        driver.finish(SUCCEEDED, Reason.TARGET_REACHED, known=driver.snapshot().known)
        with pytest.raises(InvalidTransitionError, match=r"objective\.target"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 8}), if_version=None)

    @pytest.mark.parametrize("confirm", [{}, {"confirm": {"top_k": 1, "seeds": [100]}}], ids=["", "confirmed"])
    def test_a_study_at_its_target_is_not_reopened_whatever_has_ended_it(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], confirm: dict[str, Any]
    ) -> None:
        objective = {"metric": "val_accuracy", "mode": "max", "target": 0.5}
        study = create(objective=objective, budget={"max_trials": 4}, **confirm)
        driver = stores.drive(study)
        for trial in stores.propose(driver, seeds=[0, 1]):
            end(driver, trial, TrialState.SUCCEEDED)
        stores.propose(driver, seeds=[0, 1])
        lifecycle.stop(study.id)
        driver.finish(SUCCEEDED, Reason.USER, known=driver.snapshot().known)
        more = StudyChanges(budget={"max_trials": 8})
        if confirm:  # which the next driver adds
            assert lifecycle.patch(study.id, more, if_version=None).state is QUEUED
            return
        before = stores.studies.get(study.id)
        with pytest.raises(InvalidTransitionError, match=r"has reached objective\.target: a clone"):
            lifecycle.patch(study.id, more, if_version=None)
        assert stores.studies.get(study.id) == before

    @pytest.mark.parametrize("reason", [Reason.BUDGET_EXHAUSTED, Reason.TARGET_REACHED])
    def test_at_its_target_a_failed_trial_can_be_given_time_and_retried(
        self, timed_stores: Any, clock: Any, reason: Reason
    ) -> None:
        lifecycle = timed_stores.lifecycle
        objective = {"metric": "val_accuracy", "mode": "max", "target": 0.5}
        study = timed_stores.create(spec=spec_with(objective=objective, budget={"max_wallclock_s": 100}))
        driver = timed_stores.drive(study)
        good, bad = timed_stores.begin(driver), timed_stores.begin(driver)
        clock.advance(101)
        driver.record([TrialEnded(bad.id, 1, TrialState.FAILED, None, "why")])
        driver.record([TrialEnded(good.id, 1, TrialState.SUCCEEDED, 0.9)])
        driver.finish(SUCCEEDED, reason, known=driver.snapshot().known)
        with pytest.raises(InvalidTransitionError, match=r"used up budget\.max_wallclock_s: raise that first"):
            lifecycle.retry(study.id)
        more = StudyChanges(budget={"max_wallclock_s": 1_000})
        assert lifecycle.patch(study.id, more, if_version=None).state is SUCCEEDED
        assert lifecycle.retry(study.id).state is QUEUED
        again = timed_stores.drive(study)
        assert [trial.id for trial in again.snapshot().trials if trial.state is TrialState.PENDING] == [bad.id]

    def test_a_study_at_its_target_takes_no_other_point(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(objective={"metric": "val_accuracy", "mode": "max", "target": 0.5})
        lifecycle.enqueue(study.id, {"lambda": 0.5, "rho": 0.4})
        driver = stores.drive(study)
        for trial in stores.propose(driver, seeds=[0, 1]):
            end(driver, trial, TrialState.SUCCEEDED)
        before = stores.studies.get(study.id)
        with pytest.raises(InvalidTransitionError, match=r"reached objective\.target: it begins no other point"):
            lifecycle.enqueue(study.id, {"lambda": 0.5, "rho": 0.1})
        assert stores.studies.get(study.id) == before

    def test_at_its_target_what_had_begun_goes_on(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        objective = {"metric": "val_accuracy", "mode": "max", "target": 0.5}
        study = create(objective=objective, budget={"max_trials": 4, "max_failed_trials": 0})
        driver = stores.drive(study)
        for trial in stores.propose(driver, seeds=[0, 1]):
            end(driver, trial, TrialState.SUCCEEDED)
        begun, bad = stores.propose(driver, seeds=[0, 1])
        driver.record([AttemptStarted(begun.id, 1, None)])
        end(driver, bad, TrialState.FAILED)
        driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, known=driver.snapshot().known)
        changed = lifecycle.patch(study.id, StudyChanges(budget={"max_failed_trials": 1}), if_version=None)
        assert changed.state is QUEUED

    def test_what_is_reopened_is_archived_no_more_and_says_so(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 2})
        driver = stores.drive(study)
        driver.finish(SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
        lifecycle.archive(study.id)
        lifecycle.patch(study.id, StudyChanges(labels={"a": "b"}), if_version=None)
        lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 8}), if_version=None)
        assert stores.studies.get(study.id).archived_at is None
        changes = [event.data for event in stores.studies.events(study.id) if event.kind == "study.changed"]
        assert [change.get("archived") for change in changes] == [True, None, False]

    def test_a_limit_raised_beside_one_that_is_used_up_changes_nothing(self, timed_stores: Any, clock: Any) -> None:
        lifecycle = timed_stores.lifecycle
        study = timed_stores.create(spec=spec_with(budget={"max_trials": 4, "max_wallclock_s": 100}))
        driver = timed_stores.drive(study)
        clock.advance(100)
        driver.finish(SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
        before = timed_stores.studies.get(study.id)
        more = {"max_trials": 8}
        with pytest.raises(InvalidTransitionError, match=r"used up budget\.max_wallclock_s as well: raise that too"):
            lifecycle.patch(study.id, StudyChanges(budget=more), if_version=None)
        assert timed_stores.studies.get(study.id) == before
        both = StudyChanges(budget=more | {"max_wallclock_s": 200})
        assert lifecycle.patch(study.id, both, if_version=None).state is QUEUED

    def test_a_limit_that_was_lowered_is_set_back_and_reopens_nothing(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 4})
        driver = stores.drive(study)
        for _ in range(2):
            for trial in stores.propose(driver, seeds=[0, 1]):
                end(driver, trial, TrialState.SUCCEEDED)
        driver.finish(SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
        for most in (2, 4):
            changed = lifecycle.patch(study.id, StudyChanges(budget={"max_trials": most}), if_version=None)
            assert (changed.state, changed.spec["budget"]["max_trials"]) == (SUCCEEDED, most)
        assert lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 6}), if_version=None).state is QUEUED

    @pytest.mark.parametrize(
        ("limit", "lowered", "raised", "reason"),
        [
            ("max_failed_trials", 0, 3, Reason.MAX_TRIALS),
            ("max_wallclock_s", 50, 1_000, Reason.MAX_TRIALS),
            ("max_trials", 2, 4, Reason.TARGET_REACHED),
        ],
    )
    def test_so_is_any_limit_whatever_ended_the_study(
        self, timed_stores: Any, clock: Any, limit: str, lowered: float, raised: float, reason: Reason
    ) -> None:
        lifecycle, target = timed_stores.lifecycle, {"target": 0.4} if reason is Reason.TARGET_REACHED else {}
        budget = {"max_trials": 4, "max_wallclock_s": 2_000, "max_failed_trials": 5}
        objective = {"metric": "val_accuracy", "mode": "max", **target}
        study = timed_stores.create(spec=spec_with(budget=budget, objective=objective))
        driver = timed_stores.drive(study)
        good, bad = timed_stores.propose(driver, seeds=[0, 1]), timed_stores.propose(driver, seeds=[0, 1])
        for trial, state in zip([*good, *bad], [*[TrialState.SUCCEEDED] * 3, TrialState.FAILED], strict=True):
            end(driver, trial, state)
        clock.advance(100)
        driver.finish(SUCCEEDED, reason, known=driver.snapshot().known)
        for value in (lowered, raised):
            changed = lifecycle.patch(study.id, StudyChanges(budget={limit: value}), if_version=None)
            assert (changed.state, changed.spec["budget"][limit]) == (SUCCEEDED, value)

    def test_beside_a_limit_that_was_lowered_another_one_is_raised_for_something(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 4, "max_wallclock_s": 1_000})
        driver = stores.drive(study)
        for _ in range(2):
            for trial in stores.propose(driver, seeds=[0, 1]):
                end(driver, trial, TrialState.SUCCEEDED)
        driver.finish(SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
        lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 2}), if_version=None)
        with pytest.raises(InvalidTransitionError, match=r"as many as budget\.max_trials allows: raise that"):
            lifecycle.patch(study.id, StudyChanges(budget={"max_wallclock_s": 5_000}), if_version=None)

    def test_a_limit_raised_beside_too_many_failures_changes_nothing(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 4, "max_failed_trials": 0})
        driver = stores.drive(study)
        driver.record([TrialEnded(stores.begin(driver).id, 1, TrialState.FAILED, None, "why")])
        driver.finish(FAILED, Reason.TOO_MANY_FAILURES, known=driver.snapshot().known)
        more = {"max_trials": 8}
        with pytest.raises(InvalidTransitionError, match=r"1 failed trials, more than .* allows, 0: raise that too"):
            lifecycle.patch(study.id, StudyChanges(budget=more), if_version=None)
        both = StudyChanges(budget=more | {"max_failed_trials": 1})
        assert lifecycle.patch(study.id, both, if_version=None).state is QUEUED


class TestEnqueue:
    def test_a_driver_hears_of_the_point_and_reads_it(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        configuration, trials = lifecycle.enqueue(study.id, {"lambda": 1, "rho": 0.2})
        assert (configuration.number, configuration.origin, len(trials)) == (1, Origin.USER, 2)
        assert driver.heartbeat(60).last_configuration == 1
        assert driver.configurations_after(0) == [(configuration, trials)]

    def test_a_point_enqueued_while_the_driver_ends_is_not_lost(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 40})
        driver = stores.drive(study)
        known = driver.snapshot().known
        lifecycle.enqueue(study.id, {"lambda": 0.5, "rho": 0.2})
        assert stores.end(driver, known) is QUEUED

    def test_one_point_is_one_configuration(self, lifecycle: LifecycleStore, create: Callable[..., Study]) -> None:
        study = create()
        lifecycle.enqueue(study.id, {"lambda": 1, "rho": 0.2})
        with pytest.raises(ConfigurationExistsError):
            lifecycle.enqueue(study.id, {"rho": 0.2, "lambda": 1.0})

    @pytest.mark.parametrize("algorithm", ["grid", "random", "qmc", "tpe"])
    def test_a_point_within_rounding_is_the_one_that_the_search_has(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], algorithm: str
    ) -> None:
        study = create(
            search_space={"rho": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1}},
            replicates=ONE_SEED,
            algorithm={"name": algorithm},
            budget={"max_trials": 20},
        )
        configuration, _ = lifecycle.enqueue(study.id, {"rho": 0.1 + 0.2})
        assert configuration.point == {"rho": 0.3}
        assert [event.data["point"] for event in stores.studies.events(study.id) if "point" in event.data] == [
            {"rho": 0.3}
        ]
        for again in (0.3, 0.1 + 0.2):
            with pytest.raises(ConfigurationExistsError):
                lifecycle.enqueue(study.id, {"rho": again})
        assert drive_to_its_end(stores, study) == 5
        tried = stores.studies.configurations(study.id)
        assert (tried[0], sorted(one.point["rho"] for one in tried)) == (configuration, [0.1, 0.2, 0.3, 0.4, 0.5])

    def test_a_choice_is_written_as_the_space_has_it(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        batches = {"type": "categorical", "choices": [16, 32]}
        space = {"batch_size": batches, "epochs": {"type": "int", "low": 1, "high": 3}}
        study = create(search_space=space, train={"dataset": "digits", "model": "mlp"})
        lifecycle.enqueue(study.id, {"batch_size": 16.0, "epochs": 1})
        (configuration,) = stores.studies.configurations(study.id)
        assert repr(configuration.point) == repr({"batch_size": 16, "epochs": 1})
        with pytest.raises(InvalidPointError, match=r"epochs must be an integer from .*, got 2\.0"):
            lifecycle.enqueue(study.id, {"batch_size": 16, "epochs": 2.0})

    @pytest.mark.parametrize(
        "point", [{"lambda": 1}, {"lambda": 0.3, "rho": 0.2}, {"lambda": 1, "rho": 0.2, "x": 1}, {}]
    )
    def test_what_is_no_point_of_the_space_is_refused(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study], point: dict[str, Any]
    ) -> None:
        study = create()
        with pytest.raises(InvalidPointError):
            lifecycle.enqueue(study.id, point)
        assert stores.studies.configurations(study.id) == []

    def test_the_budget_counts_enqueued_points_too(
        self, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create(budget={"max_trials": 2})
        lifecycle.enqueue(study.id, {"lambda": 1, "rho": 0.2})
        with pytest.raises(InvalidTransitionError, match=r"budget\.max_trials"):
            lifecycle.enqueue(study.id, {"lambda": 0, "rho": 0.2})

    def test_a_larger_budget_is_named_only_where_it_lets_the_study_go_on(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        stopping, ended = create(), create()
        stores.begin(stores.drive(stopping))
        lifecycle.stop(stopping.id)
        lifecycle.cancel(ended.id)
        for study, said in ((stopping, "cannot be given another point$"), (ended, "before a larger budget.max_trials")):
            with pytest.raises(InvalidTransitionError, match=said):
                lifecycle.enqueue(study.id, {"lambda": 1, "rho": 0.2})


class TestArchiveAndDelete:
    def test_only_what_has_ended_is_archived_or_deleted(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        with pytest.raises(InvalidTransitionError):
            lifecycle.archive(study.id)
        with pytest.raises(InvalidTransitionError):
            lifecycle.delete(study.id, delete_runs=False)
        stores.finish(stores.drive(study))
        assert lifecycle.archive(study.id).archived_at is not None
        assert lifecycle.archive(study.id, archived=False).archived_at is None

    def test_what_is_archived_has_another_version_and_an_event_and_nothing_for_mlflow(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        stores.finish(stores.drive(study))
        before = stores.studies.get(study.id)
        stores.exporting.study_exported(study.id, revision=before.revision)
        for number, archived in enumerate((True, False), 1):
            after = lifecycle.archive(study.id, archived=archived)
            assert (after.version, after.revision) == (before.version + number, before.revision)
            (*_, event) = stores.studies.events(study.id)
            assert (event.kind, event.data) == ("study.changed", {"archived": archived})
        assert stores.exporting.behind() == []

    def test_runs_stay_only_where_they_show_the_study_as_it_is(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        kept, removed = create(), create()
        for study in (kept, removed):
            stores.finish(stores.drive(study))
        with pytest.raises(InvalidTransitionError, match=r"MLflow does not show study .*runs=delete"):
            lifecycle.delete(kept.id, delete_runs=False)
        stores.exporting.study_exported(kept.id, revision=stores.studies.get(kept.id).revision)
        lifecycle.delete(kept.id, delete_runs=False)
        lifecycle.delete(removed.id, delete_runs=True)
        with pytest.raises(StudyNotFoundError):
            stores.studies.get(kept.id)

    def test_nothing_of_a_deleted_study_stays_but_what_is_to_be_removed(
        self, stores: Any, lifecycle: LifecycleStore, create: Callable[..., Study]
    ) -> None:
        study = create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        stores.report(driver, trial, 1)
        stores.succeed(driver, trial)
        stores.finish(driver)
        lifecycle.delete(study.id, delete_runs=True)
        with stores.database.reading() as connection:
            for name in ("studies", "configurations", "trials", "attempts", "results", "events"):
                table = tables.metadata.tables[name]
                assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0, name
            (removal,) = connection.execute(select(tables.removals)).all()
        assert (removal.study_id, removal.delete_runs) == (study.id, True)


@pytest.mark.parametrize("verb", VERBS)
def test_anothers_study_is_not_there(stores: Any, create: Callable[..., Study], verb: str) -> None:
    study, of_bob = create(), LifecycleStore(stores.database, scope="bob")
    with pytest.raises(StudyNotFoundError):
        getattr(of_bob, verb)(study.id)
    with pytest.raises(StudyNotFoundError):
        of_bob.patch(study.id, StudyChanges(description="mine"), if_version=None)
    with pytest.raises(StudyNotFoundError):
        of_bob.enqueue(study.id, {"lambda": 1, "rho": 0.2})
    with pytest.raises(StudyNotFoundError):
        of_bob.delete(study.id, delete_runs=True)
    assert stores.studies.get(study.id) == study
