"""Means and spreads of finite numbers of any size, such as the losses of a training that diverged.

The sum of floats may be beyond the largest float, and their squares are from 1e154 on. Such numbers are scaled by a
power of two first, which takes no digits of theirs; a result is None where no float is large enough for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_ORDINARY = 200
"""Numbers between 2⁻²⁰⁰ and 2²⁰⁰ stay as they are: even their fourth powers, which Welch's test sums, are floats."""


def exponent_of(values: Iterable[float]) -> int:
    """The power of two by which to scale finite values; 0 for ordinary ones."""
    exponent = math.frexp(max(map(abs, values), default=0.0))[1]
    return exponent if abs(exponent) > _ORDINARY else 0


def scaled(values: Iterable[float], exponent: int) -> list[float]:
    """The values divided by two to the power of the exponent."""
    return [math.ldexp(value, -exponent) for value in values]


def unscaled(value: float, exponent: int) -> float | None:
    """The value times two to the power of the exponent; None where no float is that large."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return None


def mean_of(values: Sequence[float]) -> float:
    """The mean, never above the largest value or below the smallest, as the rounded sum divided by n may be.

    Raises ValueError where there are no values.
    """
    exponent = exponent_of(values)
    return math.ldexp(_mean(scaled(values, exponent)), exponent)


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of the sample: None for one value, and where no float is that large.

    Raises ValueError where there are no values.
    """
    exponent = exponent_of(values)
    small = scaled(values, exponent)
    mean = _mean(small)
    if len(small) == 1:
        return math.ldexp(mean, exponent), None
    std = math.sqrt(sum_of_squares(small, mean) / (len(small) - 1))
    return math.ldexp(mean, exponent), unscaled(std, exponent)


def sum_of_squares(values: Iterable[float], centre: float) -> float:
    """Σ (value − centre)² of scaled values."""
    return math.fsum((value - centre) ** 2 for value in values)


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("a mean needs at least one value")
    return min(max(math.fsum(values) / len(values), min(values)), max(values))
