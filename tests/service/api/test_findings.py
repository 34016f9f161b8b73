"""What is confirmed, which parameters matter, and the table of all trials."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest
from starlette.testclient import TestClient

from service.store.reports import EpochReported, TrialEnded
from service.study import Study, TrialState

if TYPE_CHECKING:
    from tests.service.conftest import Life

FRESH = [100, 101]


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def confirmed(
    life: Life, search: dict[Any, tuple[float, ...]], fresh: dict[Any, tuple[float | None, ...]], **changes: Any
) -> Study:
    """A study with these accuracies by (λ, ρ) of its search, and of its confirming trials; None: the trial failed."""
    study = life.create(confirm={"top_k": 2, "seeds": FRESH}, **changes)
    driver = life.start(study)
    configurations = {}
    for (lam, rho), values in search.items():
        trials = life.propose(driver, {"lambda": lam, "rho": rho})
        configurations[lam, rho] = trials[0].configuration_id
        for trial, value in zip(trials, values, strict=True):
            life.train(driver, trial, value)
    for place, values in fresh.items():
        trials = driver.add_confirming_trials(configurations[place], FRESH)
        life.run(driver, trials[: len(values)], values)
    life.succeed(driver)
    return life.studies.get(study.id)


SEARCH = {(0.0, 0.1): (0.90, 0.92), (1.0, 0.1): (0.95, 0.97), (0.5, 0.2): (0.99, 0.2)}


class TestConfirmed:
    def test_the_best_is_the_best_confirmed_one_with_both_of_its_numbers(self, api: TestClient, life: Life) -> None:
        study = confirmed(life, SEARCH, {(0.0, 0.1): (0.88, 0.90), (1.0, 0.1): (0.80, 0.82)})
        best = api.get(f"studies/{study.id}/best").json()["best"]
        assert best["configuration"]["point"] == {"lambda": 0.0, "rho": 0.1}
        assert best["objective"]["mean"] == pytest.approx(0.91)
        assert (best["confirmed"]["mean"], best["confirmed"]["n"]) == (pytest.approx(0.89), 2)
        assert best["by_seed"] == {"0": 0.90, "1": 0.92}
        assert best["confirmed_by_seed"] == {"100": 0.88, "101": 0.90}
        assert api.get(f"studies/{study.id}").json()["best"] == best
        surface = api.get(f"studies/{study.id}/surface").json()
        assert surface["best"]["configuration_id"] == best["configuration"]["id"]
        assert surface["best"]["value"] == best["objective"]

    def test_what_is_half_confirmed_is_not_better_than_what_is_confirmed(self, api: TestClient, life: Life) -> None:
        study = confirmed(life, SEARCH, {(0.0, 0.1): (0.99,), (1.0, 0.1): (0.80, 0.82)})
        best = api.get(f"studies/{study.id}/best").json()["best"]
        assert best["configuration"]["point"]["lambda"] == 1.0

    def test_without_confirmation_it_is_the_best_of_the_search(self, api: TestClient, life: Life) -> None:
        best = api.get(f"studies/{confirmed(life, SEARCH, {}).id}/best").json()["best"]
        assert best["configuration"]["point"]["lambda"] == 1.0
        assert (best["confirmed"], best["confirmed_by_seed"]) == (None, {})
        assert (best["confirming_trials"], best["confirmed_missing_by_seed"]) == (0, {})

    def test_a_confirmation_that_failed_is_told(self, api: TestClient, life: Life) -> None:
        study = confirmed(life, SEARCH, {(1.0, 0.1): (None, None)})
        best = api.get(f"studies/{study.id}/best").json()["best"]
        assert best["configuration"]["point"]["lambda"] == 1.0
        assert (best["confirmed"], best["confirming_trials"]) == (None, 2)
        assert best["confirmed_missing_by_seed"] == {"100": "FAILED", "101": "FAILED"}
        assert api.get(f"studies/{study.id}").json()["best"] == best
        listed = api.get(f"studies/{study.id}/configurations", params={"order_by": "objective"}).json()
        assert listed["configurations"][0] == best

    def test_a_confirmation_that_failed_in_part_is_told_with_the_metrics_of_the_rest(
        self, api: TestClient, life: Life
    ) -> None:
        study = confirmed(life, SEARCH, {(1.0, 0.1): (0.80, None)})
        best = api.get(f"studies/{study.id}/best").json()["best"]
        assert (best["confirmed"]["n"], best["confirming_trials"]) == (1, 2)
        assert best["confirmed_missing_by_seed"] == {"101": "FAILED"}
        assert best["metrics"]["val_accuracy"]["mean"] == pytest.approx(0.96)
        assert best["confirmed_metrics"]["val_accuracy"]["mean"] == 0.80

    def test_the_order_by_objective_is_that_of_the_search(self, api: TestClient, life: Life) -> None:
        study = confirmed(life, SEARCH, {(0.0, 0.1): (0.99, 0.99)})
        answer = api.get(f"studies/{study.id}/configurations", params={"order_by": "objective"}).json()
        assert [result["configuration"]["number"] for result in answer["configurations"]] == [2, 1, 3]

    def test_confirmed_values_are_compared_where_all_have_them(self, api: TestClient, life: Life) -> None:
        a = confirmed(life, SEARCH, {(1.0, 0.1): (0.80, 0.83)})
        b = confirmed(life, SEARCH, {(0.0, 0.1): (0.70, 0.74)})
        c = confirmed(life, SEARCH, {})
        answer = api.get("/studies:compare", params={"ids": f"{a.id},{b.id}"}).json()
        assert (answer["values"], answer["correction"]) == ("confirmed", "Holm")
        assert [side["by_seed"] for side in answer["studies"]] == [
            {"100": 0.80, "101": 0.83},
            {"100": 0.70, "101": 0.74},
        ]
        (difference,) = answer["differences"]
        assert (difference["test"], difference["n"], difference["n_a"], difference["n_b"]) == ("paired t", 2, 2, 2)
        loss = api.get("/studies:compare", params={"ids": f"{a.id},{b.id}", "metric": "val_loss"}).json()
        assert loss["studies"][0]["by_seed"] == {"100": 1.0, "101": 1.0}
        mixed = api.get("/studies:compare", params={"ids": f"{a.id},{b.id},{c.id}"}).json()
        assert mixed["values"] == "search"
        assert mixed["studies"][0]["by_seed"] == {"0": 0.95, "1": 0.97}


class TestImportances:
    def test_what_matters_is_told_with_the_number_of_configurations(self, api: TestClient, life: Life) -> None:
        grid = {(lam, rho): (rho, rho) for lam in (0.0, 0.5, 1.0) for rho in (0.1, 0.2, 0.3, 0.4)}
        answer = api.get(f"studies/{life.finished(grid).id}/importances").json()
        assert (answer["metric"], answer["method"], answer["n"], answer["left_out"]) == (
            "val_accuracy",
            "fanova",
            12,
            [],
        )
        assert [one["parameter"] for one in answer["importances"]] == ["rho", "lambda"]
        assert sum(one["importance"] for one in answer["importances"]) == pytest.approx(1)

    def test_too_few_results_are_409(self, api: TestClient, life: Life) -> None:
        study = life.finished({(0.0, 0.1): (0.9, 0.8)})
        assert problem(api.get(f"studies/{study.id}/importances")) == (409, "not_enough_results")
        assert problem(api.get(f"studies/{study.id}/importances", params={"method": "guess"})) == (
            422,
            "invalid_request",
        )
        assert problem(api.get("studies/nowhere/importances")) == (404, "study_not_found")


class TestExport:
    @pytest.fixture
    def study(self, life: Life) -> Study:
        study = life.create(confirm={"top_k": 1, "seeds": FRESH})
        driver = life.start(study)
        first, second = life.propose(driver, {"lambda": "1/t", "rho": 0.1})
        life.train(driver, first, 0.9)
        life.begin(driver, second)
        driver.record([EpochReported(second.id, 1, 1, {"val_accuracy": 0.5})])
        driver.record([TrialEnded(second.id, 1, TrialState.EARLY_STOPPED, 0.5, note="behind, with commas")])
        life.propose(driver, {"lambda": 1.0, "rho": 0.2})
        driver.add_confirming_trials(first.configuration_id, [100])
        return study

    def test_csv_has_a_line_for_each_trial(self, api: TestClient, study: Study) -> None:
        answer = api.get(f"studies/{study.id}/export")
        assert answer.headers["content-type"].startswith("text/csv")
        assert answer.headers["content-disposition"] == f'attachment; filename="{study.id}-trials.csv"'
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [row["trial_id"] for row in rows] == [
            f"{study.id}-{part}" for part in ("1-0", "1-1", "2-0", "2-1", "1-100")
        ]
        assert (rows[0]["point.lambda"], rows[0]["objective"], rows[0]["metric.val_loss"]) == ("1/t", "0.9", "1.0")
        assert (rows[0]["epochs_done"], rows[0]["attempts"], rows[0]["state"]) == ("3", "1", "SUCCEEDED")
        assert (rows[1]["note"], rows[1]["metric.val_loss"]) == ("behind, with commas", "")
        assert [row["purpose"] for row in rows] == [*["SEARCH"] * 4, "CONFIRM"]

    def test_json_has_an_object_for_each_trial(self, api: TestClient, study: Study) -> None:
        rows = api.get(f"studies/{study.id}/export", params={"format": "json"}).json()
        assert [row["seed"] for row in rows] == [0, 1, 0, 1, 100]
        assert rows[0]["point"] == {"lambda": "1/t", "rho": 0.1}
        assert rows[0]["metrics"] == {"val_accuracy": 0.9, "val_loss": 1.0}
        assert rows[2]["objective"] is None

    def test_parquet_has_typed_columns(self, api: TestClient, study: Study) -> None:
        answer = api.get(f"studies/{study.id}/export", params={"format": "parquet"})
        table = pyarrow.parquet.read_table(io.BytesIO(answer.content))
        assert {
            name: str(table.schema.field(name).type) for name in ("seed", "point.lambda", "point.rho", "started_at")
        } == {
            "seed": "int64",
            "point.lambda": "string",
            "point.rho": "double",
            "started_at": "timestamp[us, tz=UTC]",
        }
        assert table["point.lambda"].to_pylist() == ["1/t", "1/t", "1.0", "1.0", "1/t"]
        assert table["objective"].to_pylist() == [0.9, 0.5, None, None, None]

    def test_a_study_without_trials_is_a_table_without_rows(self, api: TestClient, life: Life) -> None:
        path = f"studies/{life.create().id}/export"
        assert len(api.get(path).text.splitlines()) == 1
        assert api.get(path, params={"format": "json"}).json() == []
        answer = api.get(path, params={"format": "parquet"})
        assert pyarrow.parquet.read_table(io.BytesIO(answer.content)).num_rows == 0

    def test_every_trial_of_a_large_study_is_there_once(
        self, api: TestClient, life: Life, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.store.contents._ROWS_AT_A_TIME", 3)
        monkeypatch.setattr("service.analysis.trial_tables._ROWS_AT_A_TIME", 2)
        study = life.finished({(lam, rho): (0.5, 0.6) for lam in (0.0, 0.5, 1.0) for rho in (0.1, 0.2)})
        rows = json.loads(api.get(f"studies/{study.id}/export", params={"format": "json"}).content)
        assert [row["number"] for row in rows] == list(range(1, 13))
        csv_rows = list(csv.DictReader(io.StringIO(api.get(f"studies/{study.id}/export").text)))
        assert [int(row["number"]) for row in csv_rows] == list(range(1, 13))

    def test_what_cannot_be_exported_is_an_answer(self, api: TestClient, life: Life) -> None:
        assert problem(api.get("studies/nowhere/export")) == (404, "study_not_found")
        answer = api.get(f"studies/{life.create().id}/export", params={"format": "xlsx"})
        assert (*problem(answer), answer.json()["errors"][0]["field"]) == (422, "invalid_request", "format")
