"""What MLflow shows after a restore, when it knows more than the store, against MLflow's real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from service.store.backup import restore_backup, write_backup
from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.exporting import ExportStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import EpochReported, TrialEnded
from service.study import Reason, Study, StudyState, TrialState
from service.tracking.exporter import Exporter
from tests.service.conftest import Life
from tests.service.mlflow_server import MlflowServer
from tests.service.tracking.shown import children_of, doubled, history, parent_of, runs_of


class Backup:
    """A backup of the store, which is then lost, and the new store that it is restored into."""

    def __init__(self, lost: Database, new: Database, a_spec: dict[str, Any], mlflow_url: str, file: Path) -> None:
        self._lost, self._new, self._spec = lost, new, a_spec
        self._mlflow_url, self._file = mlflow_url, file

    def write(self) -> None:
        write_backup(self._lost, self._file)

    def restore(self) -> Life:
        """Life goes on in the new store."""
        restore_backup(self._new, self._file)
        return Life(self._new, self._spec)

    def restore_and_start(self, study: Study) -> tuple[Life, DrivingStore]:
        """Life goes on in the new store; the study, which ran at the backup, has its next driver."""
        life, reconciling = self.restore(), ReconcilingStore(self._new)
        for claim in reconciling.overdue_drivers():
            reconciling.lose_driver(claim, max_losses=5)
        return life, life.start(study)

    def exporter(self) -> Exporter:
        """One that knows nothing yet, of the new store."""
        return self._exporter_of(self._new)

    def exporter_of_the_lost_store(self) -> Exporter:
        """One that knows nothing yet, of the store that was backed up."""
        return self._exporter_of(self._lost)

    def behind(self) -> list[str]:
        """The studies of the new store that MLflow does not show as they are."""
        return ExportStore(self._new).behind()

    def _exporter_of(self, database: Database) -> Exporter:
        store, studies = ExportStore(database), Life(database, self._spec).studies
        return Exporter(store, studies, self._mlflow_url, min_interval_s=0.0)


@pytest.fixture
def backup(database: Database, a_spec: dict[str, Any], mlflow_server: MlflowServer, tmp_path: Path) -> Iterator[Backup]:
    new = Database(f"sqlite:///{tmp_path / 'restored.db'}")
    yield Backup(database, new, a_spec, mlflow_server.url, tmp_path / "backup")
    new.dispose()


@pytest.mark.parametrize("rho", [0.2, 0.1])
def test_a_run_of_a_trial_that_a_restored_store_has_lost_is_not_that_of_the_next_with_its_id(
    rho: float,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    """A sampler proposes another point for the same number, or the same one."""
    study = life.create()
    driver = life.start(study)
    life.train(driver, life.propose(driver, {"lambda": 0.5, "rho": 0.3}, (0,))[0], 0.7)
    backup.write()
    (lost,) = life.propose(driver, {"lambda": 0.5, "rho": 0.1}, (0,))
    life.train(driver, lost, 0.9)
    exporter.export_pending()
    parent, children = parent_of(client, study), children_of(client, study)

    life, driver = backup.restore_and_start(study)
    (trial,) = life.propose(driver, {"lambda": 0.5, "rho": rho}, (0,))
    assert trial.id == lost.id
    life.train(driver, trial, 0.6, epochs=2)
    life.succeed(driver)
    again = backup.exporter()
    assert again.export_pending().refused == {}

    after = children_of(client, study)
    assert parent_of(client, study).info.run_id == parent.info.run_id
    assert {t for t in after if after[t].info.run_id != children[t].info.run_id} == {trial.id}
    shown = after[trial.id]
    assert (shown.data.params["rho"], shown.data.tags["samstudy.objective"]) == (str(rho), "0.6")
    assert shown.info.run_name == f"λ=0.5 ρ={rho} seed=0"
    deleted = [run.info.run_id for run in runs_of(client, study, ViewType.DELETED_ONLY)]
    assert deleted == [children[trial.id].info.run_id]
    assert history(client, shown, "val_accuracy") == [(1, pytest.approx(0.5)), (2, pytest.approx(0.6))]


@pytest.mark.parametrize("epochs_done", [2, 3, 5])
def test_epochs_that_a_restored_store_has_lost_are_in_no_run(
    epochs_done: int,
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    """Of a trial that ran at the backup, which has come less far again, as far or farther when MLflow is looked at."""
    study = life.create()
    driver = life.start(study)
    ended, running = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, ended, 0.7)
    life.begin(driver, running)
    driver.record([EpochReported(running.id, 1, 1, {"val_accuracy": 0.1})])
    exporter.export_pending()
    backup.write()
    driver.record([EpochReported(running.id, 1, epoch, {"val_accuracy": 0.2}) for epoch in (2, 3)])
    driver.record([TrialEnded(running.id, 1, TrialState.SUCCEEDED, 0.2)])
    life.succeed(driver)
    backup.exporter_of_the_lost_store().export_pending()
    before = children_of(client, study)
    assert len(history(client, before[running.id], "val_accuracy")) == 3
    client.log_metric(before[ended.id].info.run_id, "of_my_own", 1.0, step=10**6)

    life, driver = backup.restore_and_start(study)
    life.begin(driver, running, attempt=2)
    driver.record([EpochReported(running.id, 2, epoch, {"val_accuracy": 0.9}) for epoch in range(2, epochs_done + 1)])
    again = backup.exporter()
    assert again.export_pending().refused == {}
    after = children_of(client, study)
    assert history(client, after[running.id], "val_accuracy") == [
        (1, pytest.approx(0.1)),
        *((epoch, pytest.approx(0.9)) for epoch in range(2, epochs_done + 1)),
    ]
    assert after[running.id].info.status == "RUNNING"
    assert after[ended.id].info.run_id == before[ended.id].info.run_id


def test_runs_of_trials_that_a_restored_store_has_lost_are_deleted_though_their_study_had_ended(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    study = life.finished({(0.5, 0.1): (0.9, 0.8)})
    exporter.export_pending()
    backup.write()
    before = children_of(client, study)
    lost = doubled(client, before[life.studies.trials(study.id)[0].id])
    client.set_tag(lost, "samstudy.trial_id", f"{study.id}-after-the-backup")

    life = backup.restore()
    backup.exporter().export_pending()
    after = children_of(client, study)
    assert {t: run.info.run_id for t, run in after.items()} == {t: run.info.run_id for t, run in before.items()}
    assert [run.info.run_id for run in runs_of(client, study, ViewType.DELETED_ONLY)] == [lost]
    assert backup.behind() == []


def test_a_parent_run_shows_the_end_that_a_restored_store_knows(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    """The study was extended since the backup, found something better, and failed."""
    study = life.finished({(0.5, 0.1): (0.5, 0.6)}, budget={"max_trials": 2})
    exporter.export_pending()
    backup.write()
    life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
    driver = life.start(study)
    better = life.propose(driver, {"lambda": 1.0, "rho": 0.2})
    for trial in better:
        life.train(driver, trial, 0.9)
    driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "1 trial failed", known=driver.snapshot().known)
    exporter.export_pending()
    later = parent_of(client, study)
    assert (later.data.metrics["objective_mean"], later.data.tags["samstudy.error"]) == (0.9, "1 trial failed")
    before = children_of(client, study)

    life = backup.restore()
    assert backup.exporter().export_pending().refused == {}
    shown, after = parent_of(client, study), children_of(client, study)
    assert (shown.info.status, shown.data.metrics["objective_mean"]) == ("FINISHED", pytest.approx(0.55))
    assert shown.data.tags["best.configuration"] == "1"
    assert "samstudy.error" not in shown.data.tags
    assert shown.info.run_id == life.studies.get(study.id).mlflow_run_id
    assert {t: run.data.tags["mlflow.parentRunId"] for t, run in after.items()} == dict.fromkeys(
        before.keys() - {trial.id for trial in better}, shown.info.run_id
    )
    assert all(run.info.run_id == before[t].info.run_id for t, run in after.items())
    assert backup.behind() == []


def test_a_parent_run_has_no_best_where_a_restored_study_is_cancelled_before_it_has_one(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    study = life.create()
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    exporter.export_pending()
    backup.write()
    for trial in trials:
        life.train(driver, trial, 0.7)
    life.succeed(driver)
    exporter.export_pending()
    assert "objective_mean" in parent_of(client, study).data.metrics

    life, driver = backup.restore_and_start(study)
    life.lifecycle.cancel(study.id)
    driver.finish(StudyState.CANCELLED, Reason.USER, known=driver.snapshot().known)
    backup.exporter().export_pending()
    shown = parent_of(client, study)
    assert (shown.info.status, shown.data.metrics) == ("KILLED", {})
    assert [name for name in shown.data.tags if name.startswith("best.")] == []
    assert children_of(client, study) == {}


def test_a_run_of_a_trial_that_has_not_begun_in_a_restored_store_is_deleted(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    study = life.create()
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    exporter.export_pending()
    backup.write()
    life.begin(driver, second)
    backup.exporter_of_the_lost_store().export_pending()
    assert children_of(client, study)[second.id].info.status == "RUNNING"

    life, driver = backup.restore_and_start(study)
    life.lifecycle.stop(study.id)
    driver.leave()
    backup.exporter().export_pending()
    assert {t: run.info.status for t, run in children_of(client, study).items()} == {first.id: "FINISHED"}
    assert backup.behind() == []


def test_the_run_of_a_trial_that_began_again_since_the_backup_shows_what_a_restored_store_knows(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    study = life.create(budget={"max_trials": 2})
    driver = life.start(study)
    first, second = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.train(driver, first, 0.9)
    life.begin(driver, second)
    driver.record([EpochReported(second.id, 1, 1, {"val_accuracy": 0.1})])
    life.lifecycle.cancel(study.id)
    driver.finish(StudyState.CANCELLED, Reason.USER, known=driver.snapshot().known)
    exporter.export_pending()
    backup.write()
    life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
    driver = life.start(study)
    life.begin(driver, second, 2)
    exporter.export_pending()
    assert children_of(client, study)[second.id].info.status == "RUNNING"

    life = backup.restore()
    backup.exporter().export_pending()
    run = children_of(client, study)[second.id]
    tags = run.data.tags
    assert (run.info.status, tags["samstudy.state"], tags["samstudy.attempt"]) == ("KILLED", "CANCELLED", "1")
    assert backup.behind() == []


def test_runs_of_a_study_whose_start_a_restored_store_has_lost_are_deleted(
    life: Life,
    exporter: Exporter,
    client: MlflowClient,
    backup: Backup,
) -> None:
    """Nobody may start it for long: it is paused, say."""
    study = life.create()
    backup.write()
    life.begin(driver := life.start(study), life.propose(driver, {"lambda": 0.5, "rho": 0.1})[0])
    exporter.export_pending()
    assert parent_of(client, study).info.status == "RUNNING"

    life = backup.restore()
    life.lifecycle.pause(study.id)
    again = backup.exporter()
    again.export_pending()
    assert runs_of(client, study) == []
    assert backup.behind() == []
    life.lifecycle.resume(study.id)
    life.start(study)
    again.export_pending()
    assert parent_of(client, study).info.status == "RUNNING"
