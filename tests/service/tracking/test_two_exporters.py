"""An exporter that was held up until another controller led: whatever it still writes to MLflow is put right."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import requests
from mlflow import MlflowClient

from service.store.database import Database
from service.store.exporting import ExportStore, Lead, LeadLostError
from service.store.reconciling import ReconcilingStore
from service.store.reports import EpochReported, TrialEnded
from service.study import Study, StudyState, TrialState
from service.tracking.exporter import Exporter
from tests.service.conftest import Life
from tests.service.mlflow_server import MlflowServer
from tests.service.tracking.shown import Network, Send, children_of, history, parent_of, runs_of

LEASE = "controller"


@pytest.fixture
def exporter_of(database: Database, life: Life, mlflow_server: MlflowServer) -> Callable[[str], Exporter]:
    """The exporter of a controller, which takes the lead from whoever has it."""

    def make(holder: str) -> Exporter:
        with database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM leases")
        assert ReconcilingStore(database).lead(LEASE, holder, 60)
        store = ExportStore(database, Lead(LEASE, holder))
        return Exporter(store, life.studies, mlflow_server.url, min_interval_s=0.0)

    return make


def export_whole(exporter: Exporter, life: Life, study: Study) -> None:
    while exporter.export_pending().more or not life.studies.get(study.id).is_exported:
        pass


def everything_is_right(life: Life, client: MlflowClient, study: Study, *, trials: int) -> None:
    now = life.studies.get(study.id)
    assert now.is_exported
    assert len(runs_of(client, study)) == 1 + trials
    parent, children = parent_of(client, study), children_of(client, study)
    assert (parent.info.run_id, parent.info.status) == (now.mlflow_run_id, "FINISHED")
    assert parent.data.tags["samstudy.state"] == StudyState.SUCCEEDED
    for trial in life.studies.trials(study.id):
        run = children[trial.id]
        assert (run.info.run_id, run.info.status) == (trial.mlflow_run_id, "FINISHED")
        assert run.data.tags["samstudy.state"] == trial.state
        results = [
            (result.epoch, result.metrics["val_accuracy"]) for result in life.studies.results(study.id, trial.id)
        ]
        assert history(client, run, "val_accuracy") == results


@pytest.mark.parametrize(("call", "number"), [("create", 2), ("create", 3), ("log-batch", 1), ("log-batch", 2)])
def test_a_late_call_neither_doubles_a_run_nor_leaves_one_running(
    call: str,
    number: int,
    life: Life,
    exporter_of: Callable[[str], Exporter],
    client: MlflowClient,
    network: Network,
    database: Database,
) -> None:
    """It stalls before it makes the parent run, a child run, or writes one of them, until its study has ended."""
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.begin(driver, first)
    driver.record([EpochReported(first.id, 1, 1, {"val_accuracy": 0.5})])
    calls = 0
    stalled = threading.Event()

    def stall(path: str, _body: str, send: Send) -> requests.Response:
        nonlocal calls
        calls += path == call
        if path != call or calls != number or stalled.is_set():
            return send()
        stalled.set()
        driver.record([EpochReported(first.id, 1, epoch, {"val_accuracy": 0.5 + epoch / 10}) for epoch in (2, 3)])
        driver.record([TrialEnded(first.id, 1, TrialState.SUCCEEDED, 0.8)])
        life.train(driver, second, 0.8)
        life.succeed(driver)
        export_whole(exporter_of("other"), life, study)
        return send()

    late = exporter_of("late")
    network.append(stall)
    late.export_pending()
    assert stalled.is_set()
    network.clear()
    assert not life.studies.get(study.id).is_exported  # what was written late counts as behind
    export_whole(exporter_of("other"), life, study)
    everything_is_right(life, client, study, trials=2)


def test_a_late_look_deletes_no_run_of_a_study_that_was_deleted_since(
    life: Life,
    exporter_of: Callable[[str], Exporter],
    client: MlflowClient,
    network: Network,
    database: Database,
) -> None:
    """Its user wanted the runs to stay. The late one does not find its trials in the store, but their runs."""
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})
    stalled = threading.Event()

    def stall(path: str, body: str, send: Send) -> requests.Response:
        if path != "search" or study.id not in body or stalled.is_set():
            return send()
        stalled.set()
        export_whole(exporter_of("other"), life, study)
        life.lifecycle.delete(study.id, delete_runs=False)
        return send()

    late = exporter_of("late")
    network.append(stall)
    late.export_pending()
    assert stalled.is_set()
    network.clear()
    assert len(runs_of(client, study)) == 3


def test_watermarks_are_refused_to_one_that_does_not_lead(life: Life, database: Database) -> None:
    study = life.finished({(0.5, 0.1): (0.9,)})
    (trial,) = life.studies.trials(study.id)
    ReconcilingStore(database).lead(LEASE, "other", 60)
    late = ExportStore(database, Lead(LEASE, "late"))
    for write in (
        lambda: late.set_study_run(study.id, experiment_id="1", run_id="r"),
        lambda: late.set_trial_run(trial.id, "r"),
        lambda: late.trial_exported(trial.id, revision=1, epoch=3),
        lambda: late.study_exported(study.id, revision=1),
        lambda: late.check_lead(study.id),
    ):
        before = life.studies.get(study.id)
        with pytest.raises(LeadLostError):
            write()
        assert life.studies.get(study.id) == before.model_copy(update={"revision": before.revision + 1})
    assert life.studies.trial(study.id, trial.id) == trial
