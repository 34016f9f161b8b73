"""What is said of trials without a value."""

from __future__ import annotations

import pytest

from service.analysis.aggregation import aggregate
from service.analysis.labelling import lost_confirmation, missing_seeds
from service.study import Purpose, TrialState
from tests.service.analysis.records import configuration, trial

SUCCEEDED, FAILED, CANCELLED = TrialState.SUCCEEDED, TrialState.FAILED, TrialState.CANCELLED
PENDING, RUNNING, STOPPED = TrialState.PENDING, TrialState.RUNNING, TrialState.EARLY_STOPPED


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ((FAILED, FAILED, FAILED), "3 of 3 trials failed"),
        ((SUCCEEDED, FAILED, SUCCEEDED), "1 of 3 trials failed"),
        ((RUNNING, FAILED, PENDING), "1 of 3 trials failed"),
        ((SUCCEEDED, STOPPED, STOPPED), "2 of 3 trials diverged"),
        ((SUCCEEDED, STOPPED, FAILED), "2 of 3 trials ended without a value"),
        ((SUCCEEDED, FAILED, CANCELLED), "2 of 3 trials ended without a value"),
        ((SUCCEEDED, RUNNING, PENDING), None),
        ((SUCCEEDED, SUCCEEDED), None),
        ((), None),
    ],
)
def test_a_confirmation_says_how_many_of_its_trials_ended_without_a_value(
    states: tuple[TrialState, ...], said: str | None
) -> None:
    of = configuration(1)
    trials = [trial(of, 0, 0.5), trial(of, 1, None, FAILED)]
    trials += [
        trial(of, seed, 0.5 if state is SUCCEEDED else None, state, purpose=Purpose.CONFIRM)
        for seed, state in enumerate(states, 100)
    ]
    assert lost_confirmation(aggregate([of], trials)[0]) == said


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({}, None),
        ({2: FAILED}, "no value for seed 2: its trial failed"),
        ({5: FAILED, 2: FAILED, 3: FAILED}, "no value for seeds 2, 3 and 5: their trials failed"),
        (
            {1: FAILED, 2: RUNNING, 3: PENDING, 4: SUCCEEDED},
            (
                "no value for seed 1: its trial failed, no value for seeds 2 and 3: their trials did not end yet, "
                "no value for seed 4: its trial reported none"
            ),
        ),
    ],
)
def test_seeds_without_a_value_are_named_with_the_reason(missing: dict[int, TrialState], said: str | None) -> None:
    assert missing_seeds(missing) == said


def test_a_confirming_trial_that_was_stopped_diverged() -> None:
    assert missing_seeds({10: STOPPED}) == "no value for seed 10: its trial stopped early"
    assert missing_seeds({10: STOPPED}, confirms=True) == "no value for seed 10: its trial diverged"
    assert missing_seeds({10: CANCELLED}, confirms=True) == "no value for seed 10: its trial got cancelled"
