"""A study's whole way: REST, Ray, training, the store, MLflow. What happens when parts die is in `tests/faults`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from service.client import Client
from service.study import Reason, StudyState, TrialState
from tests.e2e.conftest import Service, wait_until
from tests.embedded_service import DEADLINE_S, TIDY_S
from tests.own_package import FOLDER

LAMBDAS = {"type": "categorical", "choices": [0.0, "1/t"]}
RHOS = {"type": "categorical", "choices": [0.05, 0.1]}


def spec_for(name: str, *, epochs: int = 3, **changes: Any) -> dict[str, Any]:
    spec = {
        "name": name,
        "train": {"dataset": "digits", "model": "mlp", "epochs": epochs, "sampling": "lipschitz", "lr": 0.05},
        "search_space": {"lambda": LAMBDAS, "rho": RHOS},
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": [0, 1]},
    }
    return {**spec, **changes}


class Tracked:
    """What MLflow has of one study, read through MLflow's own client."""

    def __init__(self, service: Service, name: str) -> None:
        self.mlflow = MlflowClient(service.addresses.mlflow_url)
        self._name = name

    def runs(self) -> list[Run]:
        experiment = self.mlflow.get_experiment_by_name(self._name)
        assert experiment is not None
        return list(self.mlflow.search_runs([experiment.experiment_id], max_results=1000))

    def children(self) -> dict[str, Run]:
        children = [run for run in self.runs() if "mlflow.parentRunId" in run.data.tags]
        by_trial = {run.data.tags["samstudy.trial_id"]: run for run in children}
        assert len(by_trial) == len(children), "a trial has two runs"
        return by_trial

    def parent(self) -> Run:
        (parent,) = [run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags]
        return parent

    def artifacts(self, run: Run) -> set[str]:
        return {item.path for item in self.mlflow.list_artifacts(run.info.run_id)}


def wait_for_export(client: Client, study_id: str) -> None:
    wait_until(lambda: client.study(study_id).is_exported, what="MLflow shows the study as it is")


def test_a_posted_study_is_trained_recorded_and_shown_in_mlflow(service: Service, client: Client) -> None:
    study = client.submit(spec_for("whole-way")).wait(120)
    assert (study.state, study.reason) == (StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED)
    trials = client.trials(study.id)
    assert len(trials) == 8
    assert {trial.state for trial in trials} == {TrialState.SUCCEEDED}
    best = client.best(study.id)
    assert best is not None
    assert best.objective is not None
    assert best.objective.n == 2
    assert best.objective.mean > 0.8
    session = service.home / "ray" / "session_latest"
    assert session.is_dir()
    wait_until(lambda: not list(session.glob(f"artifacts/*/{study.id}")), what="nothing is left of what Tune staged")

    wait_for_export(client, study.id)
    tracked = Tracked(service, "whole-way")
    children = tracked.children()
    assert set(children) == {trial.id for trial in trials}
    for trial in trials:
        run = children[trial.id]
        results = client.results(study.id, trial.id)
        assert [result.epoch for result in results] == [1, 2, 3]
        history = tracked.mlflow.get_metric_history(run.info.run_id, "val_accuracy")
        assert [(point.step, point.value) for point in history] == [
            (result.epoch, result.metrics["val_accuracy"]) for result in results
        ]
        assert run.info.status == "FINISHED"
        assert run.data.tags["samstudy.state"] == "SUCCEEDED"
        assert run.data.params["seed"] == str(trial.seed)
        assert run.data.metrics["test_accuracy"] == results[-1].metrics["test_accuracy"]
    parent = tracked.parent()
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["val_accuracy_mean"] == pytest.approx(best.objective.mean)
    assert parent.data.metrics["val_accuracy_n"] == 2
    names = tracked.artifacts(parent)
    assert any(name.endswith(".png") for name in names)
    assert any(name.endswith(".html") for name in names)


def test_a_trial_that_fails_and_one_that_diverges_say_why_and_end_nothing_else(
    service: Service, client: Client
) -> None:
    """The theorems have no learning rate for so large a radius, and the second one is too large by itself."""
    rates = {"type": "categorical", "choices": ["theory", 1e6, 1e-3]}
    spec = spec_for("endings", search_space={"lr": rates}, replicates={"seeds": [0]}, budget={"max_failed_trials": 1})
    spec["train"] = {"dataset": "ridge", "model": "linear", "momentum": 0, "batch_size": 1, "rho": 10.0, "epochs": 2}
    spec["objective"] = {"metric": "suboptimality", "mode": "min"}
    study = client.submit(spec).wait(120)
    assert (study.state, study.reason) == (StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED)
    failed, diverged, sound = client.trials(study.id)
    assert (failed.state, failed.attempt) == (TrialState.FAILED, 1)
    assert failed.error is not None
    assert "rho" in failed.error
    assert (diverged.state, diverged.attempt, diverged.objective) == (TrialState.EARLY_STOPPED, 1, None)
    assert str(diverged.note).startswith("training diverged: ")
    assert sound.state is TrialState.SUCCEEDED
    wait_for_export(client, study.id)
    tracked = Tracked(service, "endings")
    runs = tracked.children()
    shown = [
        (runs[trial.id].info.status, runs[trial.id].data.tags["samstudy.state"]) for trial in (failed, diverged, sound)
    ]
    assert shown == [("FAILED", "FAILED"), ("FINISHED", "EARLY_STOPPED"), ("FINISHED", "SUCCEEDED")]
    assert "error-attempt-1.txt" in tracked.artifacts(runs[failed.id])
    assert runs[diverged.id].data.tags["samstudy.note"] == diverged.note


def test_asha_stops_trials_early_and_mlflow_tells_them_apart(service: Service, client: Client) -> None:
    spec = spec_for(
        "early",
        train={"dataset": "digits", "epochs": 8},
        search_space={"lr": {"type": "float", "low": 1e-5, "high": 0.3, "log": True}, "rho": RHOS},
        algorithm={"name": "tpe", "seed": 1},
        scheduler={"name": "asha", "grace_period": 1, "reduction_factor": 2},
        replicates={"seeds": [0]},
        budget={"max_trials": 10},
    )
    study = client.submit(spec).wait(120)
    assert (study.state, study.reason) == (StudyState.SUCCEEDED, Reason.MAX_TRIALS)
    trials = client.trials(study.id)
    early = [trial for trial in trials if trial.state is TrialState.EARLY_STOPPED]
    assert len(trials) == 10
    assert early
    assert all(trial.epochs_done < 8 and "test_accuracy" not in trial.metrics for trial in early)
    wait_for_export(client, study.id)
    children = Tracked(service, "early").children()
    assert {children[trial.id].data.tags["samstudy.state"] for trial in early} == {"EARLY_STOPPED"}


def test_a_cancelled_study_ends_now_and_nothing_of_it_outlives_it(service: Service, client: Client) -> None:
    study = client.submit(spec_for("cancelled", epochs=20_000))
    wait_until(lambda: len(client.trials(study.id, states=[TrialState.RUNNING])) == 2, what="two trials run")
    assert service.processes("service.tuning.driver", study.id)
    wait_until(lambda: len(service.workers()) == 2, what="two workers train")
    client.cancel(study.id)
    ended = study.wait(120)
    assert (ended.state, ended.reason) == (StudyState.CANCELLED, Reason.USER)
    assert {trial.state for trial in client.trials(study.id)} == {TrialState.CANCELLED}
    left = "the driver and the workers have ended with the study"
    wait_until(lambda: not (service.drivers(study.id) or service.workers()), deadline_s=TIDY_S, what=left)
    wait_for_export(client, study.id)
    tracked = Tracked(service, "cancelled")
    assert {run.info.status for run in tracked.runs()} == {"KILLED"}


def test_another_packages_model_learns_from_its_data(service: Service, client: Client) -> None:
    spec = yaml.safe_load((FOLDER / "study.yaml").read_text())
    assert {model.name: model.code for model in client.models()}["two_layers"] == "my_lab.networks:two_layers"
    study = client.submit(spec)
    ended = study.wait(timeout_s=DEADLINE_S)
    assert (ended.state, ended.best is not None and ended.best.complete) == (StudyState.SUCCEEDED, True), ended.error
    trials = client.trials(study.id)
    assert min(trial.objective or 0 for trial in trials) > 0.9
    assert ", my-lab 0.1, on cpu" in "".join(client.logs(study.id, trials[0].id))
    wait_for_export(client, study.id)
    params = [run.data.params for run in Tracked(service, spec["name"]).children().values()]
    assert {(each["dataset"], each["model"]) for each in params} == {("stripes", "two_layers")}
