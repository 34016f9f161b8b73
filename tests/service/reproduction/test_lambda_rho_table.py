"""The table: our cells beside the published ones, and differences in standard errors as computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from service.reproduction import ExperimentName, Scale
from service.reproduction.catalog import experiment
from service.reproduction.experiment import Report
from service.reproduction.lambda_rho_table import GRID, SGD
from service.reproduction.published import LAMBDAS, RHOS, SGD_WRN_28_10_CIFAR10, WRN_28_10_CIFAR10
from service.study import Scalar
from tests.service.reproduction.made_up import made_up


def accuracy(point: Mapping[str, Scalar], seed: int, _epoch: int) -> dict[str, float]:
    """SGD has 0.80, 0.81, 0.82; every cell 0.01 more for each 0.1 of ρ, but the one of ρ = 0.4, λ = 1 half of it."""
    rho = float(point["rho"])
    value = 0.80 + 0.01 * seed + 0.1 * rho
    return {"test_accuracy": value / 2 if (rho, point.get("lambda")) == (0.4, 1.0) else value, "val_accuracy": 0.5}


def reported(scale: Scale) -> Report:
    of = experiment(ExperimentName.LAMBDA_RHO, scale)
    return of.report({part: made_up(spec, accuracy, epochs=range(5, 6)) for part, spec in of.studies.items()})


def rows_of(body: str) -> dict[tuple[str, str], list[str]]:
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| 0")]
    return {(cells[0], cells[1]): cells[2:] for cells in lines}


def test_the_published_table_is_the_papers() -> None:
    assert len(WRN_28_10_CIFAR10) == len(RHOS) * len(LAMBDAS) == 20
    best = WRN_28_10_CIFAR10[0.3, "1-1/t"]
    assert (best.mean, best.std, best.n) == (pytest.approx(0.9599), pytest.approx(0.0006), 3)
    assert (SGD_WRN_28_10_CIFAR10.mean, SGD_WRN_28_10_CIFAR10.std) == (pytest.approx(0.9535), pytest.approx(0.0006))
    assert WRN_28_10_CIFAR10[0.4, "1/t"].mean == pytest.approx(0.9546)


def test_ours_stands_beside_the_published_cell_and_each_is_compared_with_its_own_sgd() -> None:
    rows = rows_of(reported(Scale.SMALL).body)
    assert len(rows) == 21
    assert rows["0", "–"][:2] == ["81.00 ± 1.00", "95.35 ± 0.06"]
    # ours: 0.01 / √(0.01²/3 + 0.01²/3) = 1.22; published: 0.35 / √(0.01²/3 + 0.06²/3) = 9.97
    assert rows["0.1", "0"][:4] == ["82.00 ± 1.00", "95.70 ± 0.01", "+1.00 (+1.2 SE)", "+0.35 (+10.0 SE)"]
    # ours: 0.425 − 0.81 with a spread of 0.005: −0.385 / √(0.005²/3 + 0.01²/3) = −59.6
    assert rows["0.4", "1"][2] == "−38.50 (−59.6 SE)"


@pytest.mark.parametrize("scale", Scale)
def test_each_cell_is_compared_with_the_published_one(scale: Scale) -> None:
    errors = (82.0 - 95.70) / math.sqrt(1.0**2 / 3 + 0.01**2 / 3)
    assert rows_of(reported(scale).body)["0.1", "0"][4] == f"−13.70 (−{-errors:.1f} SE)"


def test_how_many_cells_agree_with_the_published_ones_is_told_in_the_published_setting_only() -> None:
    assert "Against the published cells" in reported(Scale.PAPER).body
    assert "Against the published cells" not in reported(Scale.SMALL).body


def test_the_cells_above_and_below_sgd_are_counted() -> None:
    text = " ".join(reported(Scale.SMALL).body.split())
    assert "**Ours**: 19 of 20 cells lie above SGD" in text
    # by ρ: 1.2, 2.4, 3.7 and 4.9 standard errors; one cell far below
    assert "by more than 2 standard errors 14 lie above it and 1 below" in text
    assert "**Published**: 19 of 20 cells lie above SGD" in text
    assert "95.99 ± 0.06 at ρ = 0.3, λ = 1-1/t" in text


def test_a_cell_without_a_result_is_a_dash() -> None:
    of = experiment(ExperimentName.LAMBDA_RHO, Scale.SMALL)
    grid = made_up(of.studies[GRID], accuracy, epochs=range(5, 6), failed=lambda point, _: point["rho"] == 0.2)
    sgd = made_up(of.studies[SGD], accuracy, epochs=range(5, 6))
    body = of.report({GRID: grid, SGD: sgd}).body
    assert rows_of(body)["0.2", "0.5"] == ["–", "95.77 ± 0.09", "–", "+0.42 (+6.7 SE)", "–"]
    assert "14 of 15 cells lie above SGD" in body


def test_one_seed_left_has_a_difference_and_no_standard_error() -> None:
    of = experiment(ExperimentName.LAMBDA_RHO, Scale.SMALL)
    grid = made_up(of.studies[GRID], accuracy, epochs=range(5, 6), failed=lambda _, seed: seed > 0)
    sgd = made_up(of.studies[SGD], accuracy, epochs=range(5, 6))
    assert rows_of(of.report({GRID: grid, SGD: sgd}).body)["0.3", "0"][::2] == ["83.00", "+2.00", "−12.35"]


def test_without_sgd_the_cells_still_stand() -> None:
    of = experiment(ExperimentName.LAMBDA_RHO, Scale.SMALL)
    grid = made_up(of.studies[GRID], accuracy, epochs=range(5, 6))
    sgd = made_up(of.studies[SGD], accuracy, epochs=range(5, 6), failed=lambda _point, _seed: True)
    body = of.report({GRID: grid, SGD: sgd}).body
    assert rows_of(body)["0", "–"][0] == "–"
    assert rows_of(body)["0.1", "0"][0] == "82.00 ± 1.00"
    assert "**Ours**" not in body
