"""When a run is due."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.store.exporting import StudyBacklog, TrialBacklog
from service.study import Configuration, Origin, Study, StudyState, Trial, TrialState
from service.tracking.due import Due, due, has_parent_run

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number: int, state: TrialState, attempt: int = 1, run_id: str | None = None) -> TrialBacklog:
    return TrialBacklog(
        trial=Trial.model_construct(id=str(number), state=state, attempt=attempt, mlflow_run_id=run_id),
        configuration=Configuration(id="s-1", study_id="s", number=1, point={}, origin=Origin.SEARCH, created_at=NOW),
        revision=1,
        exported_epoch=0,
        results=[],
    )


def study(state: StudyState) -> Study:
    started_at = None if state is StudyState.QUEUED else NOW
    return Study.model_construct(id="s", state=state, started_at=started_at, mlflow_run_id=None)


def decide(
    state: StudyState,
    *trials: TrialBacklog,
    age_s: float | None = None,
    ages_s: dict[str, float] | None = None,
    max_trials: int = 10,
) -> Due:
    return due(
        StudyBacklog(study=study(state), revision=1, trials=list(trials)),
        max_trials=max_trials,
        study_age_s=age_s,
        study_interval_s=4.0,
        trial_ages_s=ages_s or {},
        min_interval_s=2.0,
    )


def test_what_is_new_is_due_at_once() -> None:
    now = decide(StudyState.RUNNING, trial(1, TrialState.RUNNING))
    assert (len(now.trials), now.study, now.catches_up) == (1, True, True)


def test_a_running_trial_waits_for_its_interval() -> None:
    running = trial(1, TrialState.RUNNING)
    assert decide(StudyState.RUNNING, running, ages_s={"1": 1.9}).trials == []
    assert decide(StudyState.RUNNING, running, ages_s={"1": 2.0}).trials == [running]


@pytest.mark.parametrize("state", [state for state in TrialState if state.is_final])
def test_a_trial_that_has_ended_is_due_at_once(state: TrialState) -> None:
    assert len(decide(StudyState.RUNNING, trial(1, state), ages_s={"1": 0.0}).trials) == 1


def test_a_trial_that_waits_for_its_next_attempt_keeps_its_run() -> None:
    assert len(decide(StudyState.RUNNING, trial(1, TrialState.PENDING, attempt=1)).trials) == 1


def test_a_trial_that_never_started_has_no_run_unless_it_failed() -> None:
    waiting, cancelled = trial(1, TrialState.PENDING, attempt=0), trial(2, TrialState.CANCELLED, attempt=0)
    failed = trial(3, TrialState.FAILED, attempt=0)
    retried = trial(4, TrialState.CANCELLED, attempt=0, run_id="that of the failure")
    now = decide(StudyState.RUNNING, waiting, cancelled, failed, retried)
    assert (now.unseen, now.trials) == ([waiting, cancelled], [failed, retried])


def test_mlflow_has_not_caught_up_while_a_trial_waits_for_its_interval() -> None:
    now = decide(StudyState.RUNNING, trial(1, TrialState.RUNNING), age_s=5.0, ages_s={"1": 1.0})
    assert (now.study, now.catches_up) == (True, False)


def test_the_parent_run_of_a_running_study_waits_for_its_interval() -> None:
    assert not decide(StudyState.RUNNING, age_s=3.9).study
    assert decide(StudyState.RUNNING, age_s=4.0).study


def test_the_parent_run_of_a_study_that_has_ended_is_written_after_all_trials() -> None:
    trials = [trial(number, TrialState.SUCCEEDED) for number in range(3)]
    first = decide(StudyState.SUCCEEDED, *trials, age_s=0.0, max_trials=3)
    assert (len(first.trials), first.study, first.catches_up) == (3, False, False)
    last = decide(StudyState.SUCCEEDED, trials[0], age_s=0.0, max_trials=3)
    assert (len(last.trials), last.study, last.catches_up) == (1, True, True)


@pytest.mark.parametrize(("state", "shown"), [(StudyState.QUEUED, False), (StudyState.RUNNING, True)])
def test_a_study_has_a_run_once_it_has_started(state: StudyState, shown: bool) -> None:
    assert has_parent_run(study(state)) is shown
