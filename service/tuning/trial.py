"""What a worker runs: a Tune trial that trains one of our trials, one epoch per step.

The worker process outlives the trial (`reuse_actors`): the next one starts without importing torch again. An error of
the training itself is a result, not an exception, so that it keeps its worker; an exception out of here means that the
worker is at fault.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from service.tuning.checkpoints import TrialCheckpoints
from trainers.checkpoint import DamagedCheckpointError, dumps, loads
from trainers.config import TrainConfig
from trainers.loop import Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialOrder:
    """What a worker is told to do. `train` is a TrainConfig by wire names; every value is plain, for Tune's config.

    epochs_done: how many epochs earlier attempts have reported; this one goes on from there, so that none is missing.
    """

    study_id: str
    trial_id: str
    attempt: int
    epochs_done: int
    train: dict[str, Any]
    threads: int
    storage_uri: str
    checkpoint_every_epochs: int
    keep_last_checkpoint: bool

    def to_tune_config(self) -> dict[str, Any]:
        """The order as Tune's config of one trial: a list, because a Tune trial may execute several of ours."""
        return {"orders": [asdict(self)]}

    @classmethod
    def from_tune_config(cls, config: dict[str, Any]) -> TrialOrder:
        """The order in Tune's config; today there is exactly one."""
        (order,) = config["orders"]
        return cls(**order)


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What a worker says after an epoch, or of the failure that ended the trial (then `error` is its traceback)."""

    trial_id: str
    attempt: int
    epoch: int
    metrics: dict[str, float]
    is_last: bool
    error: str | None = None

    def to_tune_result(self) -> dict[str, Any]:
        """The report as Tune's result, with what Tune's schedulers look at beside it."""
        done = self.is_last or self.error is not None
        return {"reports": [asdict(self)], "epoch": self.epoch, **self.metrics, "done": done}

    @classmethod
    def from_tune_result(cls, result: dict[str, Any]) -> TrialReport:
        """The report in Tune's result; today there is exactly one."""
        (report,) = result["reports"]
        return cls(**report)


class StudyTrial(tune.Trainable):
    """Tune's view of a trial of ours."""

    def setup(self, config: dict[str, Any]) -> None:
        self._order = TrialOrder.from_tune_config(config)
        self._training: Training | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        epoch = 0
        try:
            training = self._training or self._begin()
            self._training = training
            epoch = training.epochs_done
            result = training.run_epoch()
            self._save(training, is_last=result.is_last)
        except Exception:  # noqa: BLE001  # the outermost runner: whatever ended the training is recorded on the trial
            self._training = None
            return self._report(epoch, {}, is_last=False, error=traceback.format_exc())
        return self._report(result.epoch, result.metrics, is_last=result.is_last)

    def _begin(self) -> Training:
        """The training, continued from the newest checkpoint that is whole and whose epoch has been reported."""
        order = self._order
        training = Training(TrainConfig.from_mapping(order.train), threads=order.threads)
        epochs = training.config.epochs
        if order.attempt > 1 and order.checkpoint_every_epochs:
            for epoch, content in self._checkpoints().newest_first(up_to=min(order.epochs_done, epochs - 1)):
                try:
                    training.load_state_dict(loads(content))
                    break
                except DamagedCheckpointError as error:
                    logger.warning("trial %s: the checkpoint of epoch %d is %s", order.trial_id, epoch, error)
        return training

    def _save(self, training: Training, *, is_last: bool) -> None:
        every = self._order.checkpoint_every_epochs
        due = every and training.epochs_done % every == 0
        if self._order.keep_last_checkpoint if is_last else due:
            self._checkpoints().save(training.epochs_done, dumps(training.state_dict()))

    def _checkpoints(self) -> TrialCheckpoints:
        order = self._order
        return TrialCheckpoints(order.storage_uri, order.study_id, order.trial_id)

    def _report(
        self, epoch: int, metrics: dict[str, float], *, is_last: bool, error: str | None = None
    ) -> dict[str, Any]:
        report = TrialReport(self._order.trial_id, self._order.attempt, epoch, metrics, is_last, error)
        return report.to_tune_result()
