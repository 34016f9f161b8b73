"""Differences between two sides: called one only where the test does, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from service.analysis.aggregation import summarise
from service.reproduction.differences import Difference, Verdict, findings, stand_ins, verdicts
from service.reproduction.published import SGD_WRN_28_10_CIFAR10

CONSTANT = {0: 3.0, 1: 4.0, 2: 5.0}
NO_LOWER = {0: 2.5, 1: 2.0, 2: 5.0}
LOWER = {0: 1.0, 1: 2.1, 2: 2.9}


def test_a_lower_mean_alone_is_not_below() -> None:
    # differences −0.5, −2, 0: mean −0.8333, std 1.0408, standard error 0.6009, t = −1.387 with two degrees of freedom
    found = Difference.between(NO_LOWER, CONSTANT)
    assert found.comparison.difference == pytest.approx(-0.8333, abs=1e-4)
    assert found.standard_error == pytest.approx(0.6009, abs=1e-4)
    assert found.verdict is Verdict.NOT_DISTINGUISHABLE
    assert str(found) == "−0.83, standard error 0.6 (−1.4 of them), paired t, n = 3, p = 0.3"


def test_what_the_test_finds_is_below_and_the_other_way_round_above() -> None:
    # differences −2, −1.9, −2.1: mean −2, std 0.1
    found = Difference.between(LOWER, CONSTANT)
    assert found.standard_error == pytest.approx(0.1 / 3**0.5)
    assert (found.verdict, Difference.between(CONSTANT, LOWER).verdict) == (Verdict.BELOW, Verdict.ABOVE)


def test_other_seeds_are_compared_by_welchs_test_with_both_counts() -> None:
    found = Difference.between({0: 1.0, 1: 3.0}, {5: 1.0, 6: 2.0, 7: 3.0})
    # √(2/2 + 1/3)
    assert found.standard_error == pytest.approx(1.1547, abs=1e-4)
    assert "standard error 1.2 (+0.0 of them), Welch t, n = 2 and 3" in str(found)


@pytest.mark.parametrize("b", [{0: 1.0}, {0: 0.5, 1: 0.5, 2: 0.5}])
def test_without_runs_enough_or_without_spread_nothing_is_tested(b: dict[int, float]) -> None:
    found = Difference.between(dict.fromkeys(b, 0.25), b)
    assert (found.verdict, found.standard_error) == (Verdict.UNTESTED, None)
    assert "without a test: " in str(found)


def test_the_sentences_say_where_the_test_found_what() -> None:
    found = {
        "λ = 0": Difference.between(NO_LOWER, CONSTANT),
        "λ = 0.5": Difference.between(LOWER, CONSTANT),
        "λ = 1": Difference.between(CONSTANT, LOWER),
        "λ = 2": Difference.between({0: 1.0}, {0: 2.0}),
    }
    said = verdicts("Decreasing steps end", "constant ones", found)
    assert said.startswith("Decreasing steps end below constant ones at λ = 0.5.")
    assert "Decreasing steps end above constant ones at λ = 1." in said
    assert "The two are not distinguishable at λ = 0." in said
    assert "Nothing could be tested at λ = 2." in said
    text = findings("Decreasing steps end", "constant ones", "decreasing − constant", found)
    assert f"- λ = 0: decreasing − constant = {found['λ = 0']}\n" in text


@pytest.mark.parametrize("n", [2, 3, 7])
def test_stand_ins_have_the_mean_spread_and_number_of_what_they_stand_for(n: int) -> None:
    published = SGD_WRN_28_10_CIFAR10.model_copy(update={"n": n})
    values = stand_ins(published, first_seed=-n)
    known = summarise(list(values.values()))
    assert (known.mean, known.std, known.n) == (pytest.approx(0.9535), pytest.approx(0.0006), n)
    assert list(values) == list(range(-n, 0))


def test_nothing_can_stand_in_for_a_single_value() -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        stand_ins(summarise([0.5]), first_seed=0)
