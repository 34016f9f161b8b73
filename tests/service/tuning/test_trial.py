from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from service.trial_checkpoints import Checkpoint, TrialCheckpoints
from service.trial_logs import TrialLog
from service.tuning import execution
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.trial import StudyTrial
from trainers.__main__ import main
from trainers.checkpoint import dumps, loads
from trainers.config import TrainConfig
from trainers.loop import Training

EPOCHS = 4


class Worker:
    """Runs attempts of one trial as Tune would, without Ray."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self.storage_uri = storage.as_uri()
        self._trials: list[StudyTrial] = []
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
        self._trials.append(StudyTrial(self.order(*arguments, **changes)))
        return self._trials[-1]

    def stop(self) -> None:
        for trial in self._trials:
            trial.stop()

    @property
    def folder(self) -> Path:
        return self._storage / "studies" / "s"

    def log(self, attempt: int = 1, *, trial_id: str = "s-1-0") -> str:
        log = TrialLog(self.storage_uri, "s", trial_id, attempt)
        return b"".join(log.read(log.extent())).decode()

    def epochs_kept(self) -> list[int]:
        return self.checkpoints.epochs()

    def damage(self, *epochs: int) -> None:
        """What was saved of these epochs is no checkpoint any more."""
        for epoch in epochs:
            for path in (self.folder / "s-1-0").rglob(f"{epoch:06d}.ckpt"):
                path.write_bytes(b"damaged")

    def as_before(self) -> None:
        """Lays the checkpoints out as versions of the service did that knew no results in them."""
        folder = self.folder / "s-1-0"
        for path in folder.rglob("*.ckpt"):
            state = loads(path.read_bytes())["training"]
            (folder / path.name).write_bytes(dumps(state))
            path.unlink()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.stop()


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
    result = worker.trial(train={"device": "cuda"}).step()
    report = TrialReport.from_tune_result(result)
    assert result["done"]
    assert report.error is not None
    assert "Traceback" in report.error
    assert "DeviceUnavailableError" in report.error
    assert report.divergence is None


def test_a_training_that_diverges_says_where_and_is_no_error(worker: Worker) -> None:
    trial = worker.trial(train={"lr": 1e30})
    result = trial.step()
    report = TrialReport.from_tune_result(result)
    assert result["done"]
    assert (report.error, report.metrics, report.is_last) == (None, {}, False)
    assert report.divergence is not None
    assert re.fullmatch(r"training diverged: \w+ is (inf|nan) in epoch 1", report.divergence)
    assert report.divergence in worker.log()
    assert "Traceback" not in worker.log()


def test_a_landscape_that_is_not_finite_is_an_error(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.loop.landscape", lambda *_, **__: {"hessian_trace": float("nan")})
    report = TrialReport.from_tune_result(worker.trial(train={"landscape": "every_epoch"}).step())
    assert report.divergence is None
    assert report.error is not None
    assert "landscape: none leaves it out" in report.error


def test_storage_that_fails_does_not_end_the_training(
    worker: Worker, uninterrupted: dict[int, Any], tmp_path: Path
) -> None:
    (tmp_path / "studies").write_text("a file where a folder should be")
    reports = steps(worker.trial())
    assert numbers(reports) == uninterrupted
    assert reports[-1].is_last
    for report in reports:
        assert report.warning is not None
        assert report.warning.startswith(f"the checkpoint of epoch {report.epoch} (")
        assert "could not be written" in report.warning


def test_later_checkpoints_are_tried_again(worker: Worker, uninterrupted: dict[int, Any], tmp_path: Path) -> None:
    trial = worker.trial()
    (tmp_path / "studies").write_text("a file where a folder should be")
    first = steps(trial, 2)
    (tmp_path / "studies").unlink()
    second = steps(trial, 1)
    assert [report.warning is None for report in first + second] == [False, False, True]
    assert worker.epochs_kept() == [3]
    assert numbers(steps(worker.trial(2, 3))) == {4: uninterrupted[4]}


def test_storage_that_cannot_be_read_lets_an_attempt_begin_again(
    worker: Worker, uninterrupted: dict[int, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "STORAGE_PATIENCE_S", 0.1)
    (tmp_path / "studies").symlink_to("studies")
    assert numbers(steps(worker.trial(2, 2))) == uninterrupted


def test_storage_that_is_back_soon_is_waited_for(worker: Worker, uninterrupted: dict[int, Any], tmp_path: Path) -> None:
    steps(worker.trial(), 2)
    worker.stop()
    (tmp_path / "studies").rename(tmp_path / "away")
    (tmp_path / "studies").symlink_to("studies")

    def back() -> None:
        (tmp_path / "studies").unlink()
        (tmp_path / "away").rename(tmp_path / "studies")

    trial = worker.trial(2, 2)
    timer = threading.Timer(0.5, back)
    timer.start()
    assert list(numbers(steps(trial))) == [3, 4]
    timer.join(10)


class Throttled:
    """A storage that lists what there is, and for so many seconds gives out nothing of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._read = TrialCheckpoints.read
        monkeypatch.setattr(TrialCheckpoints, "read", lambda *arguments: self.read(*arguments))

    def read(self, checkpoints: TrialCheckpoints, checkpoint: Checkpoint) -> bytes:
        if time.monotonic() < self._until:
            raise OSError("AWS Error SLOW_DOWN")
        return self._read(checkpoints, checkpoint)


def test_a_storage_that_gives_out_its_checkpoints_soon_is_waited_for(
    worker: Worker, uninterrupted: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps(worker.trial(), 2)
    Throttled(monkeypatch, 1.0)
    reports = steps(worker.trial(2, 2))
    assert list(numbers(reports)) == [3, 4]
    assert [report.warning for report in reports] == [None, None]


def test_who_begins_anew_without_a_checkpoint_that_there_is_says_so(
    worker: Worker, uninterrupted: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps(worker.trial(), 2)
    monkeypatch.setattr(execution, "STORAGE_PATIENCE_S", 0.2)
    Throttled(monkeypatch, 600.0)
    reports = steps(worker.trial(2, 2))
    assert numbers(reports) == uninterrupted
    assert [report.warning for report in reports] == [
        "the checkpoint of epoch 2 cannot be read: AWS Error SLOW_DOWN",
        None,
        None,
        None,
    ]


def test_a_report_says_whether_the_next_attempt_can_go_on_from_it(worker: Worker) -> None:
    assert [report.is_saved for report in steps(worker.trial(checkpoint_every_epochs=2))] == [False, True, False, True]
    assert [
        report.is_saved for report in steps(worker.trial(checkpoint_every_epochs=0, keep_last_checkpoint=False))
    ] == ([False] * EPOCHS)


def test_the_last_checkpoint_of_a_trial_can_be_taken_home(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    steps(worker.trial(train={"device": "cpu"}))  # as a driver has it for a trial that has no GPU
    (path,) = (worker.folder / "s-1-0").rglob(f"{EPOCHS:06d}.ckpt")
    settings = ["dataset=digits", "model=mlp", f"epochs={EPOCHS}", "batch_size=256"]
    assert main([*settings, "--checkpoint", str(path)]) == 0  # there is nothing left to train
    assert main([*settings, "lr=0.3", "--checkpoint", str(path)]) == 2
    assert "is of another configuration" in capsys.readouterr().err


LONG = {"epochs": 100_000, "report_every_epochs": 100_000}
"""A training that reports once, much later."""


def test_a_trial_that_takes_too_long_is_interrupted_there(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    trial = worker.trial(train=LONG, max_trial_s=20, seconds_left=0.5)
    started = time.monotonic()
    result = trial.step()
    assert time.monotonic() - started < 10
    report = TrialReport.from_tune_result(result)
    assert result["done"]
    assert report.error == "the trial has trained for its budget.max_trial_s of 20 s"
    assert trial.reset_config(worker.order(trial_id="s-2-0"))
    assert numbers(steps(trial)) == uninterrupted


def test_a_trial_within_its_time_is_as_without_a_limit(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    assert numbers(steps(worker.trial(max_trial_s=300, seconds_left=250))) == uninterrupted


def test_the_time_between_two_epochs_counts(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    trial = worker.trial(max_trial_s=5, seconds_left=5)
    assert TrialReport.from_tune_result(trial.step()).error is None
    threading.Event().wait(5)
    assert TrialReport.from_tune_result(trial.step()).error == (
        "the trial has trained for its budget.max_trial_s of 5 s"
    )


def test_the_log_tells_what_ran_and_how_it_went(worker: Worker) -> None:
    steps(worker.trial())
    said = [line.partition(" samstudy: ")[2] for line in worker.log().splitlines()]
    assert re.fullmatch(r"trial s-1-0, attempt 1, on \S+ \(process \d+\)", said[0])
    words, _, end = said[1].partition("}")
    assert (words[:15], end) == ("configuration: ", ", all else by default")
    chosen = json.loads(words[15:] + "}")
    assert chosen | {"dataset": "digits", "model": "mlp", "epochs": 4, "batch_size": 256, "seed": 0} == chosen
    assert {"lambda", "rho"} <= chosen.keys()
    assert len(chosen) < 10
    assert re.fullmatch(r"with samstudy \d\S+, torch \d\S+, on cpu", said[2])
    assert said[3] == "training from the start, 4 epochs"
    for epoch, line in enumerate(said[4:8], 1):
        assert re.fullmatch(rf"epoch {epoch}/4: val_accuracy 0\.\d+, val_loss \S+, train_loss .*; \d+\.\d\d s", line)
    assert "test_accuracy 0." in said[7]
    assert said[8:] == ["all epochs are done"]
    datetime.fromisoformat(worker.log().partition(" ")[0])


def test_the_log_tells_from_where_an_attempt_continues(worker: Worker) -> None:
    steps(worker.trial(), 3)
    worker.damage(3)
    steps(worker.trial(2, 3))
    assert "the checkpoint of epoch 3 is of no use: not a samstudy checkpoint (7 bytes)" in worker.log(2)
    assert "continues after epoch 2/4, from the checkpoint of that epoch" in worker.log(2)


def test_the_log_has_the_traceback_of_a_failure(worker: Worker) -> None:
    worker.trial(train={"device": "cuda"}).step()
    assert "the trial failed: Traceback" in worker.log()
    assert "DeviceUnavailableError" in worker.log()


def test_the_log_says_that_a_checkpoint_is_missing(worker: Worker) -> None:
    trial = worker.trial()
    folder = worker.folder / "s-1-0"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where a folder should be")
    steps(trial)
    assert worker.log().count("could not be written") == EPOCHS
    assert "all epochs are done" in worker.log()


def test_a_trial_that_is_stopped_early_has_its_log_ended(worker: Worker) -> None:
    trial = worker.trial()
    trial.step()
    trial.reset_config(worker.order(trial_id="s-2-0"))
    trial.step()
    trial.stop()
    assert "this attempt was ended" in worker.log()
    assert "this attempt was ended" in worker.log(trial_id="s-2-0")


def test_logs_stay_when_checkpoints_go(worker: Worker) -> None:
    steps(worker.trial())
    worker.checkpoints.tidy("none", up_to_attempt=1)
    assert worker.epochs_kept() == []
    assert "all epochs are done" in worker.log()


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
    worker.damage(3)
    assert numbers(steps(worker.trial(2, 3))) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_whole_one(
    worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    steps(worker.trial(), 3)
    worker.damage(3)
    steps(worker.trial(2, 2), 1)  # epoch 3 again
    worker.damage(3)
    assert numbers(steps(worker.trial(3, 3))) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}
    assert "continues after epoch 2/4" in worker.log(3)


def test_an_attempt_without_a_whole_checkpoint_begins_again(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    steps(worker.trial(), 2)
    worker.damage(1, 2)
    second = worker.trial(2, 2)
    first_half = steps(second, 1)
    assert worker.epochs_kept() == [1]
    assert numbers(first_half + steps(second)) == uninterrupted


@pytest.mark.parametrize("recorded", [0, 1, 2])
def test_results_that_were_never_recorded_come_from_the_checkpoint(
    recorded: int, worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    """The store was away, and the driver died with what it had still to tell it."""
    first = steps(worker.trial(), 3)
    second = worker.trial(2, recorded)
    again = steps(second, 3 - recorded)
    assert worker.epochs_kept() == [3, 2]  # nothing is trained yet
    assert [report.metrics for report in again] == [report.metrics for report in first[recorded:]]
    assert {report.attempt for report in again} == {2}
    assert numbers(again + steps(second)) == {epoch: uninterrupted[epoch] for epoch in range(recorded + 1, 5)}
    said = "continues after epoch 3/4, from the checkpoint of that epoch, which has the results from epoch"
    assert f"{said} {recorded + 1} on" in worker.log(2)


def test_results_are_handed_on_from_attempt_to_attempt(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    steps(worker.trial(), 2)
    steps(worker.trial(2, 0), 3)  # two from the checkpoint, and one more
    assert numbers(steps(worker.trial(3, 0))) == uninterrupted
    assert "continues after epoch 3/4" in worker.log(3)


def test_a_checkpoint_whose_results_are_lost_is_not_used_and_does_not_stay(
    worker: Worker, uninterrupted: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MOST_RESULTS", 1)
    steps(worker.trial(), 3)
    second = worker.trial(2, 0)
    first_half = steps(second, 1)
    assert worker.epochs_kept() == [1]
    assert numbers(first_half + steps(second)) == uninterrupted
    assert "the checkpoint of epoch 3 is of no use: nobody has the results after epoch 0 up to epoch 2" in worker.log(2)


def test_a_checkpoint_with_just_the_results_that_are_wanted_is_used(
    worker: Worker, uninterrupted: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MOST_RESULTS", 1)
    steps(worker.trial(), 3)
    assert numbers(steps(worker.trial(2, 2))) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}
    assert "continues after epoch 3/4" in worker.log(2)


def test_an_attempt_that_was_given_up_costs_the_next_ones_nothing(
    worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    """Its node is cut off: it trains on, while its trial is another's."""
    stale = worker.trial()
    steps(stale, 1)
    second = worker.trial(2, 1)
    steps(second, 1)
    steps(stale, 2)
    assert numbers(steps(worker.trial(3, 2))) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}
    assert "continues after epoch 3/4" in worker.log(3)
    assert numbers(steps(second)) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize(("name", "value"), [("lr", 0.3), ("seed", 7), ("lambda", "1/t")])
def test_what_another_configuration_saved_under_the_same_id_is_of_no_use(
    worker: Worker, uninterrupted: dict[int, Any], name: str, value: Any, attempt: int
) -> None:
    """As after a restore, since when the store gives out ids again."""
    steps(worker.trial(train={name: value}))
    second = worker.trial(attempt, 0)
    first_step = steps(second, 1)
    assert worker.epochs_kept() == [1]
    assert numbers(first_step + steps(second)) == uninterrupted
    said = f"of no use: it is of another configuration, with {name} {value!r}"
    assert worker.log(attempt).count(said) == 2
    assert "training from the start" in worker.log(attempt)


def test_what_the_same_configuration_saved_before_a_restore_is_gone_on_from(
    worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    steps(worker.trial(), 3)
    assert numbers(steps(worker.trial())) == uninterrupted
    assert "continues after epoch 3/4, from the checkpoint of that epoch, which has the results from epoch 1 on" in (
        worker.log(1)
    )


def test_what_an_earlier_version_saved_says_no_configuration_and_is_of_no_use_to_a_first_attempt(
    worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    steps(worker.trial(train={"lr": 0.3}), 3)
    worker.as_before()
    assert numbers(steps(worker.trial())) == uninterrupted
    assert "of no use: it does not say of which configuration it is" in worker.log(1)


def test_what_an_earlier_version_saved_is_gone_on_from(worker: Worker, uninterrupted: dict[int, Any]) -> None:
    steps(worker.trial(), 3)
    worker.as_before()
    assert numbers(steps(worker.trial(2, 3))) == {4: uninterrupted[4]}
    assert "continues after epoch 3/4" in worker.log(2)


def test_what_an_earlier_version_saved_has_no_results_and_is_used_up_to_what_is_recorded(
    worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    steps(worker.trial(), 3)
    worker.as_before()
    second = worker.trial(2, 2)
    first_half = steps(second, 1)
    assert worker.epochs_kept() == [3, 2]
    assert numbers(first_half + steps(second)) == {epoch: uninterrupted[epoch] for epoch in (3, 4)}
    assert "the checkpoint of epoch 3 is of no use: nobody has the results after epoch 2 up to epoch 3" in worker.log(2)
    assert "continues after epoch 2/4" in worker.log(2)


@pytest.mark.parametrize("epochs_done", [0, 3, 4])
def test_a_trial_lost_after_its_last_epoch_ends_well(
    worker: Worker, uninterrupted: dict[int, Any], epochs_done: int
) -> None:
    steps(worker.trial())
    reports = steps(worker.trial(2, epochs_done))
    assert numbers(reports) == {epoch: uninterrupted[epoch] for epoch in range(min(epochs_done, 3) + 1, 5)}
    assert reports[-1].is_last
    assert "continues after epoch 4/4" in worker.log(2)
    assert "all epochs are done" in worker.log(2)


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


BEST = {"best_by": "val_loss", "best_mode": "min", "train": {"lr": 1.0, "batch_size": 64}}
"""Steps so large that the loss goes up and down."""


def best_epochs(values: Mapping[int, Mapping[str, float]]) -> list[int]:
    """The epochs that are better than all before them."""
    losses = [values[epoch]["val_loss"] for epoch in sorted(values)]
    return [epoch for epoch, loss in enumerate(losses, 1) if loss < min([math.inf, *losses[: epoch - 1]])]


@pytest.fixture(scope="module")
def up_and_down(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    values = numbers(steps(Worker(tmp_path_factory.mktemp("storage")).trial(**BEST)))
    assert 1 < best_epochs(values)[-1] < EPOCHS, "the test needs a best epoch in the midst"
    return values


@pytest.mark.parametrize("every_epochs", [1, 3, 100])
@pytest.mark.parametrize("cut_after", [0, 1, 2, 3])
def test_the_best_epoch_has_a_checkpoint_wherever_the_trial_was_cut(
    every_epochs: int, cut_after: int, worker: Worker, up_and_down: dict[int, dict[str, float]]
) -> None:
    changes = {**BEST, "checkpoint_every_epochs": every_epochs, "keep_last_checkpoint": False}
    if cut_after:
        steps(worker.trial(**changes), cut_after)
    values = numbers(steps(worker.trial(2, cut_after, **changes)))
    assert values.items() <= up_and_down.items()
    worker.checkpoints.tidy("best", up_to_attempt=2)
    (kept,) = worker.checkpoints.found()
    assert (kept.epoch, kept.is_best) == (best_epochs(up_and_down)[-1], True)
    content = loads(worker.checkpoints.read(kept))
    assert content["training"]["epochs_done"] == kept.epoch
    assert content["best"] == up_and_down[kept.epoch]["val_loss"]


def test_the_best_epoch_survives_an_attempt_that_had_to_start_over(
    worker: Worker, up_and_down: dict[int, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage did not list for it, and it is lost before it has come as far as the one before."""
    steps(worker.trial(**BEST), 3)
    with monkeypatch.context() as broken:
        broken.setattr(execution, "STORAGE_PATIENCE_S", 0.0)
        broken.setattr(TrialCheckpoints, "take_over", lambda _: (_ for _ in ()).throw(OSError("slow")))
        assert steps(worker.trial(2, 3, **BEST), 1)[0].epoch == 1
    steps(worker.trial(3, 3, **BEST))
    worker.checkpoints.tidy("best", up_to_attempt=3)
    assert worker.epochs_kept() == [best_epochs(up_and_down)[-1]]


def test_a_checkpoint_of_another_kind_of_device_stays_for_a_node_that_has_one(
    worker: Worker, uninterrupted: dict[int, Any]
) -> None:
    steps(worker.trial(), 2)
    for checkpoint in worker.checkpoints.found():
        path = worker.folder / "s-1-0" / checkpoint.path
        content = loads(path.read_bytes())
        content["training"]["device"] = "cuda"
        path.write_bytes(dumps(content))
    first = steps(worker.trial(2, 2), 1)
    assert numbers(first) == {1: uninterrupted[1]}
    assert "the state is of a run on 'cuda', and this one is on 'cpu'" in str(first[0].warning)
    assert worker.epochs_kept() == [2, 1]
    assert [checkpoint.attempt for checkpoint in worker.checkpoints.found()] == [1, 2]


def test_a_state_that_torch_refuses_fails_the_attempt_and_loses_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps(worker.trial(), 2)

    def refuses(training: Training, state: dict[str, Any]) -> None:
        raise ValueError("loaded state dict has a different number of parameter groups")

    monkeypatch.setattr(Training, "load_state_dict", refuses)
    (report,) = steps(worker.trial(2, 2), 1)
    assert "different number of parameter groups" in str(report.error)
    assert worker.epochs_kept() == [2, 1]


def test_the_larger_one_is_the_best_where_that_is_the_mode(
    worker: Worker, up_and_down: dict[int, dict[str, float]]
) -> None:
    steps(worker.trial(**{**BEST, "best_mode": "max"}))
    worker.checkpoints.tidy("best", up_to_attempt=1)
    (kept,) = worker.checkpoints.found()
    assert up_and_down[kept.epoch]["val_loss"] == max(metrics["val_loss"] for metrics in up_and_down.values())


def test_a_best_epoch_that_could_not_be_saved_counts_for_none(
    worker: Worker, up_and_down: dict[int, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = best_epochs(up_and_down)[-1]
    save = TrialCheckpoints.save

    def fails_once(checkpoints: TrialCheckpoints, epoch: int, content: bytes, *, is_best: bool = False) -> str:
        if epoch == best:
            raise OSError("the disk is full")
        return save(checkpoints, epoch, content, is_best=is_best)

    monkeypatch.setattr(TrialCheckpoints, "save", fails_once)
    steps(worker.trial(**BEST))
    there = {epoch: metrics["val_loss"] for epoch, metrics in up_and_down.items() if epoch != best}
    worker.checkpoints.tidy("best", up_to_attempt=1)
    assert worker.epochs_kept() == [min(there, key=lambda epoch: there[epoch])]


def test_a_metric_of_the_last_epoch_alone_makes_that_the_best(worker: Worker) -> None:
    steps(worker.trial(best_by="test_accuracy", checkpoint_every_epochs=100, keep_last_checkpoint=False))
    (kept,) = worker.checkpoints.found()
    assert (kept.epoch, kept.is_best) == (EPOCHS, True)


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


def test_a_worker_that_is_dropped_before_its_first_step_leaves_no_log(worker: Worker) -> None:
    worker.trial().stop()
    assert not list(worker.folder.rglob("*")), "another worker has the attempt, and writes its log"
