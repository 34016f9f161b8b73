"""Which trials count, what is whole, and what reaches a target."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from service.analysis.counting import counted, is_whole, reaches
from service.study import Trial, TrialState
from tests.service.analysis.records import configuration, trial

SUCCEEDED, EARLY, FAILED, RUNNING = (
    TrialState.SUCCEEDED,
    TrialState.EARLY_STOPPED,
    TrialState.FAILED,
    TrialState.RUNNING,
)


def trials(*outcomes: tuple[TrialState, float | None]) -> list[Trial]:
    return [trial(configuration(1), seed, value, state) for seed, (state, value) in enumerate(outcomes)]


def test_what_succeeded_with_a_finite_objective_counts() -> None:
    ended = trials((SUCCEEDED, 0.5), (EARLY, 0.4), (SUCCEEDED, None), (SUCCEEDED, 1e308), (RUNNING, 0.3))
    assert counted(ended) == [0.5, 1e308]


def test_what_counts_with_every_seed_is_whole() -> None:
    assert is_whole(trials((SUCCEEDED, 0.5), (SUCCEEDED, 0.0)))


@pytest.mark.parametrize("other", [(SUCCEEDED, None), (SUCCEEDED, math.inf), (EARLY, 0.5), (FAILED, None)])
def test_what_lacks_a_seed_is_not_whole(other: tuple[TrialState, float | None]) -> None:
    assert not is_whole(trials((SUCCEEDED, 0.5), other))


def test_nothing_is_not_whole() -> None:
    assert not is_whole([])


@pytest.mark.parametrize(("mode", "worse", "better"), [("max", 0.49, 0.51), ("min", 0.51, 0.49)])
def test_a_target_is_reached_by_itself_and_by_what_is_better(
    mode: Literal["max", "min"], worse: float, better: float
) -> None:
    assert [reaches(mean, 0.5, mode) for mean in (worse, 0.5, better)] == [False, True, True]
    assert not reaches(better, None, mode)
