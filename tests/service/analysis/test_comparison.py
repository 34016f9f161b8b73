"""Comparisons, against scipy's t tests and against published numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from service.analysis.comparison import (
    NO_SPREAD_OF_DIFFERENCES,
    NO_SPREAD_OF_VALUES,
    NOT_ENOUGH,
    Comparison,
    compare,
    holm,
)

values = st.lists(st.floats(0, 1).map(lambda value: round(value, 4)), min_size=2, max_size=8)


def by_seed(numbers: list[float], first: int = 0) -> dict[int, float]:
    return dict(enumerate(numbers, first))


@given(values, values)
def test_shared_seeds_are_compared_in_pairs(first: list[float], second: list[float]) -> None:
    n = min(len(first), len(second))
    differences = [a - b for a, b in zip(first, second, strict=False)]
    assume(max(differences) - min(differences) > 1e-3)
    comparison = compare(by_seed(first), by_seed(second))
    expected = stats.ttest_rel(first[:n], second[:n])
    interval = expected.confidence_interval(0.95)
    assert (comparison.test, comparison.n) == ("paired t", n)
    assert comparison.difference == pytest.approx(sum(differences) / n, abs=1e-12)
    assert comparison.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(values, values)
def test_other_seeds_are_compared_by_welchs_test(first: list[float], second: list[float]) -> None:
    assume(max(first) - min(first) > 1e-3 and max(second) - min(second) > 1e-3)
    comparison = compare(by_seed(first), by_seed(second, 100))
    expected = stats.ttest_ind(first, second, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (comparison.test, comparison.n) == ("Welch t", len(first) + len(second))
    assert comparison.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_welchs_test_takes_a_side_that_does_not_vary() -> None:
    # difference −½, variance ½/2 with one degree of freedom: t = −1, p = ½
    comparison = compare({0: 0.0, 1: 1.0}, {2: 1.0, 3: 1.0})
    assert (comparison.difference, comparison.test) == (-0.5, "Welch t")
    assert comparison.p_value == pytest.approx(0.5)


def test_a_single_shared_seed_is_no_pair_to_speak_of() -> None:
    assert compare({0: 0.5, 1: 0.6}, {1: 0.7, 2: 0.8}).test == "Welch t"


def test_a_comparison_of_two_pairs_worked_out_by_hand() -> None:
    # differences 1 and 3: mean 2, std √2, standard error 1, t = 2 with one degree of freedom, p = 1 − 2/π·atan 2
    comparison = compare({0: 2.0, 1: 5.0}, {0: 1.0, 1: 2.0})
    assert comparison.difference == 2.0
    assert comparison.p_value == pytest.approx(0.2951672353)
    assert comparison.low == pytest.approx(2 - 12.7062047, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [({}, {}), ({0: 1.0}, {}), ({0: 1.0}, {0: 2.0}), ({0: 1.0}, {1: 2.0, 2: 3.0})])
def test_a_single_replicate_allows_no_test(a: dict[int, float], b: dict[int, float]) -> None:
    comparison = compare(a, b)
    assert (comparison.p_value, comparison.low, comparison.test, comparison.note) == (None, None, None, NOT_ENOUGH)


def test_a_difference_is_told_even_where_it_cannot_be_tested() -> None:
    assert compare({0: 1.0}, {0: 3.0}).difference == -2.0
    assert compare({0: 1.0}, {}).difference is None


def is_untested(comparison: Comparison) -> bool:
    return comparison.test is comparison.p_value is comparison.low is comparison.high is None


def test_identical_values_are_no_basis_for_a_test_and_their_difference_is_none() -> None:
    for other, note in ((0, NO_SPREAD_OF_DIFFERENCES.format(n=2)), (10, NO_SPREAD_OF_VALUES.format(n=4))):
        comparison = compare({0: 0.3, 1: 0.3}, {other: 0.1 + 0.2, other + 1: 0.1 + 0.2})
        assert is_untested(comparison)
        assert (comparison.difference, comparison.note) == (0.0, note)


def test_equal_differences_are_no_basis_for_a_test() -> None:
    comparison = compare({0: 0.97, 1: 0.96}, {0: 0.96, 1: 0.95})  # 0.97 − 0.96 is 0.96 − 0.95 but for 1e-16
    assert is_untested(comparison)
    assert comparison.difference == pytest.approx(0.01)
    assert comparison.note == "the differences do not vary: 2 pairs are no basis for a test"
    assert (comparison.n, comparison.n_a, comparison.n_b) == (2, 2, 2)


def test_values_that_vary_on_neither_side_are_no_basis_for_a_test() -> None:
    comparison = compare({0: 0.5, 1: 0.5}, {2: 0.25, 3: 0.25, 4: 0.25})
    assert is_untested(comparison)
    assert comparison.difference == 0.25
    assert comparison.note == "the values of neither side vary beyond rounding: 5 replicates are no basis for a test"
    assert (comparison.n, comparison.n_a, comparison.n_b) == (5, 2, 3)


@given(values, st.floats(-1, 1).map(lambda shift: round(shift, 4)))
def test_no_shift_of_all_values_by_the_same_is_ever_tested(numbers: list[float], shift: float) -> None:
    comparison = compare(by_seed(numbers), by_seed([number + shift for number in numbers]))
    assert is_untested(comparison)
    assert comparison.difference == pytest.approx(-shift, abs=1e-12)


def test_a_spread_far_above_rounding_is_tested_however_small_it_is() -> None:
    comparison = compare({0: 0.97, 1: 0.96}, {0: 0.96, 1: 0.95 + 1e-9})
    assert comparison.test == "paired t"
    assert comparison.p_value == pytest.approx(3.183e-8, rel=1e-3)


def test_holms_correction_worked_out_by_hand() -> None:
    # 0.005·4, then max with 0.01·3, 0.03·2, and 0.04·1 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_corrected_values_stay_probabilities() -> None:
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_comparisons_without_a_test_do_not_count() -> None:
    assert holm([0.01, None, 0.02]) == [0.02, None, 0.02]


SIDES = {
    "in pairs": (by_seed([0.5, 0.7, 0.65]), by_seed([0.4, 0.75, 0.5])),
    "by Welch's test": (by_seed([0.5, 0.7, 0.65]), by_seed([0.4, 0.75, 0.5, 0.45], 100)),
    "with too few values": (by_seed([0.5]), by_seed([0.4, 0.75], 100)),
}


@pytest.mark.parametrize("exponent", [-900, -300, 300, 600, 1_020])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_a_comparison_grows_with_its_values(sides: tuple[dict[int, float], dict[int, float]], exponent: int) -> None:
    large = compare(*({seed: math.ldexp(value, exponent) for seed, value in side.items()} for side in sides))
    small = compare(*sides)
    for name in ("difference", "low", "high"):
        length = getattr(small, name)
        assert getattr(large, name) == (None if length is None else math.ldexp(length, exponent))
    assert large.p_value == small.p_value
    assert (large.test, large.note) == (small.test, small.note)


@pytest.mark.parametrize("first", [0, 100], ids=["in pairs", "by Welch's test"])
def test_a_difference_that_no_float_can_hold_is_tested_all_the_same(first: int) -> None:
    comparison = compare(by_seed([1.7e308, 1.6e308, 1.65e308]), by_seed([-1.7e308, -1.68e308, -1.6e308], first))
    assert comparison.difference is None
    assert comparison.high is None
    assert comparison.p_value is not None
    assert comparison.p_value < 0.001
