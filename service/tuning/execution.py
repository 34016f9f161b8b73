"""The training of one trial in a worker, epoch by epoch, with its checkpoints. The only way to the training loop."""

from __future__ import annotations

import logging
import traceback

from service.tuning.checkpoints import TrialCheckpoints
from service.tuning.orders import TrialOrder, TrialReport
from trainers.checkpoint import DamagedCheckpointError, dumps, loads
from trainers.config import InvalidTrainConfigError, TrainConfig
from trainers.loop import Training

logger = logging.getLogger(__name__)


class TrialExecution:
    """One attempt of one trial.

    An error of the training is a report like any other, not an exception: it says something about the trial, and
    nothing about the worker, which goes on with the next one.
    """

    def __init__(self, order: TrialOrder) -> None:
        self._order = order
        self._training: Training | None = None

    def next_result(self) -> TrialReport:
        """Trains up to the next epoch that is reported, from the newest usable checkpoint on.

        Saves what the order wants saved.
        """
        epoch = 0
        try:
            training = self._training or self._begin()
            self._training = training
            epoch = training.epochs_done
            result = training.next_result()
            self._save(training, since=epoch, is_last=result.is_last)
        except InvalidTrainConfigError as error:  # says the field, the rule and the value
            return self._report(epoch, {}, is_last=False, error=str(error))
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

    def _save(self, training: Training, *, since: int, is_last: bool) -> None:
        """Saves after each multiple of the order's epochs, or after the first result that comes behind one."""
        every = self._order.checkpoint_every_epochs
        due = every and training.epochs_done // every > since // every
        if self._order.keep_last_checkpoint if is_last else due:
            self._checkpoints().save(training.epochs_done, dumps(training.state_dict()))

    def _checkpoints(self) -> TrialCheckpoints:
        order = self._order
        return TrialCheckpoints(order.storage_uri, order.study_id, order.trial_id)

    def _report(self, epoch: int, metrics: dict[str, float], *, is_last: bool, error: str | None = None) -> TrialReport:
        return TrialReport(self._order.trial_id, self._order.attempt, epoch, metrics, is_last, error)
