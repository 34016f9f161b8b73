"""Means and spreads, against exact fractions, up to the largest and the smallest floats."""

from __future__ import annotations

import math
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.analysis.moments import exponent_of, mean_and_std, mean_of, scaled, unscaled

LARGEST = sys.float_info.max
digits = st.lists(st.integers(-1_000, 1_000), min_size=2, max_size=12)


@given(digits, st.integers(-1_000, 1_013))
def test_a_mean_and_a_std_are_right_at_every_size(integers: list[int], exponent: int) -> None:
    values = [math.ldexp(integer, exponent) for integer in integers]
    mean, std = mean_and_std(values)
    assert mean == mean_of(values)
    assert mean == pytest.approx(statistics.mean(values), rel=1e-14, abs=0)
    expected = unscaled(statistics.stdev(integers), exponent)
    assert (std is None) is (expected is None)
    assert std == pytest.approx(expected, rel=1e-12, abs=0)


@given(st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=12))
def test_a_mean_lies_between_its_values(values: list[float]) -> None:
    assert min(values) <= mean_of(values) <= max(values)


@given(st.lists(st.floats(-1e30, 1e30).filter(lambda value: value == 0 or abs(value) > 1e-30), min_size=1))
def test_ordinary_values_stay_as_they_are(values: list[float]) -> None:
    assert scaled(values, exponent_of(values)) == values


def test_a_spread_that_no_float_can_hold_is_none() -> None:
    # √2 · 1.8e308
    assert mean_and_std([LARGEST, -LARGEST]) == (0.0, None)
    assert unscaled(1.0, 1_024) is None


def test_one_value_is_its_own_mean_and_has_no_spread() -> None:
    assert mean_and_std([LARGEST]) == (LARGEST, None)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_of([])
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_std([])
