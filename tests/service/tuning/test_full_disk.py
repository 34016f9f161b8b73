"""The disk is full when a checkpoint, a log or a result is to be written: nothing is lost that was there or comes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.spec import parse_spec
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import AttemptStarted, EpochReported, TrialEnded
from service.store.studies import NewStudy, StudyStore
from service.study import Reason, StudyState, TrialState
from service.trial_checkpoints import TrialCheckpoints
from service.trial_logs import TrialLog
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.recorder import Recorder
from service.tuning.trial import StudyTrial
from tests.small_disk import SmallDisk, small_disk
from trainers.config import TrainConfig

EPOCHS = 5


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_bytes=4 * 2**20) as disk:
        yield disk


@pytest.fixture
def trials(disk: SmallDisk) -> Iterator[Callable[..., StudyTrial]]:
    """Makes attempts of one trial whose storage is the small disk."""
    made: list[StudyTrial] = []

    def make(attempt: int = 1, epochs_done: int = 0) -> StudyTrial:
        train = {"dataset": "digits", "model": "mlp", "epochs": EPOCHS, "batch_size": 256}
        order = TrialOrder(
            study_id="s",
            trial_id="s-1-0",
            attempt=attempt,
            epochs_done=epochs_done,
            train=TrainConfig.from_mapping(train).to_mapping(),
            threads=1,
            storage_uri=disk.path.as_uri(),
            checkpoint_every_epochs=1,
            keep_last_checkpoint=True,
        )
        made.append(StudyTrial(order.to_tune_config()))
        return made[-1]

    yield make
    for trial in made:
        trial.stop()


def step(trial: StudyTrial) -> TrialReport:
    return TrialReport.from_tune_result(trial.step())


def log(disk: SmallDisk, attempt: int = 1) -> str:
    log = TrialLog(disk.path.as_uri(), "s", "s-1-0", attempt)
    return b"".join(log.read(log.extent())).decode()


def test_the_training_goes_on_and_the_older_checkpoint_stays(
    disk: SmallDisk, trials: Callable[..., StudyTrial], wait_until: Callable[..., None]
) -> None:
    checkpoints = TrialCheckpoints(disk.path.as_uri(), "s", "s-1-0")
    trial = trials()
    reports = [step(trial)]
    disk.fill(leaving_bytes=8192)
    reports += [step(trial), step(trial)]
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert [report.error for report in reports] == [None, None, None]
    assert reports[0].warning is None
    for report in reports[1:]:
        assert report.warning is not None
        assert "No space left on device" in report.warning
    assert checkpoints.epochs() == [1]
    assert list(disk.path.rglob("*.partial")) == []

    second = trials(2, 3)
    assert step(second).epoch == 2  # from the checkpoint of the first epoch
    disk.free()
    assert step(second).warning is None
    assert checkpoints.epochs() == [3, 1]
    wait_until(lambda: "continues after epoch 1/5" in log(disk, 2))


def test_the_result_counts_without_the_last_checkpoint(
    disk: SmallDisk, trials: Callable[..., StudyTrial], wait_until: Callable[..., None]
) -> None:
    trial = trials()
    for _ in range(EPOCHS - 1):
        step(trial)
    disk.fill()
    last = step(trial)
    assert (last.epoch, last.is_last, last.error) == (EPOCHS, True, None)
    assert "test_accuracy" in last.metrics
    assert last.warning is not None
    assert TrialCheckpoints(disk.path.as_uri(), "s", "s-1-0").epochs() == [4, 3]
    disk.free()  # the log is tried again for a while after the end
    wait_until(lambda: TrialLog(disk.path.as_uri(), "s", "s-1-0", 1).extent().is_finished)
    assert "the checkpoint of epoch 5 (" in log(disk)
    assert log(disk).endswith("all epochs are done\n")


def test_a_log_on_a_full_disk_has_everything_once_there_is_room(
    disk: SmallDisk, trials: Callable[..., StudyTrial], wait_until: Callable[..., None]
) -> None:
    trial = trials()
    disk.fill()
    step(trial)
    wait_until(lambda: trial._execution._output._is_failing)
    step(trial)
    assert log(disk) == ""
    disk.free()
    wait_until(lambda: "epoch 2/5" in log(disk))
    assert "epoch 1/5" in log(disk)
    assert "No space left on device" in log(disk)


def test_a_store_on_a_full_disk_is_waited_for_and_loses_no_result(
    disk: SmallDisk, migrated_store: Path, a_spec: dict[str, Any], wait_until: Callable[..., None]
) -> None:
    shutil.copy(migrated_store, disk.path / "samstudy.db")
    database = Database(f"sqlite:///{disk.path / 'samstudy.db'}")
    studies = StudyStore(database)
    spec = parse_spec(a_spec)
    new = NewStudy(spec.name, spec.description, spec.labels, spec.to_mapping(), "local", "digest")
    study = studies.create(new)[0]
    claim = ReconcilingStore(database).claim(study.id, startup_lease_s=60)
    assert claim is not None
    driver = DrivingStore(database, study.id, claim.driver_attempt)
    _, (trial,) = driver.add_configuration({"rho": 0.1}, "rho=0.1", (0,), last_known=0)
    recorder = Recorder(driver, lease_s=60, heartbeat_s=0.1)
    recorder.start()
    recorder.record(AttemptStarted(trial.id, 1, "node-1"))
    wait_until(lambda: studies.trial(study.id, trial.id).state is TrialState.RUNNING)

    disk.fill()
    metrics = {f"metric_{number}": 0.1 for number in range(200)}
    for epoch in range(1, 51):
        recorder.record(EpochReported(trial.id, 1, epoch, metrics))
    recorder.record(TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.5))
    threading.Event().wait(1.5)
    assert studies.trial(study.id, trial.id).state is TrialState.RUNNING  # what is there can be read
    assert not recorder.has_lost_lease

    disk.free()
    recorder.close()
    assert len(studies.results(study.id, trial.id)) == 50
    assert studies.trial(study.id, trial.id).state is TrialState.SUCCEEDED
    driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
    database.dispose()
