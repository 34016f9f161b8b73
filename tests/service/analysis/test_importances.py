"""Which parameters matter, on objectives of which it is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import pytest

from search_spaces.parameters import CategoricalParameter, FloatParameter, IntParameter, Parameter
from service.analysis.aggregation import ConfigurationSummary, summarise
from service.analysis.importances import (
    MIN_CONFIGURATIONS,
    ImportanceMethod,
    importances,
)
from service.errors import NotEnoughResultsError
from tests.service.analysis.records import configuration

LAMBDA = CategoricalParameter(choices=(0.0, 0.5, "1/t"))
SPACE: dict[str, Parameter] = {
    "lambda": LAMBDA,
    "rho": FloatParameter(low=0.01, high=0.5, log=True),
    "batch_size": IntParameter(low=16, high=128),
    "presample_factor": IntParameter(low=2, high=8, when={"lambda": (0.5,)}),
}
METHODS: tuple[ImportanceMethod, ...] = get_args(ImportanceMethod)


def results(
    n: int, objective: Callable[[dict[str, Any]], float], *, complete: bool = True
) -> list[ConfigurationSummary]:
    rng = random.Random(0)
    made = []
    for number in range(1, n + 1):
        point: dict[str, Any] = {
            "lambda": rng.choice(LAMBDA.choices),
            "rho": rng.uniform(0.01, 0.5),
            "batch_size": rng.randint(16, 128),
        }
        if point["lambda"] == 0.5:
            point["presample_factor"] = rng.randint(2, 8)
        mean = summarise([objective(point)])
        made.append(
            ConfigurationSummary(configuration=configuration(number, **point), objective=mean, complete=complete)
        )
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_decides_the_objective_is_the_most_important(
    method: ImportanceMethod, mode: Literal["max", "min"]
) -> None:
    found, n = importances(results(60, lambda point: 3 * point["rho"]), SPACE, mode=mode, method=method)
    assert (next(iter(found)), n) == ("rho", 60)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found["rho"] > 0.5


@pytest.mark.parametrize("exponent", [-900, -40, 600, 1_024])
def test_importances_are_the_same_at_every_size(exponent: int) -> None:
    """A forest by itself splits nothing whose variance is below 1e-16; the squares of large numbers are no floats."""

    assert importances_of_size(exponent) == importances_of_size(0)


@cache
def importances_of_size(exponent: int) -> dict[str, float]:
    made = results(40, lambda point: math.ldexp(point["rho"] + point["batch_size"] / 1_000, exponent))
    return importances(made, SPACE, mode="min", method="fanova")[0]


@pytest.mark.parametrize("offset", [1.0, 1e6, -1e6])
def test_importances_are_the_same_from_wherever_the_objective_is_measured(offset: float) -> None:
    """What is left of differences of 1e-9 beside 1 are seven digits, and of their squares in a sum of squares none."""
    spread = 1e-9 * abs(offset)
    made = results(40, lambda point: offset + spread * (point["rho"] + point["batch_size"] / 1_000))
    found = importances(made, SPACE, mode="min", method="fanova")[0]
    assert found == pytest.approx(importances_of_size(0), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [(1e200, 2.0), (1e308, 1.7e308, 5.0), (1.79e308, -1.79e308), (1e300, 0.1, 0.2, 0.3)])
def test_a_training_that_diverged_does_not_hide_what_matters(
    method: ImportanceMethod, values: tuple[float, ...]
) -> None:
    turn = iter(range(1_000))
    found, n = importances(results(22, lambda _: values[next(turn) % len(values)]), SPACE, mode="min", method=method)
    assert n == 22
    assert sum(found.values()) == pytest.approx(1)


def test_words_can_matter_too() -> None:
    found, _ = importances(
        results(60, lambda point: float(point["lambda"] == "1/t")), SPACE, mode="max", method="fanova"
    )
    assert next(iter(found)) == "lambda"


def test_a_forest_says_nothing_of_parameters_that_are_not_in_every_point() -> None:
    made = results(30, lambda point: point["rho"])
    assert "presample_factor" not in importances(made, SPACE, mode="max", method="fanova")[0]
    assert "presample_factor" in importances(made, SPACE, mode="max", method="ped_anova")[0]


@pytest.mark.parametrize(("n", "better"), [(12, 1), (30, 2)])
def test_where_most_objectives_are_the_same_ped_anova_has_nothing_to_go_by(n: int, better: int) -> None:
    made = results(n, lambda point: 0.1)
    told = [
        one.model_copy(update={"objective": summarise([0.9 - 0.1 * index])}) for index, one in enumerate(made[:better])
    ] + made[better:]
    with pytest.raises(NotEnoughResultsError, match=r"the best tenth of them .*: method fanova"):
        importances(told, SPACE, mode="max", method="ped_anova")
    found, _ = importances(told, SPACE, mode="max", method="fanova")
    assert len(set(found.values())) > 1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_the_same_in_all_points_explains_nothing(method: ImportanceMethod) -> None:
    told = [
        one.model_copy(
            update={
                "configuration": one.configuration.model_copy(update={"point": {**one.configuration.point, "rho": 0.1}})
            }
        )
        for one in results(30, lambda point: float(point["batch_size"]))
    ]
    found, _ = importances(told, SPACE, mode="max", method=method)
    assert found["rho"] == 0
    assert max(found, key=lambda name: found[name]) == "batch_size"


def test_the_same_results_have_the_same_importances() -> None:
    made = results(30, lambda point: point["rho"])
    first, again = (importances(made, SPACE, mode="max", method="fanova") for _ in range(2))
    assert first == again


def test_a_forest_looks_at_so_many_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.analysis.importances.MAX_FOR_A_FOREST", 30)
    _, n = importances(results(50, lambda p: p["rho"]), SPACE, mode="max", method="fanova")
    assert n == 30


@pytest.mark.parametrize("method", METHODS)
def test_too_few_or_equal_results_are_no_ground(method: ImportanceMethod) -> None:
    few = results(MIN_CONFIGURATIONS - 1, lambda point: point["rho"])
    with pytest.raises(NotEnoughResultsError, match="10 complete configurations or more, and there are 9"):
        importances(few, SPACE, mode="max", method=method)
    with pytest.raises(NotEnoughResultsError, match="the same objective"):
        importances(results(20, lambda _: 0.5), SPACE, mode="max", method=method)
    with pytest.raises(NotEnoughResultsError, match="there are 0"):
        importances(results(20, lambda point: point["rho"], complete=False), SPACE, mode="max", method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.8), (0.1, 0.7999999999999999), (0.1, 0.1 * 3), (0.1 * 3, 0.9)])
def test_steps_are_told_by_their_number_whatever_their_ends_are_within_rounding(
    low: float, high: float, method: ImportanceMethod
) -> None:
    space: dict[str, Parameter] = {
        "lambda": FloatParameter(low=low, high=high, step=0.1),
        "rho": FloatParameter(low=0.0, high=1.0),
    }
    rng, values = random.Random(0), list(FloatParameter(low=low, high=high, step=0.1).values())
    points = [{"lambda": rng.choice(values), "rho": rng.random()} for _ in range(40)]
    points[0] = {"lambda": values[-1], "rho": 0.5}
    told = [
        ConfigurationSummary(
            configuration=configuration(number, **point), objective=summarise([point["lambda"]]), complete=True
        )
        for number, point in enumerate(points, 1)
    ]
    found, n = importances(told, space, mode="max", method=method)
    assert (next(iter(found)), n) == ("lambda", 40)
