"""Which trials count in a configuration's result, when it is whole, and when it has reached the target.

One rule for the driver, the store and whoever reads, so that they never disagree on why a study ends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Protocol

from service.spec_sections import Mode
from service.study import TrialState


class Outcome(Protocol):
    """What a trial has come to, wherever it is kept."""

    @property
    def state(self) -> str: ...

    @property
    def objective(self) -> float | None: ...


def counted_value(trial: Outcome) -> float | None:
    """What the trial adds to its configuration's mean: a finite objective, and only where it succeeded; else None.

    The last value of one that was stopped early is that of another epoch.
    """
    if trial.state != TrialState.SUCCEEDED or trial.objective is None or not math.isfinite(trial.objective):
        return None
    return trial.objective


def counted(trials: Iterable[Outcome]) -> list[float]:
    """The values of those trials that count, in the same order."""
    return [value for trial in trials if (value := counted_value(trial)) is not None]


def is_whole(trials: Collection[Outcome]) -> bool:
    """Whether there are trials, and each of them counts, so that nothing is missing in their mean."""
    return bool(trials) and len(counted(trials)) == len(trials)


def reaches(mean: float, target: float | None, mode: Mode) -> bool:
    """Whether the mean of a whole configuration is the target or better; never where there is no target."""
    if target is None:
        return False
    return mean >= target if mode == "max" else mean <= target
