from __future__ import annotations

from typing import Any

import pytest

from service.study import TrialState
from service.tuning.trial_progress import TrialProgress


@pytest.fixture
def trial(recorded: Any) -> TrialProgress:
    return TrialProgress.of(recorded.add_configuration({"rho": 1.0}, "", (0,))[1][0])


def test_an_attempt_is_paid_for_once(trial: TrialProgress) -> None:
    trial.begin_attempt(1, now_s=100.0)
    assert trial.attempt_s(now_s=107.0) == 7.0
    assert trial.end_attempt(now_s=110.0) == 10.0
    assert trial.end_attempt(now_s=120.0) == 0.0
    assert trial.trained_s == 10.0


def test_a_trial_whose_worker_never_began_has_spent_nothing(trial: TrialProgress) -> None:
    assert trial.end_attempt(now_s=100.0) == 0.0
    assert not trial.has_begun


def test_a_trial_is_overdue_once_its_time_and_the_grace_are_over(trial: TrialProgress) -> None:
    trial.issue({"rho": 1.0}, max_trial_s=60)
    assert not trial.is_overdue(now_s=1_000.0, grace_s=5)  # nobody trains it yet
    trial.begin_attempt(1, now_s=100.0)
    assert not trial.is_overdue(now_s=165.0, grace_s=5)
    assert trial.is_overdue(now_s=166.0, grace_s=5)


def test_a_trial_without_a_limit_is_never_overdue(trial: TrialProgress) -> None:
    trial.issue({"rho": 1.0}, max_trial_s=None)
    trial.begin_attempt(1, now_s=0.0)
    assert not trial.is_overdue(now_s=1e9, grace_s=0)


def test_an_attempt_whose_time_is_used_up_is_issued_with_a_little(trial: TrialProgress) -> None:
    trial.begin_attempt(1, now_s=0.0)
    trial.end_attempt(now_s=90.0)
    seconds_left = trial.issue({"rho": 1.0}, max_trial_s=60).seconds_left
    assert seconds_left is not None
    assert 0 < seconds_left < 0.01


def test_a_lost_trial_waits_only_while_it_may_be_tried_again(trial: TrialProgress) -> None:
    trial.begin_attempt(1, now_s=0.0)
    assert trial.lose(max_retries=1)
    assert trial.state is TrialState.PENDING
    trial.begin_attempt(2, now_s=0.0)
    assert not trial.lose(max_retries=1)
