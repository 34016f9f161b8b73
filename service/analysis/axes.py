"""Where the values of a parameter lie on an axis, and what stands beside it; the same for every plotting library."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces import scalar_key
from service.analysis.labelling import value_label
from service.study import Scalar

_LOG_RATIO = 8
"""A range whose ends are closer than this is linear."""

_LARGEST = sys.float_info.max / 16
"""No axis goes beyond it: what draws one multiplies its length."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`. ticks: None leaves them to the plotting library."""

    positions: dict[str, float]
    low: float
    high: float
    is_log: bool
    ticks: list[float] | None
    labels: list[str]

    def position(self, value: Scalar) -> float:
        """Where the value lies."""
        return self.positions[scalar_key(value)]


def grid_axis(values: Sequence[Scalar]) -> Axis:
    """Every value in turn, at 0, 1, 2, …"""
    count = max(1, len(values))
    positions = {scalar_key(value): float(index) for index, value in enumerate(values)}
    labels = [value_label(value) for value in values]
    return Axis(positions, -0.5, count - 0.5, False, [float(index) for index in range(len(values))], labels)


def scale_axis(values: Sequence[Scalar], *, is_log: bool | None = None) -> Axis:
    """Numbers at their places; with words among them every value in turn.

    is_log: whether their logarithms are what is evenly spread; None where nobody has said so, and they show it. A short
    range is linear in any case.
    """
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values) or not numbers:
        return grid_axis(values)
    positions = {scalar_key(value): number for value, number in zip(values, numbers, strict=True)}
    low, high = min(numbers), max(numbers)
    is_wide = low > 0 and high / low >= _LOG_RATIO
    if is_wide and (_lie_logarithmically(numbers) if is_log is None else is_log):
        margin = high**0.05 / low**0.05
        low, high = max(low / margin, sys.float_info.min), min(high * margin, _LARGEST)
        ticks = _log_ticks(low, high)
        return Axis(positions, low, high, True, ticks, [f"{tick:g}" for tick in ticks])
    margin = 0.05 * (high - low) or abs(low) * 0.05 or 1.0
    low, high = max(low - margin, -_LARGEST), min(high + margin, _LARGEST)
    return Axis(positions, low, high, False, None, [])


def _lie_logarithmically(numbers: Sequence[float]) -> bool:
    """Whether the middle of the numbers, all above 0, is nearer to the geometric than to the arithmetic mean."""
    low, high, middle = min(numbers), max(numbers), statistics.median(numbers)
    return middle < math.sqrt(math.sqrt(low * high) * (low + high) / 2)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]
