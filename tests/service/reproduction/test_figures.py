"""The figures' reports: pictures of the results, and sentences that say what the results say, whichever that is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from service.reproduction import ExperimentName, Scale
from service.reproduction.catalog import experiment
from service.reproduction.experiment import Report, StudyResults
from service.reproduction.synthetic import bound_sentence, ending
from service.study import Scalar
from tests.service.reproduction.made_up import Metrics, made_up


def falling(rate: float, floor: float, *, bound: float | None = None) -> Metrics:
    """Goes down to a floor, with 10 % more for each seed."""

    def metrics(_point: Mapping[str, Scalar], seed: int, epoch: int) -> dict[str, float]:
        value = (floor + math.exp(-rate * epoch)) * (1 + 0.1 * seed)
        return {"suboptimality": value, **({} if bound is None else {"bound": bound})}

    return metrics


def sweep(metrics: Metrics) -> Report:
    of = experiment(ExperimentName.LAMBDA_SWEEP, Scale.SMALL)
    return of.report(
        {part: made_up(spec, metrics, epochs=range(1_000, 10_001, 1_000)) for part, spec in of.studies.items()}
    )


def flat(text: str) -> str:
    return " ".join(text.split())


class TestLambdaSweep:
    def test_floors_that_rise_with_lambda_are_said_to(self) -> None:
        report = sweep(lambda point, _seed, _epoch: {"suboptimality": 1e-9 + float(point["lambda"]) ** 2, "bound": 2.0})
        text = flat(report.body)
        assert "λ = 0 (USAM) ends at a relative suboptimality of 1.0e-9." in text
        assert "the more of the normalised step, the higher it ends, at every step of the sweep" in text
        assert "under the bound of Theorem 3.2 at all 110 places" in text
        assert set(report.files) == {"figure-lambda-sweep.png", "figure-lambda-sweep.html"}

    def test_floors_that_do_not_rise_are_named(self) -> None:
        text = flat(sweep(lambda point, _seed, _epoch: {"suboptimality": 2 - float(point["lambda"])}).body)
        assert "does not rise with λ at λ = 0.2, 0.3, 0.4" in text
        assert "No bound of the runs was reported." in text

    def test_that_single_runs_allow_no_test_is_said(self) -> None:
        text = flat(sweep(lambda _point, _seed, _epoch: {"suboptimality": 0.1}).body)
        assert "so there is no spread and nothing to test" in text

    def test_the_table_says_when_a_level_is_reached_in_steps(self) -> None:
        def metrics(point: Mapping[str, Scalar], _seed: int, epoch: int) -> dict[str, float]:
            return {"suboptimality": 1e-8 if point["lambda"] == 0.0 and epoch > 4_000 else 0.1}

        body = sweep(metrics).body
        assert "| 0.0 | 1.0e-8 | – | 5,000 |" in body
        assert "| 1.0 | 0.1 | – | never |" in body


class TestConstantVsDecreasing:
    def report(self, constant: Metrics, decreasing: Metrics) -> Report:
        of = experiment(ExperimentName.CONSTANT_VS_DECREASING, Scale.SMALL)
        epochs = range(500, 10_001, 500)
        parts = {"constant": constant, "decreasing": decreasing}
        return of.report({part: made_up(of.studies[part], metrics, epochs=epochs) for part, metrics in parts.items()})

    def test_decreasing_steps_that_end_lower_are_said_to(self) -> None:
        report = self.report(falling(0.01, 1e-2, bound=3.0), falling(0.005, 1e-4))
        assert "Decreasing steps end below constant ones at λ = 0, λ = 0.5 and λ = 1." in flat(report.body)
        assert "not distinguishable" not in report.body
        # −0.0099 times 1, 1.1, …, 1.4: mean −0.01188, standard error 7.0e-4; p = 7.1e-5 with four degrees of freedom
        said = "decreasing − constant = −0.012, standard error 7.0e-4 (−17.0 of them), paired t, n = 5, p = 7.1e-5"
        assert f"- λ = 0.5: {said}\n" in report.body
        # five seeds at 1, 1.1, …, 1.4 times the floor
        assert "| 0.5 | 0.012 ± 1.6e-3 | 1.2e-4 ± 1.6e-5 | 100 |" in report.body
        assert set(report.files) == {"figure-constant-vs-decreasing.png", "figure-constant-vs-decreasing.html"}

    def test_decreasing_steps_that_end_higher_are_said_to(self) -> None:
        text = flat(self.report(falling(0.01, 1e-4), falling(0.005, 1e-2)).body)
        assert "Decreasing steps end above constant ones at λ = 0, λ = 0.5 and λ = 1" in text

    def test_decreasing_steps_that_end_lower_by_no_more_than_chance_would_are_not_said_to(self) -> None:
        def scattered(*values: float) -> Metrics:
            return lambda _point, seed, _epoch: {"suboptimality": values[seed]}

        constant, decreasing = (4.1e-5, 5.6e-5, 7.1e-5, 5.0e-5, 6.2e-5), (4.6e-5, 3.0e-5, 3.8e-5, 6.4e-5, 5.0e-5)
        body = self.report(scattered(*constant), scattered(*decreasing)).body
        assert "The two are not distinguishable at λ = 0, λ = 0.5 and λ = 1." in flat(body)
        assert "end below" not in body

    def test_the_bound_of_each_kind_of_steps_is_checked_and_told(self) -> None:
        text = flat(self.report(falling(0.01, 1e-2, bound=3.0), falling(0.005, 1e-4, bound=1e-9)).body)
        assert "The mean over runs with constant steps lies under the bound of Theorem 3.2 at all 60 places" in text
        assert "The mean over runs with decreasing steps lies above theirs" in text
        assert "taken step by step) at 60 of 60 places" in text

    def test_a_bound_of_decreasing_steps_that_is_not_there_is_told(self) -> None:
        text = flat(self.report(falling(0.01, 1e-2, bound=3.0), falling(0.005, 1e-4)).body)
        assert "No bound of the runs with decreasing steps was reported." in text

    def test_the_bound_of_each_kind_of_steps_is_drawn(self) -> None:
        bounded = self.report(falling(0.01, 1e-2, bound=3.0), falling(0.005, 1e-4, bound=2.0))
        page = bounded.files["figure-constant-vs-decreasing.html"].decode()
        assert "bound of Theorem 3.2, constant" in page
        assert "bound step by step, decreasing" in page


class TestImportance:
    def results(self, uniform: float, importance: float, bound: float) -> Mapping[str, StudyResults]:
        of = experiment(ExperimentName.IMPORTANCE, Scale.SMALL)

        def metrics(point: Mapping[str, Scalar], seed: int, epoch: int) -> dict[str, float]:
            rate = importance if point["sampling"] == "lipschitz" else uniform
            return falling(rate, 0.0, bound=bound)(point, seed, epoch)

        return {part: made_up(spec, metrics, epochs=range(100, 3_001, 100)) for part, spec in of.studies.items()}

    def report(self, uniform: float, importance: float, bound: float = 3.0) -> Report:
        return experiment(ExperimentName.IMPORTANCE, Scale.SMALL).report(self.results(uniform, importance, bound))

    def test_importance_that_is_faster_is_said_to_be_with_its_steps(self) -> None:
        report = self.report(1e-3, 1e-2)
        assert "Importance sampling ends below uniform sampling at λ = 0, λ = 0.5 and λ = 1." in flat(report.body)
        # uniform ends about e^−3, at 300,000 steps; importance is there after a tenth of them
        assert "30,000 of 300,000 |" in report.body
        assert set(report.files) == {"figure-importance.png", "figure-importance.html"}

    def test_importance_that_is_slower_is_said_to_be(self) -> None:
        report = self.report(1e-2, 1e-3)
        assert "Importance sampling ends above uniform sampling at λ = 0, λ = 0.5 and λ = 1." in flat(report.body)
        assert "| never |" in report.body

    def test_a_bound_that_is_broken_is_said_to_be(self) -> None:
        assert "lies above the bound of Theorem 3.2 at 180 of 180 places" in flat(self.report(1e-3, 1e-3, 1e-9).body)


def test_trials_that_failed_are_in_no_mean() -> None:
    of = experiment(ExperimentName.IMPORTANCE, Scale.SMALL)
    (spec,) = of.studies.values()
    study = made_up(spec, falling(0.0, 1.0), epochs=range(10, 1_001, 10), failed=lambda _, seed: seed == 2)
    end = ending(study, {"lambda": 0.5, "sampling": "lipschitz"})
    assert end is not None
    assert (list(end.by_seed), end.mean) == ([0, 1, 3, 4], pytest.approx(1.2 * 2))
    assert study.not_succeeded == 6
    assert ending(study, {"lambda": 0.7}) is None


def test_steps_are_counted_by_the_batches_of_an_epoch() -> None:
    of = experiment(ExperimentName.IMPORTANCE, Scale.SMALL)
    (spec,) = of.studies.values()
    study = made_up(spec, falling(0.0, 1.0), epochs=range(10, 21, 10))
    (first, *_) = study.configurations
    assert [sorted(run) for run in study.runs(first, "suboptimality", start=1.0).values()] == [
        [0.0, 1_000.0, 2_000.0]
    ] * 5
    assert study.runs(first, "nothing", start=1.0) == {}


def test_runs_that_all_end_alike_have_no_spread() -> None:
    of = experiment(ExperimentName.IMPORTANCE, Scale.SMALL)
    (spec,) = of.studies.values()
    study = made_up(spec, lambda *_: {"suboptimality": 0.1}, epochs=range(10, 1_001, 10))
    assert str(ending(study, {"lambda": 0.5, "sampling": "lipschitz"})) == "0.1 ± 0"


def test_nothing_is_said_of_bounds_that_are_not_there() -> None:
    assert bound_sentence([(0, 0), (0, 0)]) == "No bound of the runs was reported."
