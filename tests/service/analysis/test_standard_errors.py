"""Differences of means in standard errors, against values computed by hand."""

from __future__ import annotations

import pytest

from service.analysis.aggregation import Summary, summarise
from service.analysis.standard_errors import in_standard_errors


def known(mean: float, std: float | None, n: int = 3) -> Summary:
    return Summary(mean=mean, std=std, n=n, low=None, high=None)


def test_a_difference_is_divided_by_the_error_of_both_means() -> None:
    # (0.9599 − 0.9535) / √(0.0006²/3 + 0.0006²/3) = 0.0064 / 0.000489898 = 13.0639
    assert in_standard_errors(known(0.9599, 0.0006), known(0.9535, 0.0006)) == pytest.approx(13.0639, abs=1e-4)
    # (10 − 12) / √(3²/9 + 4²/16) = −2 / √2
    assert in_standard_errors(known(10, 3, 9), known(12, 4, 16)) == pytest.approx(-(2**0.5))


def test_it_changes_its_sign_with_the_sides() -> None:
    a, b = summarise([0.8, 0.82, 0.85]), summarise([0.9, 0.91, 0.95])
    forth, back = in_standard_errors(a, b), in_standard_errors(b, a)
    assert forth is not None
    assert back == pytest.approx(-forth)


def test_without_a_spread_there_is_no_unit() -> None:
    assert in_standard_errors(known(1, None, 1), known(0, 0.1)) is None
    assert in_standard_errors(known(1, 0.1), known(0, None, 1)) is None
    assert in_standard_errors(known(1, 0.0), known(0, 0.0)) is None


def test_equal_replicates_on_both_sides_leave_no_unit_to_a_difference() -> None:
    assert in_standard_errors(summarise([0.1] * 3), summarise([0.7] * 3)) is None


def test_one_side_without_spread_is_enough_where_the_other_has_some() -> None:
    assert in_standard_errors(known(1, 0.0), known(0, 3.0, 9)) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e-250, 1e-100, 1e200, 1e307])
def test_it_is_the_same_at_every_size(size: float) -> None:
    # as −2 / √2 above; at 1e307 the difference of the means, 2e308, is no float
    a, b = known(-10 * size, 3 * size * 2**0.5, 9), known(10 * size, 4 * size * 2**0.5, 16)
    assert in_standard_errors(a, b) == pytest.approx(-10)


def test_a_small_spread_beside_a_large_mean_counts() -> None:
    assert in_standard_errors(known(2e300, 3e100, 9), known(1e300, 4e100, 16)) == pytest.approx(1e200 / 2**0.5)
