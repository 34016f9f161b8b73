from __future__ import annotations

import pytest

from service.errors import InvalidTransitionError
from service.study import StudyState, TrialState, check_study_transition, check_trial_transition

ENDED = {StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED}
STUDY_PATHS = {
    StudyState.QUEUED: {StudyState.RUNNING, StudyState.STOPPING, StudyState.PAUSED, *ENDED},
    StudyState.RUNNING: {StudyState.QUEUED, StudyState.STOPPING, *ENDED},
    StudyState.STOPPING: {StudyState.QUEUED, StudyState.RUNNING, StudyState.PAUSED, *ENDED},
    StudyState.PAUSED: {StudyState.QUEUED, StudyState.SUCCEEDED, StudyState.CANCELLED},
    **{ended: {StudyState.QUEUED} for ended in ENDED},
}


@pytest.mark.parametrize("old", StudyState)
@pytest.mark.parametrize("new", StudyState)
def test_a_study_goes_only_where_it_can(old: StudyState, new: StudyState) -> None:
    if new in STUDY_PATHS.get(old, set()):
        check_study_transition(old, new)
        return
    with pytest.raises(InvalidTransitionError, match=f"a study that is {old} cannot become {new}"):
        check_study_transition(old, new)


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_study_that_has_ended_can_only_be_queued_again(state: StudyState) -> None:
    check_study_transition(state, StudyState.QUEUED)
    for new in set(StudyState) - {StudyState.QUEUED}:
        with pytest.raises(InvalidTransitionError):
            check_study_transition(state, new)


def test_the_final_states_are_these() -> None:
    assert {state for state in StudyState if state.is_final} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert {state for state in TrialState if not state.is_final} == {"PENDING", "RUNNING", "PAUSED"}


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
