"""The runs of a study are found again, made anew and never doubled, against MLflow's real server."""

from __future__ import annotations

import contextlib
import math

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import EpochReported, TrialEnded
from service.study import Scalar, TrialState
from service.tracking.exporter import Exporter, ExportReport, TrackingUnavailableError
from service.tracking.runs import TRIAL_ID
from tests.service.conftest import Life
from tests.service.mlflow_server import MlflowServer
from tests.service.tracking.shown import (
    Clock,
    Network,
    Send,
    answer,
    children_of,
    doubled,
    history,
    parent_of,
    runs_of,
)

GRID = {(0.5, 0.1): (0.90, 0.92), ("1/t", 0.1): (0.80, 0.82), (0.5, 0.2): (0.70, 0.74), ("1/t", 0.2): (0.60, 0.62)}


class CrashError(BaseException):
    """What ends the process between two lines."""


@pytest.mark.parametrize("lost", ["set_study_run", "set_trial_run", "trial_exported", "study_exported"])
def test_a_crash_doubles_no_run(
    lost: str,
    life: Life,
    store: ExportStore,
    database: Database,
    client: MlflowClient,
    mlflow_server: MlflowServer,
) -> None:
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})

    def crash(*_: object, **__: object) -> None:
        raise CrashError

    dying = type("Dying", (ExportStore,), {lost: crash})(database)
    with pytest.raises(CrashError):
        Exporter(dying, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    assert store.behind() == []
    assert len(children_of(client, study)) == 2
    assert parent_of(client, study).info.status == "FINISHED"
    for run in children_of(client, study).values():
        assert [step for step, _ in history(client, run, "val_loss")] == [1, 2, 3]
        assert run.data.params["epochs"] == "3"


def test_surplus_runs_are_deleted_and_those_that_the_store_remembers_stay(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    exporter.export_pending()
    parent, child = parent_of(client, study), children_of(client, study)[first.id]
    surplus = {doubled(client, parent), doubled(client, child)}
    life.train(driver, second, 0.8)
    life.succeed(driver)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    assert parent_of(client, study).info.run_id == parent.info.run_id
    assert children_of(client, study)[first.id].info.run_id == child.info.run_id
    assert {run.info.run_id for run in runs_of(client, study, ViewType.DELETED_ONLY)} == surplus
    assert store.behind() == []


def test_of_runs_that_the_store_does_not_remember_the_oldest_stays(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})
    exporter.export_pending()
    parent, children = parent_of(client, study), children_of(client, study)
    older = {doubled(client, run) for run in (parent, *children.values())}
    store.forget(study.id)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    kept = {parent_of(client, study).info.run_id, *(run.info.run_id for run in children_of(client, study).values())}
    assert kept == older
    assert parent_of(client, study).info.status == "FINISHED"


@pytest.mark.parametrize("late", ["parent", "child"])
def test_a_run_whose_creation_timed_out_and_came_true_later_is_deleted(
    late: str,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    store: ExportStore,
    clock: Clock,
    network: Network,
) -> None:
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})
    pending: list[Send] = []

    def times_out_once(path: str, body: str, send: Send) -> requests.Response:
        if path != "create" or study.id not in body or ("samstudy.trial_id" in body) != (late == "child"):
            return send()
        if not pending:
            pending.append(send)
            raise requests.ReadTimeout("too slow")
        created = send()
        pending[0]()  # after the look for what is there
        network.clear()
        return created

    network.append(times_out_once)
    exporter.export_pending()
    assert store.behind() == [study.id]
    clock.now = 60.0
    exporter.export_pending()
    assert store.behind() == []
    assert len(children_of(client, study)) == 2
    assert parent_of(client, study).info.run_id == life.studies.get(study.id).mlflow_run_id
    assert len(runs_of(client, study, ViewType.DELETED_ONLY)) == 1


@pytest.mark.parametrize(
    ("path", "of_trial"),
    [("update", False), ("log-batch", False), ("update", True), ("log-batch", True), ("create", True)],
)
def test_a_request_that_mlflow_carries_out_after_everything_is_written_is_mended(
    path: str,
    of_trial: bool,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    store: ExportStore,
    clock: Clock,
    network: Network,
) -> None:
    """It timed out here, and one of the server's processes had it all along."""
    study = life.create()
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    for trial in trials:
        life.begin(driver, trial)
    if path != "create":
        exporter.export_pending()
        clock.now += 10
    named = TRIAL_ID  # of the run that is created
    if path != "create":
        run = children_of(client, study)[trial.id] if of_trial else parent_of(client, study)
        named = f'"run_id": "{run.info.run_id}"'
    late: list[Send] = []

    def times_out_once(asked: str, body: str, send: Send) -> requests.Response:
        if late or asked != path or named not in body:
            return send()
        late.append(send)
        raise requests.ReadTimeout("too slow")

    network.append(times_out_once)
    driver.record([EpochReported(trial.id, 1, 1, {"val_accuracy": 0.5}) for trial in trials])
    exporter.export_pending()
    driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.5) for trial in trials])
    life.succeed(driver)
    while store.behind():
        clock.now += 60
        exporter.export_pending()
    assert len(late) == 1
    late[0]()
    clock.now += 60
    report = exporter.export_pending()
    assert (report.studies, report.trials) == (1, 1 if of_trial else 0)  # what else there is stays as it is
    assert store.behind() == []
    children = children_of(client, study).values()
    assert len(children) == 2
    shown = {(run.info.status, run.data.tags["samstudy.state"]) for run in (parent_of(client, study), *children)}
    assert shown == {("FINISHED", "SUCCEEDED")}
    clock.now += 600
    assert exporter.export_pending() == ExportReport()


def test_what_people_log_into_a_run_deletes_it_not(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    for trial in (first, second):
        life.begin(driver, trial)
        driver.record([EpochReported(trial.id, 1, 1, {"val_accuracy": 0.5, "train_loss": 1.0})])
    exporter.export_pending()
    before = children_of(client, study)
    client.log_metric(before[first.id].info.run_id, "val_accuracy", 0.99, step=100)
    client.log_metric(before[second.id].info.run_id, "of_my_own", 0.99, step=100)
    driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.5) for trial in (first, second)])
    life.succeed(driver)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=0.0).export_pending()
    after = children_of(client, study)
    assert {t: run.info.run_id for t, run in after.items()} == {t: run.info.run_id for t, run in before.items()}


def test_the_run_of_a_study_that_ended_before_it_started_stays_when_it_is_reopened(
    life: Life, exporter: Exporter, client: MlflowClient, database: Database
) -> None:
    """Its first driver could not be started."""
    study = life.create(budget={"max_trials": 2})
    reconciling = ReconcilingStore(database)
    claim = reconciling.claim(study.id, 60)
    assert claim is not None
    exporter.export_pending()
    reconciling.give_back(claim, "the cluster takes no jobs")
    exporter.export_pending()
    assert runs_of(client, study) == []
    life.lifecycle.cancel(study.id)
    exporter.export_pending()
    ended = parent_of(client, study)
    life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
    exporter.export_pending()
    reopened = parent_of(client, study)
    assert (ended.info.status, reopened.info.status) == ("KILLED", "SCHEDULED")
    assert reopened.info.run_id == ended.info.run_id == life.studies.get(study.id).mlflow_run_id


def test_what_people_add_to_runs_stays_whatever_is_written_later(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    """Metrics by a name of ours, as of an evaluation of their own, and tags that look like ours."""
    study = life.finished({(0.5, 0.1): (0.9, 0.8)}, budget={"max_trials": 2})
    exporter.export_pending()
    parent = parent_of(client, study)
    child, *_ = children_of(client, study).values()
    client.log_metric(parent.info.run_id, "val_accuracy_mean", 0.99)
    client.log_metric(parent.info.run_id, "test_accuracy_mean", 0.93)
    mine = {"best.of_week": "yes", "samstudy.label.mine": "x"}
    client.set_tag(parent.info.run_id, "best.of_week", "yes")
    for name, value in mine.items():
        client.set_tag(child.info.run_id, name, value)
    exporter.start_over()
    store.forget(study.id)
    exporter.export_pending()
    life.lifecycle.patch(study.id, StudyChanges(labels={"a": "b"}, budget={"max_trials": 4}), if_version=None)
    driver = life.start(study)
    for trial in life.propose(driver, {"lambda": 1.0, "rho": 0.1}):
        life.train(driver, trial, 0.95)
    life.succeed(driver)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=0.0).export_pending()
    shown = parent_of(client, study)
    assert shown.info.run_id == parent.info.run_id
    assert (shown.data.tags["best.of_week"], shown.data.tags["samstudy.label.a"]) == ("yes", "b")
    assert shown.data.metrics["test_accuracy_mean"] == 0.93
    assert shown.data.metrics["objective_mean"] == 0.95
    tags = client.get_run(child.info.run_id).data.tags
    assert {name: tags.get(name) for name in mine} == mine
    assert runs_of(client, study, ViewType.DELETED_ONLY) == []


@pytest.mark.parametrize("missing", [{}, {"bound": math.inf}])
def test_a_parent_run_shows_no_metric_of_an_earlier_best(
    missing: dict[str, float], life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore
) -> None:
    """Not every configuration reports every metric: a bound, say, is there where theory's steps are."""
    study = life.create(budget={"max_trials": 2})

    def go(point: dict[str, Scalar], **metrics: float) -> Run:
        driver = life.start(study)
        for trial in life.propose(driver, point):
            life.begin(driver, trial)
            driver.record([EpochReported(trial.id, 1, 3, metrics)])
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, metrics["val_accuracy"])])
        life.succeed(driver)
        exporter.export_pending()
        assert store.behind() == []
        return parent_of(client, study)

    first = go({"lambda": 0.5, "rho": 0.1}, val_accuracy=0.5, bound=7.0)
    assert first.data.metrics["bound_mean"] == 7.0
    client.log_metric(first.info.run_id, "of_my_own_mean", 1.0)
    life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
    worse = go({"lambda": 0.2, "rho": 0.1}, val_accuracy=0.4)
    assert worse.info.run_id == first.info.run_id
    assert worse.data.metrics == {**first.data.metrics, "of_my_own_mean": 1.0}
    life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 6}), if_version=None)
    better = go({"lambda": 1.0, "rho": 0.1}, val_accuracy=0.9, **missing)
    assert better.data.metrics["objective_mean"] == 0.9
    assert "bound_mean" not in better.data.metrics
    assert better.info.run_id == life.studies.get(study.id).mlflow_run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in children_of(client, study).values()} == {better.info.run_id}


@pytest.mark.parametrize("started_over", [False, True])
def test_a_parent_run_whose_end_was_cut_off_shows_no_metric_of_it_after_another_end(
    started_over: bool,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    store: ExportStore,
    network: Network,
    clock: Clock,
) -> None:
    study = life.create(budget={"max_trials": 2})
    driver = life.start(study)
    exporter.export_pending()

    def train(point: dict[str, Scalar], **metrics: float) -> None:
        for trial in life.propose(driver, point):
            life.begin(driver, trial)
            driver.record([EpochReported(trial.id, 1, 3, metrics)])
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, metrics["val_accuracy"])])
        life.succeed(driver)

    parent_id = life.studies.get(study.id).mlflow_run_id
    train({"lambda": 0.5, "rho": 0.1}, val_accuracy=0.5, bound=7.0)

    def fails_at_the_end(path: str, body: str, send: Send) -> requests.Response:
        return answer(500) if path == "update" and "FINISHED" in body and str(parent_id) in body else send()

    network.append(fails_at_the_end)
    with contextlib.suppress(TrackingUnavailableError):
        exporter.export_pending()
    network.clear()
    assert parent_of(client, study).data.metrics["bound_mean"] == 7.0
    if started_over:
        exporter.start_over()
    life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
    driver = life.start(study)
    train({"lambda": 1.0, "rho": 0.1}, val_accuracy=0.9)
    clock.now += 100
    exporter.export_pending()
    assert store.behind() == []
    shown = parent_of(client, study)
    assert (shown.info.status, shown.data.metrics["objective_mean"]) == ("FINISHED", 0.9)
    assert "bound_mean" not in shown.data.metrics


def test_a_run_that_somebody_deletes_while_its_study_runs_is_there_at_its_end(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, clock: Clock
) -> None:
    study = life.create()
    driver = life.start(study)
    for trial in life.propose(driver, {"lambda": 0.5, "rho": 0.1}):
        life.train(driver, trial, 0.9)
    exporter.export_pending()
    client.delete_run(next(iter(children_of(client, study).values())).info.run_id)
    life.succeed(driver)
    for _ in range(3):
        clock.now += 100
        exporter.export_pending()
    assert store.behind() == []
    assert {run.info.status for run in children_of(client, study).values()} == {"FINISHED"}
    assert len(children_of(client, study)) == 2


def test_a_run_that_has_another_point_than_its_trial_is_mended_when_runs_are_written_anew(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})
    exporter.export_pending()
    before = children_of(client, study)
    first, second = life.studies.trials(study.id)
    wrong = before[first.id]
    client.delete_run(wrong.info.run_id)
    mixed = doubled(client, wrong)
    client.log_param(mixed, "rho", "0.3")
    store.set_trial_run(first.id, mixed)
    store.forget(study.id)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    after = children_of(client, study)
    assert after[first.id].data.params["rho"] == "0.1"
    assert [len(history(client, after[trial.id], "val_accuracy")) for trial in (first, second)] == [3, 3]
    assert after[second.id].info.run_id == before[second.id].info.run_id
    assert store.behind() == []


@pytest.mark.parametrize("deleted", ["child", "parent"])
def test_a_deleted_run_is_made_anew_once_there_is_something_to_write(
    deleted: str, life: Life, exporter: Exporter, client: MlflowClient, clock: Clock
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    life.begin(driver, second)
    exporter.export_pending()
    run = parent_of(client, study) if deleted == "parent" else children_of(client, study)[second.id]
    client.delete_run(run.info.run_id)
    driver.record([EpochReported(second.id, 1, 1, {"val_accuracy": 0.7})])
    driver.record([TrialEnded(second.id, 1, TrialState.SUCCEEDED, 0.7)])
    life.succeed(driver)
    clock.now = 5.0
    exporter.export_pending()
    parent, children = parent_of(client, study), children_of(client, study)
    assert run.info.run_id not in {parent.info.run_id, *(child.info.run_id for child in children.values())}
    assert {child.data.tags["mlflow.parentRunId"] for child in children.values()} == {parent.info.run_id}
    assert [len(history(client, children[trial.id], "val_accuracy")) for trial in (first, second)] == [3, 1]
    assert parent.info.status == "FINISHED"


def test_a_deleted_run_is_made_anew_although_nothing_of_its_trial_is_to_be_written(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, mlflow_server: MlflowServer
) -> None:
    """As where the process ended after it had deleted runs that tell too much, and before it wrote them anew."""
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})
    exporter.export_pending()
    first, second = life.studies.trials(study.id)
    before = children_of(client, study)
    client.delete_run(before[first.id].info.run_id)
    life.lifecycle.patch(study.id, StudyChanges(labels={"paper": "yes"}), if_version=None)
    Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0).export_pending()
    after = children_of(client, study)
    assert [len(history(client, after[trial.id], "val_accuracy")) for trial in (first, second)] == [3, 3]
    assert after[first.id].info.run_id != before[first.id].info.run_id
    assert after[second.id].info.run_id == before[second.id].info.run_id
    assert store.behind() == []


def test_a_deleted_experiment_stays_deleted(life: Life, exporter: Exporter, client: MlflowClient) -> None:
    first = life.finished({(0.5, 0.1): (0.9, 0.8)})
    exporter.export_pending()
    client.delete_experiment(parent_of(client, first).info.experiment_id)
    second = life.finished({(0.5, 0.1): (0.9, 0.8)})
    exporter.export_pending()
    assert client.get_experiment(parent_of(client, second).info.experiment_id).name == f"{first.name} (2)"
    assert runs_of(client, first) == []


def test_an_experiment_deleted_while_its_study_runs_is_followed_by_another(
    life: Life, exporter: Exporter, client: MlflowClient, clock: Clock
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    exporter.export_pending()
    client.delete_experiment(parent_of(client, study).info.experiment_id)
    life.train(driver, second, 0.8)
    clock.now = 5.0
    exporter.export_pending()
    assert len(children_of(client, study)) == 2
    assert client.get_experiment(parent_of(client, study).info.experiment_id).name == f"{study.name} (2)"


@pytest.mark.parametrize("deleted", ["nothing", "child", "parent"])
def test_the_runs_of_a_study_stay_in_their_experiment_when_a_person_renames_it(
    deleted: str, life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore, clock: Clock
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    life.begin(driver, second)
    exporter.export_pending()
    parent, child = parent_of(client, study), children_of(client, study)[second.id]
    experiment = parent.info.experiment_id
    client.rename_experiment(experiment, f"{study.name} (of the old paper)")
    if deleted == "nothing":
        store.forget(study.id)
    else:
        client.delete_run((parent if deleted == "parent" else child).info.run_id)
    driver.record([TrialEnded(second.id, 1, TrialState.SUCCEEDED, 0.7)])
    life.succeed(driver)
    clock.now = 5.0
    exporter.export_pending()
    runs = runs_of(client, study)
    assert [(run.info.experiment_id, run.info.status) for run in runs] == [(experiment, "FINISHED")] * 3
    assert life.studies.get(study.id).mlflow_experiment_id == experiment
    assert client.get_experiment_by_name(study.name) is None
    assert store.behind() == []


def test_a_lost_database_of_mlflow_is_filled_again(
    life: Life, exporter: Exporter, client: MlflowClient, store: ExportStore
) -> None:
    study = life.finished(GRID)
    store.set_study_run(study.id, experiment_id="0", run_id="0123456789abcdef0123456789abcdef")
    for trial in life.studies.trials(study.id):
        store.set_trial_run(trial.id, "fedcba9876543210fedcba9876543210")
    exporter.export_pending()
    assert len(children_of(client, study)) == 8
    assert client.get_experiment(parent_of(client, study).info.experiment_id).name == study.name
    assert store.behind() == []
