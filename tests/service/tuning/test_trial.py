from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.tuning.checkpoints import TrialCheckpoints
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.trial import StudyTrial
from trainers.config import TrainConfig

EPOCHS = 4


class Worker:
    """Runs attempts of one trial as Tune would, without Ray."""

    def __init__(self, storage: Path) -> None:
        self.storage_uri = storage.as_uri()
        self.checkpoints = TrialCheckpoints(self.storage_uri, "s", "s-1-0")

    def order(self, attempt: int = 1, epochs_done: int = 0, **changes: Any) -> dict[str, Any]:
        train = {"dataset": "digits", "model": "mlp", "epochs": EPOCHS, "batch_size": 256, **changes.pop("train", {})}
        fields: dict[str, Any] = {
            "study_id": "s",
            "trial_id": "s-1-0",
            "train": TrainConfig.from_mapping(train).to_mapping(),
            "threads": 1,
            "storage_uri": self.storage_uri,
            "checkpoint_every_epochs": 1,
            "keep_last_checkpoint": True,
            **changes,
        }
        return TrialOrder(attempt=attempt, epochs_done=epochs_done, **fields).to_tune_config()

    def trial(self, *arguments: Any, **changes: Any) -> StudyTrial:
        return StudyTrial(self.order(*arguments, **changes))

    def epochs_kept(self) -> list[int]:
        return [epoch for epoch, _ in self.checkpoints.newest_first()]


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def steps(trial: StudyTrial, most: int = EPOCHS + 1) -> list[TrialReport]:
    """Reports until the trial is done."""
    reports = []
    for _ in range(most):
        result = trial.step()
        reports.append(TrialReport.from_tune_result(result))
        if result["done"]:
            break
    return reports


def numbers(reports: list[TrialReport]) -> dict[int, dict[str, float]]:
    """Metrics by epoch, without the one that is a matter of time."""
    assert all(report.error is None for report in reports), reports[-1].error
    return {r.epoch: {name: v for name, v in r.metrics.items() if name != "samples_per_s"} for r in reports}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    return numbers(steps(Worker(tmp_path_factory.mktemp("storage")).trial()))


def test_every_epoch_is_reported(worker: Worker) -> None:
    reports = steps(worker.trial())
    assert [(report.epoch, report.is_last) for report in reports] == [(1, False), (2, False), (3, False), (4, True)]
    assert {(report.trial_id, report.attempt, report.error) for report in reports} == {("s-1-0", 1, None)}
    assert "val_accuracy" in reports[0].metrics
    assert "test_accuracy" in reports[-1].metrics


def test_the_metrics_lie_where_a_scheduler_looks_for_them(worker: Worker) -> None:
    result = worker.trial().step()
    (report,) = result["reports"]
    assert result["epoch"] == 1
    assert result["val_accuracy"] == report["metrics"]["val_accuracy"]


def test_an_error_of_the_training_is_a_report(worker: Worker) -> None:
    result = worker.trial(train={"lr": 1e30}).step()
    report = TrialReport.from_tune_result(result)
    assert result["done"]
    assert report.error is not None
    assert "Traceback" in report.error
    assert "DivergedError" in report.error


def test_storage_that_fails_is_a_report_too(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("a file where a folder should be")
    report = TrialReport.from_tune_result(worker.trial().step())
    assert report.error is not None
    assert "Error" in report.error


def test_a_worker_goes_on_with_the_next_trial(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    trial = worker.trial(train={"lr": 1e30})
    trial.step()
    assert trial.reset_config(worker.order(trial_id="s-2-0"))
    assert numbers(steps(trial)) == uninterrupted


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_the_next_attempt_continues_exactly(worker: Worker, uninterrupted: dict[int, Any], epochs_done: int) -> None:
    first = numbers(steps(worker.trial(), epochs_done))
    second = numbers(steps(worker.trial(2, epochs_done)))
    assert list(second) == list(range(epochs_done + 1, EPOCHS + 1))
    assert first | second == uninterrupted


def test_a_damaged_checkpoint_falls_back_to_the_one_before(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    steps(worker.trial(), 3)
    worker.checkpoints.save(3, b"damaged")
    assert numbers(steps(worker.trial(2, 3))) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}


def test_an_attempt_without_a_whole_checkpoint_begins_again(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    for epoch in (1, 2):
        worker.checkpoints.save(epoch, b"damaged")
    assert numbers(steps(worker.trial(2, 2))) == uninterrupted


def test_an_epoch_that_was_never_reported_is_done_again(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    steps(worker.trial(), 3)  # and the report of the third never arrived
    assert numbers(steps(worker.trial(2, 2))) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}


@pytest.mark.parametrize("epochs_done", [3, 4])
def test_a_trial_lost_after_its_last_epoch_ends_well(
    worker: Worker, uninterrupted: dict[int, Any], epochs_done: int
) -> None:
    steps(worker.trial())
    reports = steps(worker.trial(2, epochs_done))
    assert numbers(reports) == {4: uninterrupted[4]}
    assert reports[-1].is_last


def test_the_first_attempt_does_not_look_for_checkpoints(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    worker.checkpoints.save(2, b"of somebody else")
    assert numbers(steps(worker.trial())) == uninterrupted


def test_checkpoints_are_made_as_often_as_asked(worker: Worker) -> None:
    trial = worker.trial(checkpoint_every_epochs=2, keep_last_checkpoint=False)
    kept = []
    for _ in range(EPOCHS):
        trial.step()
        kept.append(worker.epochs_kept())
    assert kept == [[], [2], [2], [2]]


def test_without_checkpoints_a_new_attempt_begins_again(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    changes = {"checkpoint_every_epochs": 0, "keep_last_checkpoint": False}
    steps(worker.trial(**changes), 2)
    assert worker.epochs_kept() == []
    assert numbers(steps(worker.trial(2, 2, **changes))) == uninterrupted


def test_an_order_passes_through_tune_unchanged(worker: Worker) -> None:
    config = worker.order()
    assert TrialOrder.from_tune_config(config).to_tune_config() == config
    report = TrialReport("s-1-0", 2, 3, {"val_loss": 0.5}, False)
    assert TrialReport.from_tune_result(report.to_tune_result()) == report
