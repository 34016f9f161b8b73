"""The projection into MLflow, against MLflow's real server."""

from __future__ import annotations

import csv
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from mlflow import MlflowClient

from service.spec import parse_spec
from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import EpochReported, TrialEnded
from service.store.studies import NewStudy, StudyStore
from service.study import Configuration, Reason, StudyState, Trial, TrialState
from service.tracking.exporter import Exporter, TrackingUnavailableError
from tests.service.conftest import Life
from tests.service.mlflow_server import MlflowServer
from tests.service.tracking.shown import (
    NAMES,
    Clock,
    Network,
    Send,
    answer,
    artifact,
    children_of,
    history,
    parent_of,
    runs_of,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts the HTTP requests by the last part of their path."""
    counts: Counter[str] = Counter()
    send = requests.Session.request

    def counted(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        counts[url.split("?")[0].rsplit("/", 1)[-1]] += 1
        return send(session, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", counted)
    return counts


GRID = {(0.5, 0.1): (0.90, 0.92), ("1/t", 0.1): (0.80, 0.82), (0.5, 0.2): (0.70, 0.74), ("1/t", 0.2): (0.60, 0.62)}


def test_a_study_is_a_parent_run_with_a_child_run_for_each_trial(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore
) -> None:
    study = life.finished(GRID, description="what λ does")
    report = exporter.export_pending()
    assert (report.studies, report.trials, report.epochs, report.refused) == (1, 8, 24, {})
    parent, children = parent_of(client, study), children_of(client, study)
    assert len(children) == 8
    assert client.get_experiment(parent.info.experiment_id).name == study.name
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert parent.info.run_name == f"{study.name} {study.id[:6]}"
    assert store.behind() == []
    remembered = life.studies.get(study.id)
    assert (remembered.mlflow_run_id, remembered.mlflow_experiment_id) == (
        parent.info.run_id,
        parent.info.experiment_id,
    )
    assert {trial.id: trial.mlflow_run_id for trial in life.studies.trials(study.id)} == {
        trial_id: run.info.run_id for trial_id, run in children.items()
    }


def test_a_training_that_diverged_is_exported_as_it_is(
    life: Life, exporter: Exporter, client: MlflowClient, tmp_path: Path
) -> None:
    losses = {0.0: (1e200, 3e200), 0.5: (1.5e308, 1.7e308), 1.0: (1.7e308, -1.7e308)}
    study = life.create(objective={"metric": "val_loss", "mode": "max"})
    driver = life.start(study)
    for lam, values in losses.items():
        for trial, loss in zip(life.propose(driver, {"lambda": lam, "rho": 0.1}), values, strict=True):
            life.begin(driver, trial)
            driver.record([EpochReported(trial.id, 1, 1, {"val_loss": loss})])
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, loss)])
    life.succeed(driver)
    assert exporter.export_pending().refused == {}
    parent, children = parent_of(client, study), children_of(client, study)
    exported = [history(client, children[trial.id], "val_loss") for trial in life.studies.trials(study.id)]
    assert exported == [[(1, loss)] for values in losses.values() for loss in values]
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert parent.data.metrics["objective_mean"] == pytest.approx(1.6e308)
    table = list(csv.DictReader(artifact(client, parent, "configurations.csv", tmp_path).decode().splitlines()))
    assert [row["objective_std"] for row in table][2] == ""


def test_a_child_run_has_the_whole_training_configuration_and_every_epoch(
    life: Life, exporter: Exporter, client: MlflowClient
) -> None:
    study = life.finished(GRID)
    exporter.export_pending()
    trial = life.studies.trials(study.id)[2]
    run = children_of(client, study)[trial.id]
    spec = parse_spec(study.spec)
    expected = spec.train_config({"lambda": "1/t", "rho": 0.1}, 0).to_mapping()
    assert run.data.params == {name: str(value) for name, value in expected.items()}
    assert run.info.run_name == "λ=1/t ρ=0.1 seed=0"
    assert history(client, run, "val_accuracy") == [(1, pytest.approx(0.6)), (2, pytest.approx(0.7)), (3, 0.8)]
    recorded = [round(result.recorded_at.timestamp() * 1000) for result in life.studies.results(study.id, trial.id)]
    assert [point.timestamp for point in client.get_metric_history(run.info.run_id, "val_loss")] == recorded
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("samstudy.")}
    assert tags == {
        "samstudy.study_id": study.id,
        "samstudy.trial_id": trial.id,
        "samstudy.configuration_id": trial.configuration_id,
        "samstudy.configuration": "2",
        "samstudy.trial": "3",
        "samstudy.seed": "0",
        "samstudy.purpose": "SEARCH",
        "samstudy.state": "SUCCEEDED",
        "samstudy.attempt": "1",
        "samstudy.objective": "0.8",
    }
    assert trial.started_at is not None
    assert trial.finished_at is not None
    assert run.info.start_time == round(trial.started_at.timestamp() * 1000)
    assert run.info.end_time == round(trial.finished_at.timestamp() * 1000)


def test_the_parent_run_has_the_spec_the_best_configuration_and_its_metrics(
    life: Life, exporter: Exporter, client: MlflowClient
) -> None:
    study = life.finished(GRID, description="what λ does")
    exporter.export_pending()
    parent = parent_of(client, study)
    assert parent.info.status == "FINISHED"
    tags, metrics, params = parent.data.tags, parent.data.metrics, parent.data.params
    assert (tags["samstudy.state"], tags["samstudy.reason"]) == ("SUCCEEDED", "SPACE_EXHAUSTED")
    assert (tags["samstudy.owner"], tags["samstudy.label.team"]) == ("local", "vision")
    assert (tags["best.lambda"], tags["best.rho"], tags["best.configuration"]) == ("0.5", "0.1", "1")
    assert metrics["val_accuracy_mean"] == pytest.approx(0.91)
    assert metrics["val_accuracy_std"] == pytest.approx(0.02 / math.sqrt(2))
    assert metrics["val_accuracy_n"] == 2
    assert metrics["objective_mean"] == pytest.approx(0.91)
    assert metrics["val_loss_mean"] == 1.0
    assert params["objective.metric"] == "val_accuracy"
    assert params["train.epochs"] == "3"
    assert "| 0.5 | 0.1 | 91.0 ± 1.4 | 2 |" in tags["mlflow.note.content"]
    assert tags["mlflow.note.content"].startswith("what λ does")


def test_the_parent_run_has_the_files(
    life: Life, exporter: Exporter, client: MlflowClient, tmp_path: Path, undrawn: pytest.MonkeyPatch
) -> None:
    undrawn.undo()
    study = life.finished(GRID)
    exporter.export_pending()
    parent = parent_of(client, study)
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    spec_files = {"spec.yaml", "spec.json"}
    found = {"configurations.csv", "best_configuration.json", "lambda_rho.png", "lambda_rho.html"}
    assert names == spec_files | found
    files = {name: artifact(client, parent, name, tmp_path) for name in names}
    assert parse_spec(yaml.safe_load(files["spec.yaml"])) == parse_spec(json.loads(files["spec.json"]))
    assert json.loads(files["best_configuration.json"])["configuration"]["point"] == {"lambda": 0.5, "rho": 0.1}
    assert files["lambda_rho.png"].startswith(b"\x89PNG")
    assert "91.0 \\u00b1 1.4" in files["lambda_rho.html"].decode()
    rows = list(csv.DictReader(files["configurations.csv"].decode().splitlines()))
    assert [row["lambda"] for row in rows] == ["0.5", "1/t", "0.5", "1/t"]
    assert float(rows[2]["objective_mean"]) == pytest.approx(0.72)
    assert (rows[0]["objective_seed_1"], rows[0]["objective_n"]) == ("0.92", "2")


def test_a_study_of_one_parameter_has_a_figure_too(life: Life, exporter: Exporter, client: MlflowClient) -> None:
    study = life.create(search_space={"rho": {"type": "categorical", "choices": [0.1, 0.2]}})
    driver = life.start(study)
    for trial in life.propose(driver, {"rho": 0.1}):
        life.train(driver, trial, 0.9)
    driver.finish(StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED, known=driver.snapshot().known)
    exporter.export_pending()
    names = {file.path for file in client.list_artifacts(parent_of(client, study).info.run_id)}
    assert {"rho.png", "rho.html"} <= names


def test_every_final_state_can_be_told_apart(
    life: Life, exporter: Exporter, client: MlflowClient, tmp_path: Path
) -> None:
    study = life.create()
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.5, "rho": 0.1}, (0, 1, 2, 3, 4))
    life.train(driver, trials[0], 0.9)
    life.begin(driver, trials[1])
    driver.record([TrialEnded(trials[1].id, 1, TrialState.EARLY_STOPPED, None)])
    life.fail(driver, trials[2])
    life.begin(driver, trials[3])
    driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "2 trials failed", known=driver.snapshot().known)
    exporter.export_pending()
    children = children_of(client, study)
    shown = [children[trial.id] for trial in trials[:4]]
    assert {run.data.params["seed"]: (run.info.status, run.data.tags["samstudy.state"]) for run in shown} == {
        "0": ("FINISHED", "SUCCEEDED"),
        "1": ("FINISHED", "EARLY_STOPPED"),
        "2": ("FAILED", "FAILED"),
        "3": ("KILLED", "CANCELLED"),
    }
    assert trials[4].id not in children  # it never started
    failed = children[trials[2].id]
    assert failed.data.tags["samstudy.error"] == "ValueError: no"
    assert artifact(client, failed, "error-attempt-1.txt", tmp_path) == b"ValueError: no"
    parent = parent_of(client, study)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["samstudy.error"] == "2 trials failed"
    assert parent.data.tags["samstudy.trials.cancelled"] == "2"


@pytest.mark.parametrize("restarted", [False, True])
def test_the_error_of_a_trial_that_was_retried_says_which_attempts_it_was(
    restarted: bool, life: Life, exporter: Exporter, client: MlflowClient, clock: Clock
) -> None:
    study = life.create()
    driver = life.start(study)
    (trial,) = life.propose(driver, {"lambda": 0.5, "rho": 0.1}, (0,))
    life.fail(driver, trial)
    life.succeed(driver)
    exporter.export_pending()
    life.lifecycle.retry(study.id)
    if restarted:
        exporter.start_over()
    driver = life.start(study)
    life.begin(driver, trial, attempt=2)
    driver.record([TrialEnded(trial.id, 2, TrialState.SUCCEEDED, 0.9)])
    life.succeed(driver)
    clock.now = 5.0
    exporter.export_pending()
    run = children_of(client, study)[trial.id]
    assert run.info.status == "FINISHED"
    assert "samstudy.error" not in run.data.tags
    assert [found.path for found in client.list_artifacts(run.info.run_id)] == ["error-attempt-1.txt"]


def test_a_finished_trial_costs_three_calls(life: Life, exporter: Exporter, calls: Counter[str]) -> None:
    life.finished(GRID)
    exporter.export_pending()
    runs = 8 + 1
    assert (calls["create"], calls["log-batch"]) == (runs + 1, runs)  # + 1: the experiment
    assert calls["update"] == runs + 1  # the end of the parent run is known before its metrics are
    assert (calls["get-by-name"], calls["search"]) == (1, 2)  # at the study's end it looks once more
    assert calls["get"] <= 1  # where the artifacts of the parent run go
    before = calls.total()
    exporter.export_pending()
    assert calls.total() == before


def test_writing_again_changes_nothing(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    study = life.finished(GRID)
    exporter.export_pending()
    before = {run.info.run_id: run.to_dictionary() for run in runs_of(client, study)}
    store.forget(study.id)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    after = {run.info.run_id: run.to_dictionary() for run in runs_of(client, study)}
    assert after == before
    assert store.behind() == []
    for run in children_of(client, study).values():
        assert [step for step, _ in history(client, run, "val_accuracy")] == [1, 2, 3]
    assert len(history(client, parent_of(client, study), "val_accuracy_mean")) == 1


def test_what_runs_is_written_now_and_then_and_what_ends_at_once(
    life: Life, exporter: Exporter, client: MlflowClient, clock: Clock
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.begin(driver, first)
    exporter.export_pending()
    assert parent_of(client, study).info.status == "RUNNING"
    assert [run.info.status for run in children_of(client, study).values()] == ["RUNNING"]

    driver.record([EpochReported(first.id, 1, 1, {"val_accuracy": 0.5})])
    clock.now = 1.0
    exporter.export_pending()
    assert history(client, children_of(client, study)[first.id], "val_accuracy") == []
    clock.now = 2.0
    exporter.export_pending()
    assert history(client, children_of(client, study)[first.id], "val_accuracy") == [(1, 0.5)]

    driver.record([EpochReported(first.id, 1, 2, {"val_accuracy": 0.6})])
    driver.record([TrialEnded(first.id, 1, TrialState.SUCCEEDED, 0.6)])
    life.begin(driver, second)
    exporter.export_pending()
    children = children_of(client, study)
    assert history(client, children[first.id], "val_accuracy") == [(1, 0.5), (2, 0.6)]
    assert (children[first.id].info.status, children[second.id].info.status) == ("FINISHED", "RUNNING")

    life.lose(driver, second)
    clock.now = 10.0
    exporter.export_pending()
    assert children_of(client, study)[second.id].info.status == "SCHEDULED"


def test_a_parent_run_that_is_much_work_is_written_less_often_until_its_study_ends(
    life: Life, store: ExportStore, database: Database, client: MlflowClient, clock: Clock, mlflow_server: MlflowServer
) -> None:
    cpu = Clock()

    class Studies(StudyStore):
        def trials(self, study_id: str, **which: Any) -> list[Trial]:
            cpu.now += 0.5
            return super().trials(study_id, **which)

    def shown() -> str:
        exporter.export_pending()
        return parent_of(client, study).data.tags["samstudy.configurations"]

    exporter = Exporter(store, Studies(database), mlflow_server.url, min_interval_s=2.0, clock=clock, cpu_clock=cpu)
    study = life.create()
    driver = life.start(study)
    assert shown() == "0"
    (first,) = life.propose(driver, {"lambda": 0.5, "rho": 0.1}, (0,))
    life.begin(driver, first)
    clock.now = 4.9
    assert shown() == "0"
    assert list(children_of(client, study)) == [first.id]
    assert store.behind() == [study.id]
    clock.now = 5.0
    assert shown() == "1"
    life.propose(driver, {"lambda": 1.0, "rho": 0.1}, (0,))
    life.succeed(driver)
    assert shown() == "2"
    assert parent_of(client, study).info.status == "FINISHED"
    assert store.behind() == []


def test_of_a_study_whose_driver_is_being_started_mlflow_is_asked_nothing(
    life: Life, exporter: Exporter, database: Database, calls: Counter[str]
) -> None:
    before = calls.total()
    assert ReconcilingStore(database).claim(life.create().id, 60)
    exporter.export_pending()
    assert calls.total() == before


def test_a_study_that_waits_is_not_shown(life: Life, exporter: Exporter, client: MlflowClient) -> None:
    study = life.create()
    report = exporter.export_pending()
    assert (report.studies, runs_of(client, study)) == (0, [])


def test_studies_of_one_name_share_an_experiment(life: Life, exporter: Exporter, client: MlflowClient) -> None:
    studies = [life.finished({(0.5, 0.1): (0.9,)}, replicates={"seeds": [0]}) for _ in range(2)]
    exporter.export_pending()
    parents = [parent_of(client, study) for study in studies]
    assert parents[0].info.experiment_id == parents[1].info.experiment_id
    assert parents[0].info.run_id != parents[1].info.run_id


def test_hostile_names_and_values_get_through(life: Life, exporter: Exporter, client: MlflowClient) -> None:
    labels = {"a@b": "x", "a%b": "y", "../../etc": "|z|", "λ/": "ok"}
    study = life.create(labels=labels, name=f"{next(NAMES)} '; DROP 研究", description="| a | <script>")
    driver = life.start(study)
    (trial,) = life.propose(driver, {"lambda": 0.5, "rho": 0.1}, (0,))
    life.begin(driver, trial)
    metrics = {"a@b": 1.0, "a%b": 2.0, "/etc/x": 3.0, "..": 4.0, "m" * 400: 5.0, "loss": math.inf, "val": math.nan}
    driver.record([EpochReported(trial.id, 1, 1, metrics)])
    error = "Traceback " + "x\x00" * 10_000 + "ValueError: \ud800 boom"
    driver.record([TrialEnded(trial.id, 1, TrialState.FAILED, None, error.replace("\ud800", "\ufffd"))])
    driver.finish(StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED, known=driver.snapshot().known)
    report = exporter.export_pending()
    assert report.refused == {}
    run, parent = children_of(client, study)[trial.id], parent_of(client, study)
    assert sorted(run.data.metrics.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert run.data.tags["samstudy.error"].endswith("boom")
    shown = {value for key, value in parent.data.tags.items() if key.startswith("samstudy.label.")}
    assert shown == set(labels.values())


@pytest.mark.parametrize("restarted", [False, True])
def test_a_label_that_a_study_has_no_more_is_taken_off_its_run(
    restarted: bool,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    store: ExportStore,
    clock: Clock,
    mlflow_server: MlflowServer,
) -> None:
    study = life.create(labels={"team": "vision", "stage": "draft", "a%b": "y"})
    life.start(study)
    exporter.export_pending()
    client.delete_tag(parent_of(client, study).info.run_id, "samstudy.label.stage")  # a person was quicker
    client.set_tag(parent_of(client, study).info.run_id, "stage", "a person's own")
    if restarted:
        exporter = Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0)
    for labels in ({"team": "audio"}, {}):
        life.lifecycle.patch(study.id, StudyChanges(labels=labels), if_version=None)
        clock.now += 5.0
        if restarted:
            exporter.start_over()
        exporter.export_pending()
        tags = parent_of(client, study).data.tags
        shown = {name: value for name, value in tags.items() if name.startswith("samstudy.label.")}
        assert shown == {f"samstudy.label.{name}": value for name, value in labels.items()}
        assert tags["stage"] == "a person's own"
    assert store.behind() == []


def test_a_study_that_cannot_be_exported_is_not_in_the_way_of_others(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, database: Database
) -> None:
    spec = {"name": "of another version", "knobs": 1}
    broken, _ = life.studies.create(NewStudy(next(NAMES), "", {}, spec, "local", "digest"))
    life.start(broken)
    sound = life.finished({(0.5, 0.1): (0.9, 0.8)})
    report = exporter.export_pending()
    assert list(report.refused) == [broken.id]
    assert len(children_of(client, sound)) == 2
    assert exporter.export_pending().refused == {}  # not tried again at once


@pytest.mark.parametrize("failure", [requests.ReadTimeout("too slow"), answer(500)])
def test_a_study_whose_calls_fail_is_not_in_the_way_of_newer_ones(
    failure: requests.Response | Exception,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    store: ExportStore,
    clock: Clock,
    network: Network,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, *others = [life.finished({(0.5, 0.1): (0.9, 0.8)}, name=next(NAMES)) for _ in range(3)]

    def fails_for_the_first(path: str, body: str, send: Send) -> requests.Response:
        if path != "log-batch" or first.id not in body:
            return send()
        if isinstance(failure, Exception):
            raise failure
        return failure

    network.append(fails_for_the_first)
    report = exporter.export_pending()
    assert list(report.refused) == store.behind() == [first.id]
    assert [len(children_of(client, study)) for study in others] == [2, 2]
    (line,) = [line.__dict__ for line in caplog.records if line.name == "service.tracking.exporter"]
    assert (line["study_id"], line["trial_id"]) == (first.id, life.studies.trials(first.id)[0].id)
    network.clear()
    assert exporter.export_pending().studies == 0  # not tried again at once
    clock.now = 60.0
    exporter.export_pending()
    assert store.behind() == []
    assert len(children_of(client, first)) == 2


def test_a_study_whose_artifacts_cannot_be_written_is_not_in_the_way_of_newer_ones(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, tmp_path: Path
) -> None:
    first = life.finished({(0.5, 0.1): (0.9, 0.8)}, name=next(NAMES))
    (tmp_path / "file").touch()
    client.create_experiment(first.name, artifact_location=str(tmp_path / "file" / "artifacts"))
    second = life.finished({(0.5, 0.1): (0.9, 0.8)}, name=next(NAMES))
    report = exporter.export_pending()
    assert list(report.refused) == store.behind() == [first.id]
    assert "artifacts cannot be written" in report.refused[first.id]
    assert len(children_of(client, first)) == len(children_of(client, second)) == 2


def test_a_defect_of_ours_in_one_study_is_not_in_the_way_of_newer_ones(
    life: Life, store: ExportStore, database: Database, mlflow_server: MlflowServer
) -> None:
    first, _ = (life.finished({(0.5, 0.1): (0.9, 0.8)}, name=next(NAMES)) for _ in range(2))

    class Studies(StudyStore):
        def configurations(self, study_id: str) -> list[Configuration]:
            if study_id == first.id:
                raise ValueError("a defect")
            return super().configurations(study_id)

    report = Exporter(store, Studies(database), mlflow_server.url, min_interval_s=2.0).export_pending()
    assert report.refused == {first.id: "a defect"}
    assert store.behind() == [first.id]


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_answers_nothing_but_errors_stops_the_round(
    status: int, life: Life, exporter: Exporter, store: ExportStore, network: Network
) -> None:
    studies = [life.finished({(0.5, 0.1): (0.9, 0.8)}, name=next(NAMES)) for _ in range(2)]
    network.append(lambda path, body, send: answer(status))
    with pytest.raises(TrackingUnavailableError, match="does not answer"):
        exporter.export_pending()
    network.clear()
    exporter.export_pending()  # at once
    assert store.behind() == []
    assert len(studies) == 2


def test_an_export_can_be_stopped_and_goes_on_later(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore
) -> None:
    study = life.finished(GRID)
    answers = iter([False, False, False, True])
    exporter.export_pending(lambda: next(answers, True))
    assert len(children_of(client, study)) == 2
    exporter.export_pending()
    assert len(children_of(client, study)) == 8
    assert store.behind() == []


def test_nothing_is_lost_or_doubled_when_mlflow_is_killed_during_an_export(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    store: ExportStore,
    mlflow_server: MlflowServer,
) -> None:
    study = life.finished(GRID)
    asked = 0

    def kill_half_way() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:
            mlflow_server.kill()
        return False

    started = time.monotonic()
    with pytest.raises(TrackingUnavailableError, match="does not answer"):
        exporter.export_pending(kill_half_way)
    with pytest.raises(TrackingUnavailableError):
        exporter.export_pending()
    assert time.monotonic() - started < 5
    assert store.behind() == [study.id]
    mlflow_server.start()
    exporter.export_pending()
    assert store.behind() == []
    assert len(children_of(client, study)) == 8
    for run in children_of(client, study).values():
        assert [step for step, _ in history(client, run, "val_accuracy")] == [1, 2, 3]
        assert run.info.status == "FINISHED"
    assert parent_of(client, study).data.metrics["val_accuracy_mean"] == pytest.approx(0.91)
