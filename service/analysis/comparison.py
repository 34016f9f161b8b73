"""Whether two configurations differ: t tests over seeds, and Holm's correction for several of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy.special import stdtr

from service.analysis.aggregation import t_quantile
from service.analysis.moments import exponent_of, mean_of, scaled, sum_of_squares, unscaled

NOT_ENOUGH = "not enough replicates"
NO_SPREAD_OF_DIFFERENCES = "the differences do not vary: {n} pairs are no basis for a test"
NO_SPREAD_OF_VALUES = "the values of neither side vary beyond rounding: {n} replicates are no basis for a test"
_ROUNDING = 1e-12
"""Relative size below which a spread or a difference is rounding and nothing else."""


class Comparison(BaseModel):
    """The difference a − b of two configurations or studies; what is beyond the largest float is null."""

    model_config = ConfigDict(frozen=True)

    difference: float | None = Field(description="mean of a − mean of b over what was compared")
    low: float | None = Field(
        description="lower end of the 95 % interval of the difference, which is not corrected for several comparisons; "
        "null without a test"
    )
    high: float | None = Field(
        description="upper end of the 95 % interval of the difference, which is not corrected for several comparisons; "
        "null without a test"
    )
    p_value: float | None = Field(description="two-sided, not corrected for several comparisons; null without a test")
    test: Literal["paired t", "Welch t"] | None = Field(
        description="null where there was nothing to test: too few values, or none of the spread that tells chance"
    )
    n: int = Field(description="pairs where seeds were compared in pairs, else the replicates of both sides together")
    n_a: int = Field(description="values of a that were compared")
    n_b: int = Field(description="values of b that were compared")
    note: str | None = Field(None, description="why there is no test, and which values are missing in it")


def compare(a: Mapping[int, float], b: Mapping[int, float]) -> Comparison:
    """Compares values by seed: paired over shared seeds where there are at least two, Welch's test otherwise.

    Pairing takes away what the seed itself contributes, such as a lucky initialisation. A paired comparison leaves out
    the seeds that only one side has.
    """
    exponent = exponent_of((*a.values(), *b.values()))
    small_a, small_b = (dict(zip(side, scaled(side.values(), exponent), strict=True)) for side in (a, b))
    found = _compared(small_a, small_b)
    lengths = {"difference": found.difference, "low": found.low, "high": found.high}
    return found.model_copy(
        update={name: None if value is None else unscaled(value, exponent) for name, value in lengths.items()}
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction, in the order given; comparisons without a test stay None and do not count.

    With k comparisons the smallest p is multiplied by k, the next by k − 1, …; none gets smaller than the one before.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for position, (p, index) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - position) * p))
        adjusted[index] = running
    return adjusted


def _compared(a: Mapping[int, float], b: Mapping[int, float]) -> Comparison:
    """The same of values that are not too large for their squares."""
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2:
        return _paired([a[seed] for seed in shared], [b[seed] for seed in shared])
    return _welch(list(a.values()), list(b.values()))


def _paired(a: Sequence[float], b: Sequence[float]) -> Comparison:
    n = len(a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = mean_of(differences)
    variance = sum_of_squares(differences, mean) / (n - 1)
    return _judged(mean, math.sqrt(variance / n), n - 1, test="paired t", ns=(n, n), scale=_scale(a, b))


def _welch(a: Sequence[float], b: Sequence[float]) -> Comparison:
    n, ns = len(a) + len(b), (len(a), len(b))
    if not a or not b:
        return _untested(None, n=n, ns=ns, note=NOT_ENOUGH)
    mean_a, mean_b = mean_of(a), mean_of(b)
    difference = mean_a - mean_b
    if len(a) < 2 or len(b) < 2:
        return _untested(difference, n=n, ns=ns, note=NOT_ENOUGH)
    share_a = sum_of_squares(a, mean_a) / (len(a) - 1) / len(a)
    share_b = sum_of_squares(b, mean_b) / (len(b) - 1) / len(b)
    variance = share_a + share_b
    spread = share_a**2 / (len(a) - 1) + share_b**2 / (len(b) - 1)
    degrees_of_freedom = variance**2 / spread if spread > 0 else n - 2  # Welch–Satterthwaite
    return _judged(difference, math.sqrt(variance), degrees_of_freedom, test="Welch t", ns=ns, scale=_scale(a, b))


def _untested(difference: float | None, *, n: int, ns: tuple[int, int], note: str) -> Comparison:
    """ns: how many values each side has."""
    return Comparison(
        difference=difference, low=None, high=None, p_value=None, test=None, n=n, n_a=ns[0], n_b=ns[1], note=note
    )


def _judged(
    difference: float,
    standard_error: float,
    degrees_of_freedom: float,
    *,
    test: Literal["paired t", "Welch t"],
    ns: tuple[int, int],
    scale: float,
) -> Comparison:
    """ns: how many values each side has. scale: the largest of them.

    Without any spread there is no test: t would be infinite after two equal differences, and the two say no such thing.
    """
    is_paired = test == "paired t"
    n = ns[0] if is_paired else sum(ns)
    if standard_error <= _ROUNDING * scale:
        same = abs(difference) <= _ROUNDING * scale
        note = NO_SPREAD_OF_DIFFERENCES if is_paired else NO_SPREAD_OF_VALUES
        return _untested(0.0 if same else difference, n=n, ns=ns, note=note.format(n=n))
    p_value = 2 * float(stdtr(degrees_of_freedom, -abs(difference) / standard_error))
    margin = t_quantile(degrees_of_freedom) * standard_error
    low, high = difference - margin, difference + margin
    return Comparison(difference=difference, low=low, high=high, p_value=p_value, test=test, n=n, n_a=ns[0], n_b=ns[1])


def _scale(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(value) for value in (*a, *b))
