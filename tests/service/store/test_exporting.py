from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete, text

from service.store import records, tables
from service.store.database import Database
from service.store.exporting import ExportStore, Lead, LeadLostError, StudyGoneError
from service.store.reconciling import ReconcilingStore
from service.store.reports import EpochReported

on_postgresql = pytest.mark.parametrize("store_kind", ["postgresql"])


def exported(stores: Any, study_id: str) -> None:
    """What an exporter does: everything, then the watermarks."""
    backlog = stores.exporting.backlog(study_id, max_trials=100)
    for behind in backlog.trials:
        epoch = behind.results[-1].epoch if behind.results else behind.exported_epoch
        stores.exporting.set_trial_run(behind.trial.id, f"run of {behind.trial.id}")
        stores.exporting.trial_exported(behind.trial.id, revision=behind.revision, epoch=epoch)
    stores.exporting.study_exported(study_id, revision=backlog.revision)


def epochs_behind(stores: Any, study_id: str) -> dict[str, list[int]]:
    backlog = stores.exporting.backlog(study_id, max_trials=100)
    return {behind.trial.id: [result.epoch for result in behind.results] for behind in backlog.trials}


def waits_for_a_lock(database: Database) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.asking() as connection:
        return bool(connection.execute(text(waiting)).scalar_one())


def test_a_new_study_is_behind(stores: Any) -> None:
    first, second = stores.create(), stores.create()
    assert stores.exporting.behind() == [first.id, second.id]
    exported(stores, first.id)
    assert stores.exporting.behind() == [second.id]


def test_a_backlog_has_what_is_missing_and_no_more(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial, quiet = stores.begin(driver), stores.begin(driver)
    stores.report(driver, trial, 1)
    assert epochs_behind(stores, study.id) == {trial.id: [1], quiet.id: []}
    exported(stores, study.id)
    assert epochs_behind(stores, study.id) == {}
    driver.record([EpochReported(trial.id, 1, epoch, {"val_loss": 0.1}) for epoch in (2, 3)])
    assert stores.exporting.behind() == [study.id]
    assert epochs_behind(stores, study.id) == {trial.id: [2, 3]}
    (behind,) = stores.exporting.backlog(study.id, max_trials=100).trials
    assert behind.exported_epoch == 1
    assert behind.configuration.id == trial.configuration_id
    assert behind.trial == stores.studies.trial(study.id, trial.id)


def test_every_change_puts_a_study_behind(stores: Any) -> None:
    study = stores.create()
    exported(stores, study.id)
    driver = stores.drive(study)
    assert stores.exporting.behind() == [study.id]
    exported(stores, study.id)
    (trial,) = stores.propose(driver)
    assert stores.exporting.behind() == [study.id]
    assert list(epochs_behind(stores, study.id)) == [trial.id]
    exported(stores, study.id)
    stores.finish(driver)
    assert stores.exporting.behind() == [study.id]
    assert list(epochs_behind(stores, study.id)) == [trial.id]  # it was cancelled


def test_a_heartbeat_alone_puts_nothing_behind(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    exported(stores, study.id)
    driver.heartbeat(60)
    assert stores.exporting.behind() == []


def test_the_requeueing_of_a_lost_driver_is_exported(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study, lease_s=-1)
    exported(stores, study.id)
    stores.lose(claim)
    assert stores.exporting.behind() == [study.id]


def test_a_change_during_an_export_is_not_lost(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    stores.report(driver, trial, 1)
    backlog = stores.exporting.backlog(study.id, max_trials=100)
    stores.report(driver, trial, 2)  # while MLflow is being written
    (behind,) = backlog.trials
    stores.exporting.set_trial_run(trial.id, "child")
    stores.exporting.trial_exported(trial.id, revision=behind.revision, epoch=1)
    stores.exporting.study_exported(study.id, revision=backlog.revision)
    assert stores.exporting.behind() == [study.id]
    assert epochs_behind(stores, study.id) == {trial.id: [2]}


def test_a_backlog_may_come_in_parts(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trials = [stores.begin(driver) for _ in range(3)]
    backlog = stores.exporting.backlog(study.id, max_trials=2)
    assert [behind.trial.id for behind in backlog.trials] == [trial.id for trial in trials[:2]]


def test_trials_that_run_hide_none_that_is_due_at_once(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    running = [stores.begin(driver) for _ in range(2)]
    exported(stores, study.id)
    new, ended = stores.begin(driver), stores.begin(driver)
    stores.succeed(driver, ended)
    for trial in running:
        stores.report(driver, trial, 1)
    backlog = stores.exporting.backlog(study.id, max_trials=2)
    assert [behind.trial.id for behind in backlog.trials] == [ended.id, new.id]
    whole = stores.exporting.backlog(study.id, max_trials=5)
    assert [behind.trial.id for behind in whole.trials] == [trial.id for trial in (ended, new, *running)]


def test_writing_a_run_down_puts_nothing_behind(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    exported(stores, study.id)
    stores.exporting.set_study_run(study.id, experiment_id="1", run_id="parent")
    stores.exporting.set_trial_run(trial.id, "child")
    assert stores.exporting.behind() == []
    parent = stores.studies.get(study.id)
    assert (parent.mlflow_experiment_id, parent.mlflow_run_id) == ("1", "parent")
    assert stores.studies.trial(study.id, trial.id).mlflow_run_id == "child"


def test_a_forgotten_study_is_behind_with_everything(stores: Any) -> None:
    study, other = stores.create(), stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    for epoch in (1, 2):
        stores.report(driver, trial, epoch)
    exported(stores, study.id)
    exported(stores, other.id)
    stores.exporting.set_study_run(study.id, experiment_id="1", run_id="parent")
    stores.exporting.forget(study.id)
    assert stores.exporting.behind() == [study.id]
    assert epochs_behind(stores, study.id) == {trial.id: [1, 2]}
    forgotten = stores.studies.get(study.id)
    assert (forgotten.mlflow_experiment_id, forgotten.mlflow_run_id) == ("1", None)


@pytest.mark.parametrize("exported_before", [False, True])
def test_a_study_forgotten_during_an_export_stays_behind_with_everything(stores: Any, exported_before: bool) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    stores.report(driver, trial, 1)
    if exported_before:
        exported(stores, study.id)
    stores.report(driver, trial, 2)
    backlog = stores.exporting.backlog(study.id, max_trials=100)
    stores.exporting.set_study_run(study.id, experiment_id="1", run_id="parent")
    stores.exporting.set_trial_run(trial.id, "child")
    stores.exporting.forget(study.id)  # while MLflow is being written
    (behind,) = backlog.trials
    stores.exporting.trial_exported(trial.id, revision=behind.revision, epoch=2)
    stores.exporting.study_exported(study.id, revision=backlog.revision)
    assert stores.exporting.behind() == [study.id]
    assert not stores.studies.get(study.id).is_exported
    assert epochs_behind(stores, study.id) == {trial.id: [1, 2]}


def test_a_study_that_is_gone_has_no_backlog(stores: Any) -> None:
    assert stores.exporting.backlog("nope", max_trials=1) is None


@on_postgresql
@pytest.mark.parametrize("watermark", ["study", "trial"])
def test_the_lead_is_renewed_while_the_deletion_of_a_study_holds_up_its_export(
    watermark: str,
    stores: Any,
    database: Database,
    open_database: Callable[..., Database],
    wait_until: Callable[..., None],
) -> None:
    impatient = ReconcilingStore(open_database(statement_timeout_s=2))
    assert impatient.lead("controller", "a", 60)
    study = stores.create()
    trial = stores.begin(stores.drive(study))
    exporting = ExportStore(database, Lead("controller", "a"))

    def export() -> None:
        if watermark == "study":
            exporting.study_exported(study.id, revision=1)
        else:
            exporting.trial_exported(trial.id, revision=1, epoch=0)

    with ThreadPoolExecutor(1) as pool:
        with database.writing() as deletion:
            deletion.execute(delete(tables.studies).where(tables.studies.c.id == study.id))
            exported = pool.submit(export)
            wait_until(lambda: waits_for_a_lock(database))
            assert impatient.lead("controller", "a", 60)
        with pytest.raises(StudyGoneError):
            exported.result()


@on_postgresql
def test_an_exporter_that_has_lost_the_lead_does_not_lock_out_a_driver(
    stores: Any, database: Database, wait_until: Callable[..., None]
) -> None:
    """Drivers lock a study before its trials."""
    stores.reconciling.lead("controller", "b", 60)
    study = stores.create()
    trial = stores.begin(stores.drive(study))
    late = ExportStore(database, Lead("controller", "a"))
    with ThreadPoolExecutor(1) as pool:
        with database.writing() as driver:
            records.locked_study(driver, study.id)
            exported = pool.submit(late.trial_exported, trial.id, revision=1, epoch=0)
            wait_until(lambda: waits_for_a_lock(database))
            records.touch_trial(driver, trial.id)
        with pytest.raises(LeadLostError):
            exported.result()
