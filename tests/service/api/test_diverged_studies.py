"""Studies whose trainings diverged to numbers that a float just holds, their squares and sums no longer."""

from __future__ import annotations

import io
import json
from itertools import product
from typing import TYPE_CHECKING

import pyarrow.parquet
import pytest
from starlette.testclient import TestClient

from service.analysis.aggregation import ConfigurationResult
from service.answers import StudyComparison
from service.cli import comparison_rendering, rendering
from service.spec import Objective
from service.store.reports import EpochReported, TrialEnded
from service.study import Study, TrialState

if TYPE_CHECKING:
    from tests.service.conftest import Life

LOSSES = [(1e200, 3e200), (2.0, 1.0), (1.7e308, -1.7e308), (1.5e308, 1.7e308)]


def diverged(life: Life) -> Study:
    study = life.create(objective={"metric": "val_loss", "mode": "min"})
    driver = life.start(study)
    for number, (lam, rho) in enumerate(product((0.0, 0.5, 1.0), (0.1, 0.2, 0.3, 0.4))):
        trials = life.propose(driver, {"lambda": lam, "rho": rho})
        for trial, loss in zip(trials, LOSSES[number % 4], strict=True):
            life.begin(driver, trial)
            driver.record([EpochReported(trial.id, 1, 1, {"val_loss": loss, "val_accuracy": 0.1})])
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, loss)])
    life.succeed(driver)
    return study


def test_every_answer_of_it_can_be_read(api: TestClient, life: Life) -> None:
    study = diverged(life)
    for path in ("", "/configurations", "/best", "/surface", "/trials", f"/configurations/{study.id}-3"):
        answer = api.get(f"studies/{study.id}{path}")
        assert answer.status_code == 200, path
        json.dumps(answer.json(), allow_nan=False)
    best = api.get(f"studies/{study.id}/best").json()["best"]
    assert (best["configuration"]["number"], best["objective"]["mean"]) == (3, 0.0)
    third = api.get(f"studies/{study.id}/configurations/{study.id}-3").json()
    assert third["objective"] == {"mean": 0.0, "std": None, "n": 2, "low": None, "high": None}
    assert third["by_seed"] == {"0": 1.7e308, "1": -1.7e308}


def test_its_configurations_are_paged_by_their_means(api: TestClient, life: Life) -> None:
    url, token = f"studies/{diverged(life).id}/configurations?order_by=objective&page_size=1", ""
    found = []
    while token is not None:
        page = api.get(url + token).json()
        found += [one["configuration"]["number"] for one in page["configurations"]]
        token = page["next_page_token"] and f"&page_token={page['next_page_token']}"
    # means 0 without a spread, 1.5, 2e200, 1.6e308
    assert found == [3, 7, 11, 2, 6, 10, 1, 5, 9, 4, 8, 12]


@pytest.mark.parametrize("method", ["fanova", "ped_anova"])
def test_it_says_which_parameters_matter(api: TestClient, life: Life, method: str) -> None:
    found = api.get(f"studies/{diverged(life).id}/importances?method={method}").json()["importances"]
    assert (found[0]["parameter"], len(found)) == ("rho", 2)
    assert sum(one["importance"] for one in found) == pytest.approx(1)


def test_its_tables_hold_the_numbers(api: TestClient, life: Life) -> None:
    study = diverged(life)
    losses = [loss for number in range(12) for loss in LOSSES[number % 4]]
    parquet = api.get(f"studies/{study.id}/export?format=parquet").content
    assert pyarrow.parquet.read_table(io.BytesIO(parquet)).column("objective").to_pylist() == losses
    assert [row["objective"] for row in api.get(f"studies/{study.id}/export?format=json").json()] == losses
    assert api.get(f"studies/{study.id}/export?format=csv").text.count(",1.5e+308,") >= 3


def test_two_of_them_are_compared_and_shown(api: TestClient, life: Life) -> None:
    first, second = diverged(life), diverged(life)
    compared = api.get("/studies:compare", params={"ids": f"{first.id},{second.id}"})
    results = [
        ConfigurationResult.model_validate(one)
        for one in api.get(f"studies/{first.id}/configurations").json()["configurations"]
    ]
    objective = Objective.model_validate({"metric": "val_loss", "mode": "min"})
    console = rendering.console()
    with console.capture() as shown:
        for table in comparison_rendering.comparison_tables(StudyComparison.model_validate(compared.json())):
            console.print(table)
        console.print(rendering.configurations_table(results, objective=objective, best=results[1]))
    assert "1.6e+308 ± 1.4e+307" in shown.get()
