from __future__ import annotations

import pytest

from service.errors import InvalidTransitionError
from service.study import StudyState, TrialState, check_study_transition, check_trial_transition

STUDY_PATHS = {
    StudyState.QUEUED: {StudyState.RUNNING, StudyState.CANCELLED, StudyState.FAILED},
    StudyState.RUNNING: set(StudyState) - {StudyState.RUNNING},
    StudyState.STOPPING: {StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED},
}


@pytest.mark.parametrize("old", StudyState)
@pytest.mark.parametrize("new", StudyState)
def test_a_study_goes_only_where_it_can(old: StudyState, new: StudyState) -> None:
    if new in STUDY_PATHS.get(old, set()):
        check_study_transition(old, new)
        return
    with pytest.raises(InvalidTransitionError, match=f"a study that is {old} cannot become {new}"):
        check_study_transition(old, new)


@pytest.mark.parametrize("state", [state for state in StudyState if state.is_final])
def test_a_study_that_has_ended_stays_as_it_is(state: StudyState) -> None:
    for new in StudyState:
        with pytest.raises(InvalidTransitionError):
            check_study_transition(state, new)


def test_the_final_states_are_these() -> None:
    assert {state for state in StudyState if state.is_final} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert {state for state in TrialState if not state.is_final} == {"PENDING", "RUNNING"}


@pytest.mark.parametrize("new", [state for state in TrialState if state.is_final])
def test_a_running_trial_may_end_in_any_way(new: TrialState) -> None:
    check_trial_transition(TrialState.RUNNING, new)
    with pytest.raises(InvalidTransitionError, match=f"a trial that is {new} cannot become RUNNING"):
        check_trial_transition(new, TrialState.RUNNING)


def test_a_lost_trial_waits_again_and_a_waiting_one_cannot_succeed() -> None:
    check_trial_transition(TrialState.RUNNING, TrialState.PENDING)
    check_trial_transition(TrialState.PENDING, TrialState.RUNNING)
    with pytest.raises(InvalidTransitionError):
        check_trial_transition(TrialState.PENDING, TrialState.SUCCEEDED)
