"""Means over seeds, against scipy and against numbers worked out by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.analysis.aggregation import ConfigurationResult, Summary, aggregate, best, summarise, summary_of
from service.study import Configuration, Purpose, Trial, TrialState
from tests.service.analysis.records import configuration, trial

SUCCEEDED, EARLY, FAILED = TrialState.SUCCEEDED, TrialState.EARLY_STOPPED, TrialState.FAILED


def results(*objectives: tuple[float, ...]) -> list[ConfigurationResult]:
    configurations = [configuration(number) for number in range(1, len(objectives) + 1)]
    trials = [
        trial(of, seed, value)
        for of, values in zip(configurations, objectives, strict=True)
        for seed, value in enumerate(values)
    ]
    return aggregate(configurations, trials)


def test_three_replicates_worked_out_by_hand() -> None:
    summary = summarise([1.0, 2.0, 6.0])
    # mean 3; squares 4 + 1 + 9 = 14, std √7; t for 2 degrees of freedom 4.302653
    margin = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.std == pytest.approx(math.sqrt(7))
    assert (summary.low, summary.high) == pytest.approx((3 - margin, 3 + margin), rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    summary = summarise(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-9)
    if error > 1e-6:
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (summary.low, summary.high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_single_replicate_has_no_spread() -> None:
    summary = summarise([0.5])
    assert (summary.mean, summary.n) == (0.5, 1)
    assert (summary.std, summary.low, summary.high) == (None, None, None)


def test_equal_replicates_have_an_interval_of_no_width() -> None:
    summary = summarise([0.1, 0.1, 0.1])  # whose sum over 3 is 0.10000000000000002
    assert (summary.mean, summary.std, summary.low, summary.high) == (0.1, 0.0, 0.1, 0.1)


@given(st.floats(-1e6, 1e6), st.integers(2, 12))
def test_equal_replicates_are_their_own_mean_and_have_no_spread(value: float, n: int) -> None:
    summary = summarise([value] * n)
    assert (summary.mean, summary.std, summary.n) == (value, 0.0, n)


@pytest.mark.parametrize("exponent", [-900, -300, 300, 600, 1_000])
def test_a_summary_grows_with_its_values(exponent: int) -> None:
    values = [1.0, 2.0, 6.0]
    small, large = summarise(values), summarise([math.ldexp(value, exponent) for value in values])
    for name in ("mean", "std", "low", "high"):
        assert getattr(large, name) == math.ldexp(getattr(small, name), exponent)


def test_what_no_float_can_hold_is_left_out_of_a_summary() -> None:
    # std 0.14e308, margin 12.7 · 0.14e308 / √2 = 1.27e308: the upper end would be 2.87e308
    summary = summarise([1.5e308, 1.7e308])
    assert (summary.mean, summary.std) == (pytest.approx(1.6e308), pytest.approx(0.1414e308, rel=1e-3))
    assert (summary.low, summary.high) == (pytest.approx(0.329e308, rel=1e-2), None)
    opposite = summarise([1.7e308, -1.7e308])
    assert (opposite.mean, opposite.std, opposite.low, opposite.high, opposite.n) == (0.0, None, None, None, 2)
    for known in (summary, opposite):
        assert summary_of(known.mean, known.std, known.n) == known
        assert Summary.model_validate_json(known.model_dump_json()) == known


def test_a_diverged_configuration_ranks_like_any_other() -> None:
    found = results((1e200, 3e200), (1.7e308, -1.7e308), (2.0, 1.0), (1e308, 1.7e308))
    assert best(found, "min") == found[1]
    assert best(found, "max") == found[3]


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        summarise([])


def test_results_come_in_the_order_of_the_configurations() -> None:
    configurations = [configuration(2), configuration(1)]
    assert [result.configuration.number for result in aggregate(configurations, [])] == [2, 1]


def test_only_trials_that_succeeded_enter_the_means() -> None:
    of = configuration(1)
    (result,) = aggregate(
        [of],
        [
            trial(of, 0, 0.8, val_loss=1.0),
            trial(of, 1, 0.1, EARLY, val_loss=9.0),
            trial(of, 2, None, FAILED, val_loss=9.0),
            trial(of, 3, 0.6, val_loss=3.0),
        ],
    )
    assert result.objective is not None
    assert (result.objective.mean, result.objective.n) == (pytest.approx(0.7), 2)
    assert result.metrics["val_loss"].mean == 2.0
    assert result.trial_states == {SUCCEEDED: 2, EARLY: 1, FAILED: 1}
    assert result.by_seed == {0: 0.8, 3: 0.6}
    assert not result.complete


def test_a_configuration_without_a_success_has_no_objective() -> None:
    of = configuration(1)
    (result,) = aggregate([of], [trial(of, 0, None, TrialState.RUNNING)])
    assert result.objective is None
    assert result.metrics == {}
    assert not result.complete


def test_a_success_without_an_objective_leaves_the_configuration_incomplete() -> None:
    of = configuration(1)
    (result,) = aggregate([of], [trial(of, 0, 0.5), trial(of, 2, None, TrialState.RUNNING), trial(of, 1, None)])
    assert result.by_seed == {0: 0.5}
    assert list(result.missing_by_seed.items()) == [(1, SUCCEEDED), (2, TrialState.RUNNING)]
    assert not result.complete


def test_values_that_are_not_numbers_do_not_spoil_a_mean() -> None:
    of = configuration(1)
    (result,) = aggregate([of], [trial(of, 0, 0.5, loss=math.inf), trial(of, 1, math.nan, loss=2.0)])
    assert result.objective is not None
    assert result.objective.mean == 0.5
    assert result.metrics["loss"].mean == 2.0


@pytest.mark.parametrize(("mode", "number"), [("max", 2), ("min", 1)])
def test_the_best_is_the_one_with_the_best_mean(mode: str, number: int) -> None:
    found = best(results((0.1, 0.2), (0.8, 0.9), (0.5, 0.6)), mode)  # type: ignore[arg-type]
    assert found is not None
    assert found.configuration.number == number


def test_of_equal_means_the_smaller_spread_and_then_the_earlier_is_best() -> None:
    found = best(results((0.25, 0.75), (0.5, 0.5), (0.5, 0.5)), "max")
    assert found is not None
    assert found.configuration.number == 2


def test_an_incomplete_configuration_is_never_better_than_a_complete_one() -> None:
    first, second = configuration(1), configuration(2)
    trials = [trial(first, 0, 0.99), trial(first, 1, None, FAILED), trial(second, 0, 0.5)]
    found = best(aggregate([first, second], trials), "max")
    assert found is not None
    assert found.configuration.number == 2
    assert best([], "max") is None


def test_where_none_is_complete_the_one_with_most_seeds_is_best() -> None:
    made = [configuration(number) for number in (1, 2, 3)]
    trials = [trial(made[0], 0, 0.9), trial(made[0], 1, None, TrialState.EARLY_STOPPED)]
    trials += [trial(made[1], 0, 0.7), trial(made[1], 1, 0.8), trial(made[1], 2, None, TrialState.EARLY_STOPPED)]
    trials += [trial(made[2], 0, None, FAILED)]
    found = best(aggregate(made, trials), "max")
    assert found is not None
    assert found.configuration.number == 2
    assert best(aggregate(made[2:], trials), "max") is None


def test_results_go_through_json_unchanged() -> None:
    (result,) = results((0.1, 0.2))
    assert ConfigurationResult.model_validate_json(result.model_dump_json()) == result


def confirmed(
    number: int, search: tuple[float, ...], fresh: tuple[float | None, ...]
) -> tuple[Configuration, list[Trial]]:
    of = configuration(number)
    trials = [trial(of, seed, value) for seed, value in enumerate(search)]
    trials += [
        trial(of, 100 + seed, value, SUCCEEDED if value is not None else FAILED, purpose=Purpose.CONFIRM)
        for seed, value in enumerate(fresh)
    ]
    return of, trials


def results_of(*made: tuple[Configuration, list[Trial]]) -> list[ConfigurationResult]:
    return aggregate([of for of, _ in made], [one for _, trials in made for one in trials])


class TestConfirmation:
    def test_what_confirms_is_kept_apart_from_the_search(self) -> None:
        (result,) = results_of(confirmed(1, (0.9, 0.8), (0.5, 0.7, None)))
        assert result.objective is not None
        assert result.confirmed is not None
        assert (result.objective.mean, result.objective.n) == (pytest.approx(0.85), 2)
        assert (result.confirmed.mean, result.confirmed.n) == (pytest.approx(0.6), 2)
        assert result.by_seed == {0: 0.9, 1: 0.8}
        assert result.confirmed_by_seed == {100: 0.5, 101: 0.7}
        assert result.complete, "a failed confirming trial leaves nothing out of the search"
        assert result.trial_states == {SUCCEEDED: 4, FAILED: 1}

    def test_the_confirming_trials_are_counted_and_those_without_an_objective_told_by_seed(self) -> None:
        (result,) = results_of(confirmed(1, (0.9, 0.8), (None, 0.7, None)))
        assert result.confirming_trials == 3
        assert result.confirmed_missing_by_seed == {100: FAILED, 102: FAILED}
        assert result.missing_by_seed == {}

    def test_metrics_are_those_of_the_search_and_apart_from_them_those_of_the_fresh_seeds(self) -> None:
        of = configuration(1)
        trials = [trial(of, 0, 0.5, val_loss=1.0), trial(of, 9, 0.5, purpose=Purpose.CONFIRM, val_loss=9.0)]
        trials.append(trial(of, 10, None, FAILED, purpose=Purpose.CONFIRM, val_loss=99.0))
        (result,) = aggregate([of], trials)
        assert result.metrics["val_loss"].mean == 1.0
        assert (result.confirmed_metrics["val_loss"].mean, result.confirmed_metrics["val_loss"].n) == (9.0, 1)

    def test_without_confirming_trials_nothing_is_confirmed(self) -> None:
        (result,) = results((0.1, 0.2))
        assert (result.confirmed, result.confirmed_by_seed) == (None, {})
        assert (result.confirming_trials, result.confirmed_missing_by_seed, result.confirmed_metrics) == (0, {}, {})

    @pytest.mark.parametrize(("mode", "number"), [("max", 2), ("min", 1)])
    def test_the_best_is_the_best_of_the_confirmed_ones(self, mode: str, number: int) -> None:
        found = best(
            results_of(
                confirmed(1, (0.8, 0.8), (0.6, 0.6)),
                confirmed(2, (0.7, 0.7), (0.65, 0.65)),
                confirmed(3, (0.9, 0.9), ()),
                confirmed(4, (0.1, 0.1), ()),
            ),
            mode,  # type: ignore[arg-type]
        )
        assert found is not None
        assert found.configuration.number == number

    def test_a_half_confirmed_one_is_not_better_than_a_whole_one(self) -> None:
        made = [confirmed(1, (0.8,), (0.9, None)), confirmed(2, (0.8,), (0.6, 0.6))]
        found = best(results_of(*made), "max")
        assert found is not None
        assert found.configuration.number == 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_a_summary_is_known_from_mean_std_and_n(values: list[float]) -> None:
    known = summarise(values)
    assert summary_of(known.mean, known.std, known.n) == known
    assert summary_of(None, None, 0) is None
