"""One study: as a whole, its configurations, trials, best, surface; cancelling it; comparing several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.reports import EpochReported, TrialEnded
from service.study import TrialState

if TYPE_CHECKING:
    from tests.service.conftest import Life

ACCURACIES = {(0.0, 0.1): (0.90, 0.92), (1.0, 0.1): (0.95, 0.97), (0.5, 0.2): (0.80, 0.82)}


def problem(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["code"]


def test_a_study_tells_how_far_it_has_come(api: TestClient, life: Life) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    third, _ = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    life.begin(driver, second)
    life.fail(driver, third)
    shown = api.get(f"studies/{study.id}").json()
    assert shown["state"] == "RUNNING"
    assert shown["trial_counts"] == {"SUCCEEDED": 1, "RUNNING": 1, "FAILED": 1, "PENDING": 1}
    assert api.get("studies").json()["studies"][0]["trials_planned"] == 40
    assert shown["progress"] == {"trials_done": 2, "trials_planned": 40, "epochs_done": 3, "epochs_planned": 120}
    assert (shown["best"]["objective"]["n"], shown["best"]["complete"]) == (1, False), "it is preliminary"
    assert shown["mlflow_url"] is None


def test_epochs_are_not_planned_where_the_space_varies_them(api: TestClient, life: Life) -> None:
    space = {"rho": {"type": "categorical", "choices": [0.1]}, "epochs": {"type": "categorical", "choices": [1, 2]}}
    study = life.create(search_space=space, train={"dataset": "digits"})
    assert api.get(f"studies/{study.id}").json()["progress"]["epochs_planned"] is None


def test_a_study_links_to_its_run_in_mlflow(api: TestClient, life: Life, database: Database) -> None:
    study = life.create()
    ExportStore(database).set_study_run(study.id, experiment_id="7", run_id="abc")
    url = api.get(f"studies/{study.id}").json()["mlflow_url"]
    assert url.startswith("http://mlflow.test/#/experiments/7/runs/abc")


def test_the_link_to_mlflow_has_no_password(database: Database, api_settings: Settings, life: Life) -> None:
    study = life.create()
    ExportStore(database).set_study_run(study.id, experiment_id="7", run_id="abc")
    settings = api_settings.model_copy(update={"mlflow_url": "http://u:s3cret@mlflow.test/"})
    with TestClient(create_app(database, settings)) as client:
        url = client.get(f"/api/v1/studies/{study.id}").json()["mlflow_url"]
    assert url.startswith("http://mlflow.test/#/experiments/7/runs/abc")


def test_a_waiting_study_says_why(api: TestClient, life: Life, database: Database) -> None:
    from service.store.reconciling import ReconcilingStore

    study = life.create()
    store = ReconcilingStore(database)
    claim = store.claim(study.id, startup_lease_s=60)
    assert claim is not None
    store.give_back(claim, "Ray does not answer")
    shown = api.get(f"studies/{study.id}").json()
    assert (shown["state"], shown["waiting_reason"]) == ("QUEUED", "Ray does not answer")


def test_results_are_mean_std_n_and_interval_over_the_seeds(api: TestClient, life: Life) -> None:
    study = life.finished(ACCURACIES)
    results = api.get(f"studies/{study.id}/configurations").json()["configurations"]
    assert [result["configuration"]["number"] for result in results] == [1, 2, 3]
    first = results[0]
    assert first["configuration"]["point"] == {"lambda": 0.0, "rho": 0.1}
    assert first["objective"]["mean"] == pytest.approx(0.91)
    assert first["objective"]["std"] == pytest.approx(0.02 / 2**0.5)
    assert first["objective"]["n"] == 2
    assert first["objective"]["low"] == pytest.approx(0.91 - 12.706 * 0.01, abs=1e-4)
    assert first["by_seed"] == {"0": 0.90, "1": 0.92}
    one = api.get(f"studies/{study.id}/configurations/{first['configuration']['id']}").json()
    assert one == first


def test_configurations_can_be_ordered_the_best_first(api: TestClient, life: Life) -> None:
    study = life.finished(ACCURACIES)
    answer = api.get(f"studies/{study.id}/configurations", params={"order_by": "objective"})
    assert [result["configuration"]["number"] for result in answer.json()["configurations"]] == [2, 1, 3]
    assert problem(api.get(f"studies/{study.id}/configurations", params={"order_by": "x"})) == (422, "invalid_request")


def test_the_best_is_the_best_of_the_complete_ones_in_the_mode_of_the_study(api: TestClient, life: Life) -> None:
    highest = life.finished(ACCURACIES)
    lowest = life.finished(ACCURACIES, objective={"metric": "val_accuracy", "mode": "min"})
    best = api.get(f"studies/{highest.id}/best").json()
    assert (best["metric"], best["mode"]) == ("val_accuracy", "max")
    assert best["best"]["configuration"]["point"] == {"lambda": 1.0, "rho": 0.1}
    assert api.get(f"studies/{lowest.id}/best").json()["best"]["configuration"]["point"]["lambda"] == 0.5
    assert api.get(f"studies/{highest.id}").json()["best"] == best["best"]
    assert api.get(f"studies/{life.create().id}/best").json()["best"] is None


def test_the_surface_has_a_cell_for_every_point(api: TestClient, life: Life) -> None:
    study = life.finished(ACCURACIES)
    surface = api.get(f"studies/{study.id}/surface", params={"x": "lambda", "y": "rho"}).json()
    assert (surface["x_values"], surface["y_values"]) == ([0.0, 0.5, 1.0], [0.1, 0.2])
    (panel,) = surface["panels"]
    means = {(cell["x"], cell["y"]): cell["value"]["mean"] for cell in panel["cells"]}
    assert means == pytest.approx({(0.0, 0.1): 0.91, (1.0, 0.1): 0.96, (0.5, 0.2): 0.81})
    assert (surface["best"]["x"], surface["best"]["y"]) == (1.0, 0.1)


def test_another_metric_has_a_surface_too(api: TestClient, life: Life) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.92), (0.5, 0.1): (0.8, 0.7)})
    path = f"studies/{study.id}/surface"
    shown = api.get(path).json()
    assert (shown["metric"], shown["mode"]) == ("val_accuracy", "max")
    assert api.get(path, params={"metric": "val_accuracy"}).json() == shown
    found = api.get(path, params={"metric": "val_loss"}).json()
    assert (found["metric"], found["mode"]) == ("val_loss", None)
    assert [cell["value"]["mean"] for cell in found["panels"][0]["cells"]] == [1.0, 1.0]
    assert [cell["value"]["n"] for cell in found["panels"][0]["cells"]] == [2, 2]
    assert found["best"]["configuration_id"] == shown["best"]["configuration_id"]


def test_a_metric_that_no_trial_reports_has_no_surface(api: TestClient, life: Life) -> None:
    study, empty = life.finished({(0.0, 0.1): (0.9, 0.92)}), life.create()
    answer = api.get(f"studies/{study.id}/surface", params={"metric": "sharpness_one_step"})
    assert problem(answer) == (422, "invalid_request")
    assert answer.json()["errors"] == [
        {
            "field": "metric",
            "message": "no trial reports 'sharpness_one_step'; what they report: val_accuracy, val_loss",
        }
    ]
    assert api.get(f"studies/{empty.id}/surface", params={"metric": "sharpness_one_step"}).status_code == 200
    assert problem(api.get(f"studies/{empty.id}/surface", params={"metric": "sharpnes"})) == (422, "invalid_request")


def test_only_what_succeeded_is_in_another_metrics_surface(api: TestClient, life: Life) -> None:
    study = life.create()
    driver = life.start(study)
    good, bad = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, good, 0.9)
    life.begin(driver, bad)
    driver.record([EpochReported(bad.id, 1, 1, {"val_loss": 9.0})])
    driver.record([TrialEnded(bad.id, 1, TrialState.EARLY_STOPPED, None, note="training diverged")])
    (cell,) = api.get(f"studies/{study.id}/surface", params={"metric": "val_loss"}).json()["panels"][0]["cells"]
    assert (cell["value"]["mean"], cell["value"]["n"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"x": "momentum"}, "x"),
        ({"y": "lr"}, "y"),
        ({"panel": "dataset"}, "panel"),
        ({"x": "rho"}, "y"),
        ({"panel": "lambda"}, "panel"),
    ],
)
def test_a_surface_needs_two_parameters_of_the_space(
    api: TestClient, life: Life, parameters: dict[str, str], field: str
) -> None:
    answer = api.get(f"studies/{life.create().id}/surface", params=parameters)
    assert problem(answer) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_trials_can_be_listed_by_state_and_configuration(api: TestClient, life: Life) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)

    def numbers(**parameters: Any) -> list[int]:
        answer = api.get(f"studies/{study.id}/trials", params=parameters)
        return [trial["number"] for trial in answer.json()["trials"]]

    assert numbers() == [1, 2, 3, 4]
    assert numbers(state="SUCCEEDED") == [1]
    assert numbers(state=["SUCCEEDED", "PENDING"]) == [1, 2, 3, 4]
    assert numbers(configuration_id=second.configuration_id) == [1, 2]
    assert numbers(configuration_id=second.configuration_id, state="PENDING") == [2]
    assert problem(api.get(f"studies/{study.id}/trials?state=DONE")) == (422, "invalid_request")


def test_a_trial_has_its_attempts_and_its_results(api: TestClient, life: Life) -> None:
    study = life.create()
    driver = life.start(study)
    lost, trained = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    life.begin(driver, lost)
    life.lose(driver, lost)
    life.begin(driver, lost, attempt=2)
    life.train(driver, trained, 0.9)
    attempts = api.get(f"studies/{study.id}/trials/{lost.id}").json()["attempts"]
    assert [(attempt["number"], attempt["state"], attempt["error"]) for attempt in attempts] == [
        (1, "LOST", "the node went away"),
        (2, "RUNNING", None),
    ]
    results = api.get(f"studies/{study.id}/trials/{trained.id}/results").json()["results"]
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert results[-1]["metrics"] == {"val_accuracy": 0.9, "val_loss": 1.0}


def test_what_is_not_there_is_404_with_its_own_code(api: TestClient, life: Life) -> None:
    study = life.create()
    for path in ("", "/configurations", "/trials", "/best", "/surface", "/events", "/trials/t", "/trials/t/results"):
        assert problem(api.get(f"studies/nowhere{path}")) == (404, "study_not_found"), path
    assert problem(api.post("studies/nowhere/cancel")) == (404, "study_not_found")
    assert problem(api.get(f"studies/{study.id}/configurations/c")) == (404, "configuration_not_found")
    assert problem(api.get(f"studies/{study.id}/trials/t")) == (404, "trial_not_found")
    assert problem(api.get(f"studies/{study.id}/trials/t/results")) == (404, "trial_not_found")
    assert problem(api.get("search-spaces/nowhere")) == (404, "search_space_not_found")
    other = life.finished({(0.0, 0.1): (0.9,)}, replicates={"seeds": [0]})
    assert problem(api.get(f"studies/{study.id}/trials/{other.id}-1-0")) == (404, "trial_not_found")


def test_cancelling_a_queued_study_ends_it_and_is_200(api: TestClient, life: Life) -> None:
    study = life.create()
    answer = api.post(f"studies/{study.id}/cancel")
    assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "CANCELLED", "USER")
    again = api.post(f"studies/{study.id}/cancel")
    assert (again.status_code, again.json()) == (200, answer.json())


def test_cancelling_a_running_study_is_202_until_its_driver_has_ended_it(api: TestClient, life: Life) -> None:
    study = life.create()
    life.start(study)
    answer = api.post(f"studies/{study.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "STOPPING")
    assert api.post(f"studies/{study.id}/cancel").status_code == 202


def test_a_study_that_has_ended_cannot_be_cancelled(api: TestClient, life: Life) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.8)})
    assert problem(api.post(f"studies/{study.id}/cancel")) == (409, "invalid_transition")


def test_studies_are_compared_by_their_best_paired_over_shared_seeds(api: TestClient, life: Life) -> None:
    a = life.finished({(0.0, 0.1): (0.90, 0.92, 0.91)}, replicates={"seeds": [0, 1, 2]})
    b = life.finished({(0.0, 0.1): (0.80, 0.81, 0.84), (0.5, 0.1): (0.1, 0.1, 0.1)}, replicates={"seeds": [0, 1, 2]})
    c = life.finished({(0.0, 0.1): (0.90, 0.92, 0.90)}, replicates={"seeds": [0, 1, 2]})
    answer = api.get("/studies:compare", params={"ids": f"{a.id},{b.id},{c.id}"}).json()
    assert answer["metric"] == "val_accuracy"
    assert [study["study_id"] for study in answer["studies"]] == [a.id, b.id, c.id]
    assert answer["studies"][1]["by_seed"] == {"0": 0.80, "1": 0.81, "2": 0.84}
    against_b, against_c = answer["differences"]
    assert (against_b["a"], against_b["b"], against_b["test"], against_b["n"]) == (a.id, b.id, "paired t", 3)
    assert against_b["difference"] == pytest.approx(0.28 / 3)
    assert against_b["p_value"] < 0.05 < against_c["p_value"]
    assert against_b["p_adjusted"] == pytest.approx(2 * against_b["p_value"])


def test_another_metric_can_be_compared(api: TestClient, life: Life) -> None:
    a, b = life.finished(ACCURACIES), life.finished(ACCURACIES)
    answer = api.get("/studies:compare", params={"ids": f"{a.id},{b.id}", "metric": "val_loss"}).json()
    assert answer["studies"][0]["by_seed"] == {"0": 1.0, "1": 1.0}
    assert answer["differences"][0]["difference"] == 0.0


def test_a_study_without_a_complete_configuration_can_be_named_but_not_tested(api: TestClient, life: Life) -> None:
    a, b = life.finished(ACCURACIES), life.create()
    answer = api.get("/studies:compare", params={"ids": f"{a.id},{b.id}"}).json()
    assert answer["studies"][1]["configuration"] is None
    assert (answer["differences"][0]["p_value"], answer["differences"][0]["test"]) == (None, None)


def test_a_comparison_that_makes_no_sense_is_422(api: TestClient, life: Life) -> None:
    a = life.finished(ACCURACIES)
    b = life.finished(ACCURACIES, objective={"metric": "val_loss", "mode": "min"})
    for parameters, field in (
        ({"ids": a.id}, "ids"),
        ({"ids": f"{a.id},{a.id}"}, "ids"),
        ({"ids": ",".join("abcdefghijklmnopqrstuvwxyz")}, "ids"),
        ({"ids": f"{a.id},{b.id}"}, "metric"),
        ({"ids": f"{a.id},{b.id}", "metric": "accurasy"}, "metric"),
    ):
        answer = api.get("/studies:compare", params=parameters)
        assert problem(answer) == (422, "invalid_request"), parameters
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert problem(api.get("/studies:compare", params={"ids": f"{a.id},nowhere"})) == (404, "study_not_found")


def test_what_a_study_can_be_made_of_is_listed(api: TestClient) -> None:
    spaces = {space["name"]: space for space in api.get("search-spaces").json()["search_spaces"]}
    assert spaces["paper_lambda_rho"]["size"] == 20
    assert spaces["lambda_rho_continuous"]["size"] is None
    assert api.get("search-spaces/paper_lambda_rho").json() == spaces["paper_lambda_rho"]
    assert "small_cnn" in [model["name"] for model in api.get("models").json()["models"]]
    digits = next(data for data in api.get("datasets").json()["datasets"] if data["name"] == "digits")
    assert (digits["task"], digits["shape"]) == ("classification", [1, 8, 8])


def test_a_queued_study_says_where_nobody_would_start_it(api: TestClient, life: Life, database: Database) -> None:
    from service.store.reconciling import ReconcilingStore
    from service.store.watching import CONTROLLER_LEASE

    study = life.create()
    reason = api.get(f"studies/{study.id}").json()["pending_reason"]
    assert reason == "its study is queued: no controller runs that would start it"
    ReconcilingStore(database).lead(CONTROLLER_LEASE, "host:1", 60)
    assert api.get(f"studies/{study.id}").json()["pending_reason"] == "its study is queued: it waits for its driver"
    driver = life.start(study)
    assert api.get(f"studies/{study.id}").json()["pending_reason"] == "its driver is starting"
    driver.heartbeat(60)
    life.begin(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0])
    assert api.get(f"studies/{study.id}").json()["pending_reason"] is None


def test_a_study_and_its_trials_say_who_is_missing(api: TestClient, life: Life, database: Database) -> None:
    from service.store.reconciling import ReconcilingStore
    from service.store.watching import CONTROLLER_LEASE

    controllers = ReconcilingStore(database)
    study = life.create()
    point = {"point": {"lambda": 0.5, "rho": 0.1}}
    api.post(f"studies/{study.id}/configurations", json=point)

    def reasons() -> tuple[str | None, ...]:
        """The study's, and its trials' in the list and alone."""
        listed = api.get(f"studies/{study.id}/trials").json()["trials"]
        alone = [api.get(f"studies/{study.id}/trials/{trial['id']}").json() for trial in listed]
        whole = api.get(f"studies/{study.id}").json()
        return tuple(shown["pending_reason"] for shown in (whole, *listed, *alone))

    assert reasons() == ("its study is queued: no controller runs that would start it",) * 5
    controllers.lead(CONTROLLER_LEASE, "host:1", 60)
    assert reasons() == ("its study is queued: it waits for its driver",) * 5
    driver = life.start(study)
    driver.heartbeat(-1)
    assert (
        reasons()
        == ("its driver has stopped answering; the controller will replace it once the driver's job has ended",) * 5
    )
    controllers.lead(CONTROLLER_LEASE, "host:1", -1)
    alone = "its driver has stopped answering, and no controller runs that would replace it"
    assert reasons() == (alone,) * 5
    for trial in life.studies.trials(study.id):
        life.begin(driver, trial)
    assert reasons() == (alone, *[None] * 4), "what trained may train on"
    driver.heartbeat(60)
    assert reasons() == (None,) * 5


def test_a_lowered_budget_plans_no_less_than_there_is(api: TestClient, life: Life) -> None:
    study = life.create(budget={"max_trials": 40})
    driver = life.start(study)
    for lam in (0.0, 0.5):
        life.propose(driver, {"lambda": lam, "rho": 0.1})
    api.patch(f"studies/{study.id}", json={"budget": {"max_trials": 2}}, headers={"If-Match": "*"})
    progress = api.get(f"studies/{study.id}").json()["progress"]
    assert (progress["trials_planned"], progress["epochs_planned"]) == (4, 12)
    (listed,) = api.get("studies").json()["studies"]
    assert listed["trials_planned"] == 4


def test_a_trial_is_shown_with_its_configurations_point(api: TestClient, life: Life) -> None:
    points = {(0.0, 0.1): (0.9, 0.92), ("1/t", 0.2): (0.8, 0.7)}
    study = life.finished(points)
    listed = api.get(f"studies/{study.id}/trials").json()["trials"]
    expected = [{"lambda": value, "rho": rho} for value, rho in points for _ in range(2)]
    assert [trial["point"] for trial in listed] == expected
    assert [api.get(f"studies/{study.id}/trials/{trial['id']}").json()["point"] for trial in listed] == expected
