from __future__ import annotations

import pytest

from service.spec_sections import Budget
from service.study import Reason, StudyState
from service.tuning.decisions import Ending
from service.tuning.endings import TrialCounts, ending_over_budget, natural_ending, settled

NO_TIME = {"wallclock_s": 0.0, "gpu_hours": 0.0}


def test_a_budget_that_is_just_used_up_is_not_gone_beyond() -> None:
    budget = Budget(max_failed_trials=2, max_wallclock_s=60, max_gpu_hours=1)
    assert ending_over_budget(budget, TrialCounts(failed=2), wallclock_s=60.0, gpu_hours=1.0) is None


def test_a_study_without_limits_goes_on() -> None:
    counts = TrialCounts(failed=1_000)
    assert ending_over_budget(Budget(max_failed_trials=None), counts, wallclock_s=1e9, gpu_hours=1e9) is None


def test_too_many_failures_fail_a_study_that_has_found_something_too() -> None:
    ending = ending_over_budget(Budget(max_failed_trials=0), TrialCounts(succeeded=5, failed=1), **NO_TIME)
    assert ending == Ending(
        StudyState.FAILED, Reason.TOO_MANY_FAILURES, "1 trial failed, and budget.max_failed_trials is 0"
    )


def test_a_trial_that_succeeds_after_the_decision_mends_an_end_out_of_time() -> None:
    decided = Ending(StudyState.FAILED, Reason.BUDGET_EXHAUSTED, "no trial succeeded within budget.max_gpu_hours of 1")
    assert settled(decided, TrialCounts()) == decided
    assert settled(decided, TrialCounts(succeeded=1)) == Ending(StudyState.SUCCEEDED, Reason.BUDGET_EXHAUSTED)


def test_a_trial_that_succeeds_after_the_decision_mends_no_other_end() -> None:
    decided = Ending(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "every trial failed")
    assert settled(decided, TrialCounts(succeeded=1)) == decided


@pytest.mark.parametrize("is_exhausted", [True, False])
def test_a_study_whose_work_is_done_succeeds_with_one_success_or_without_any_trial(is_exhausted: bool) -> None:
    reason = Reason.SPACE_EXHAUSTED if is_exhausted else Reason.MAX_TRIALS
    for counts in (TrialCounts(), TrialCounts(total=3, succeeded=1, failed=2)):
        ending = natural_ending(counts, has_reached_target=False, is_exhausted=is_exhausted)
        assert ending == Ending(StudyState.SUCCEEDED, reason)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (TrialCounts(total=1, diverged=1), "no trial succeeded: the only one diverged, so lr or rho is too large"),
        (TrialCounts(total=1), "no trial succeeded: the only one was stopped early"),
        (TrialCounts(total=2), "no trial succeeded: all 2 were stopped early"),
        (TrialCounts(total=2, diverged=1), "no trial succeeded: of 2, 1 diverged, the others were stopped early"),
    ],
)
def test_a_study_without_a_success_says_what_became_of_its_trials(counts: TrialCounts, said: str) -> None:
    assert natural_ending(counts, has_reached_target=False, is_exhausted=False).error == said
