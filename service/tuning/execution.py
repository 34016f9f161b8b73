"""The training of one trial in a worker, epoch by epoch, with its checkpoints. The only way to the training loop."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tenacity import Retrying, retry_if_exception, wait_exponential

from service.trial_checkpoints import TrialCheckpoints
from service.trial_logs import TrialLog
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.time_limit import OutOfTimeError, time_limit
from service.tuning.trial_output import TrialOutput
from trainers.catalog import DATASETS, MODELS
from trainers.checkpoint import DamagedCheckpointError, dumps, loads
from trainers.config import InvalidTrainConfigError, TrainConfig, defaults
from trainers.loop import DivergedError, EpochResult, OtherRunError, Training
from trainers.plugins import PACKAGES

STORAGE_PATIENCE_S = 30.0
"""How long an attempt waits for a storage that does not answer before it begins without its checkpoint."""

MOST_RESULTS = 10_000
"""How many of its last results a checkpoint carries along."""

_GONE = FileNotFoundError  # somebody has removed it meanwhile: it does not come back
_ALWAYS_SAID = ("dataset", "model", "lambda", "rho", "seed")
_MAIN_METRICS = ("val_accuracy", "val_loss", "train_loss", "suboptimality", "test_accuracy", "test_loss")


class TrialExecution:
    """One attempt of one trial, and its log.

    An error of the training is a report like any other, not an exception: it says something about the trial, and
    nothing about the worker, which goes on with the next one. Neither does storage that fails end the training: what
    was computed counts, with or without a checkpoint.
    """

    def __init__(self, order: TrialOrder) -> None:
        self._order = order
        self._training: Training | None = None
        self._results = _Results()
        self._best: float | None = None  # of the epochs that were saved for being the best
        self._unreported: deque[EpochResult] = deque()
        self._stored: TrialCheckpoints | None = None
        self._lost: str | None = None
        self._deadline = None if order.seconds_left is None else time.monotonic() + order.seconds_left
        self._has_ended = False
        self._output = TrialOutput(lambda: TrialLog(order.storage_uri, order.study_id, order.trial_id, order.attempt))
        self._output.say(
            f"trial {order.trial_id}, attempt {order.attempt}, on {socket.gethostname()} (process {os.getpid()})"
        )

    def next_result(self) -> TrialReport:
        """Trains up to the next epoch that is reported, from the newest usable checkpoint on.

        What earlier attempts have trained up to that checkpoint without its being recorded is reported first, from the
        results that the checkpoint carries along. Saves what the order wants saved.
        """
        with self._output.captured():
            report = self._next_report()
        if report.error is not None:
            self._end(f"the trial failed: {report.error}")
        elif report.is_end:
            self._end(report.divergence or "all epochs are done")
        return report

    def close(self) -> None:
        """Ends an attempt from outside: its trial was stopped early, paused or cancelled."""
        self._training = None
        self._end("this attempt was ended: stopped early, paused or cancelled, as its state says")

    def _next_report(self) -> TrialReport:
        epoch = 0
        try:
            with time_limit(self._deadline):
                self._training = training = self._training or self._begin()
                if self._unreported:
                    result = self._unreported.popleft()
                    return self._report(result.epoch, result.metrics, is_last=result.is_last, is_saved=True)
                epoch = training.epochs_done
                started = time.monotonic()
                result = training.next_result()
            self._results.add(result)
            self._say_result(result, seconds=time.monotonic() - started)
            is_saved, warning = self._save(training, result, since=epoch)
        except OutOfTimeError:
            self._training = None
            limit = self._order.max_trial_s
            error = f"the trial has trained for its budget.max_trial_s of {limit:g} s"
            return self._report(epoch, {}, is_last=False, error=error)
        except DivergedError as error:
            self._training = None
            return self._report(epoch, {}, is_last=False, divergence=str(error))
        except InvalidTrainConfigError as error:  # says the field, the rule and the value
            return self._report(epoch, {}, is_last=False, error=str(error))
        except Exception:  # noqa: BLE001  # the outermost runner: whatever ended the training is recorded on the trial
            self._training = None
            return self._report(epoch, {}, is_last=False, error=traceback.format_exc())
        warnings, self._lost = [one for one in (self._lost, warning) if one], None
        return self._report(
            result.epoch,
            result.metrics,
            is_last=result.is_last,
            warning="; ".join(warnings) or None,
            is_saved=is_saved,
        )

    def _begin(self) -> Training:
        """The training, continued from the newest checkpoint that is whole and leaves out no result.

        A first attempt may find some too: of drivers that a store has lost which was restored since.
        """
        order = self._order
        known = {name: value for name, value in defaults().items() if name not in _ALWAYS_SAID}
        chosen = {name: value for name, value in order.train.items() if value != known.get(name)}
        self._output.say(f"configuration: {json.dumps(chosen, ensure_ascii=False)}, all else by default")
        training = Training(TrainConfig.from_mapping(order.train), threads=order.threads)
        self._output.say(f"with {', '.join(_software(training.config))}, on {training.device_name}")
        if order.checkpoint_every_epochs:
            self._restore(training)
        if not training.epochs_done:
            self._output.say(f"training from the start, {training.config.epochs} epochs")
        return training

    def _restore(self, training: Training) -> None:
        """Goes on from the newest checkpoint of use; where the storage does not give it, the next report says so."""
        give_up_at = time.monotonic() + (STORAGE_PATIENCE_S if self._order.attempt > 1 else 0)
        waiting = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, OSError) and not isinstance(error, _GONE)),
            stop=lambda _: time.monotonic() >= give_up_at,  # of all that is asked
            wait=wait_exponential(multiplier=0.25, max=5),
            reraise=True,
        )
        try:
            found = waiting(lambda: self._checkpoints().take_over())
        except OSError as error:
            self._lost = f"the storage does not say which checkpoints there are: {error}"
            self._output.say(self._lost)
            return
        for checkpoint in found:
            try:
                content = loads(waiting(self._checkpoints().read, checkpoint))
                state, results = _unpacked(content, self._order.train, is_first=self._order.attempt == 1)
                self._continue(training, state, results)
                self._best = content.get("best")
                with suppress(OSError):
                    self._checkpoints().forget_best_beside(checkpoint)
            except OSError as error:
                lost = f"the checkpoint of epoch {checkpoint.epoch} cannot be read: {error}"
                self._lost = self._lost or lost
                self._output.say(lost)
            except OtherRunError as error:  # it is whole, and another node may go on from it
                lost = f"the checkpoint of epoch {checkpoint.epoch} cannot be gone on from here: {error}"
                self._lost = self._lost or lost
                self._output.say(lost)
            except (DamagedCheckpointError, _OtherConfigurationError, _MissingResultsError) as error:
                self._output.say(f"the checkpoint of epoch {checkpoint.epoch} is of no use: {error}")
                with suppress(OSError):  # it is not to be kept in place of a better one
                    self._checkpoints().discard(checkpoint)
            else:
                return

    def _continue(self, training: Training, state: dict[str, Any], results: _Results) -> None:
        """Puts the training into this state. Raises _MissingResultsError where results up to it would be lost."""
        last = training.config.epochs
        reported = min(self._order.epochs_done, last - 1)  # the last epoch's report is what ends the trial
        unreported = results.after(reported, last=last)
        training.load_state_dict(state)
        self._results = results
        self._unreported.extend(unreported)
        self._output.say(
            f"continues after epoch {training.epochs_done}/{last}, from the checkpoint of that epoch"
            + (f", which has the results from epoch {unreported[0].epoch} on" if unreported else "")
        )

    def _save(self, training: Training, result: EpochResult, *, since: int) -> tuple[bool, str | None]:
        """Saves after each multiple of the order's epochs, or after the first result that comes behind one; where the
        order wants the best one, also after an epoch that is better than all that were saved.

        Answers whether it has, and why that was not possible, where it was not: the training goes on, and what was
        saved before stays.
        """
        every = self._order.checkpoint_every_epochs
        due = every and training.epochs_done // every > since // every
        is_best, best = self._is_best(result)
        if not (is_best or (self._order.keep_last_checkpoint if result.is_last else due)):
            return False, None
        state = {"training": training.state_dict(), "results": self._results.state_dict(), "best": best}
        content = dumps({**state, "configuration": self._order.train})
        try:
            self._checkpoints().save(training.epochs_done, content, is_best=is_best)
        except OSError as error:
            warning = (
                f"the checkpoint of epoch {training.epochs_done} ({len(content):,} bytes) could not be written: {error}"
            )
            self._output.say(warning)
            return False, warning
        self._best = best
        return True, None

    def _is_best(self, result: EpochResult) -> tuple[bool, float | None]:
        """Whether the result is better than that of every epoch saved for that, and the best value with it."""
        value = None if self._order.best_by is None else result.metrics.get(self._order.best_by)
        if value is None:
            return False, self._best
        sign = 1 if self._order.best_mode == "max" else -1
        is_best = self._best is None or sign * value > sign * self._best
        return is_best, value if is_best else self._best

    def _say_result(self, result: EpochResult, *, seconds: float) -> None:
        metrics = (f"{name} {result.metrics[name]:.6g}" for name in _MAIN_METRICS if name in result.metrics)
        self._output.say(f"epoch {result.epoch}/{self._order.train['epochs']}: {', '.join(metrics)}; {seconds:.2f} s")

    def _end(self, words: str) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._output.say(words, is_end=True)
            self._output.close()

    def _checkpoints(self) -> TrialCheckpoints:
        """Made when it is needed, as even this may wait for a storage that does not answer."""
        order = self._order
        if self._stored is None:
            self._stored = TrialCheckpoints(order.storage_uri, order.study_id, order.trial_id, attempt=order.attempt)
        return self._stored

    def _report(
        self,
        epoch: int,
        metrics: dict[str, float],
        *,
        is_last: bool,
        error: str | None = None,
        divergence: str | None = None,
        warning: str | None = None,
        is_saved: bool = False,
    ) -> TrialReport:
        order = self._order
        return TrialReport(order.trial_id, order.attempt, epoch, metrics, is_last, error, divergence, warning, is_saved)


class _OtherConfigurationError(Exception):
    """A restored store gives the ids again that were given out after its backup, and to other configurations."""


class _MissingResultsError(Exception):
    """To go on from a checkpoint would leave out results that nobody has."""


class _Results:
    """What a training has reported, the last MOST_RESULTS of it, as its checkpoints carry it along.

    since: the epoch after which it is complete. lines: each result as JSON, which is made once while a checkpoint is
    written often.
    """

    def __init__(self, since: int = 0, lines: Iterable[str] = ()) -> None:
        self._since = since
        self._lines = deque(lines)

    def add(self, result: EpochResult) -> None:
        self._lines.append(json.dumps([result.epoch, result.metrics]))
        if len(self._lines) > MOST_RESULTS:
            self._since, _ = json.loads(self._lines.popleft())

    def after(self, epoch: int, *, last: int) -> list[EpochResult]:
        """Those after this epoch; last: the training's last epoch. Raises _MissingResultsError."""
        if self._since > epoch:
            raise _MissingResultsError(f"nobody has the results after epoch {epoch} up to epoch {self._since}")
        known = map(json.loads, self._lines)
        return [EpochResult(done, metrics, done == last) for done, metrics in known if done > epoch]

    def state_dict(self) -> dict[str, Any]:
        return {"since": self._since, "lines": "\n".join(self._lines)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> _Results:
        return cls(state["since"], state["lines"].splitlines())


def _unpacked(content: dict[str, Any], train: dict[str, Any], *, is_first: bool) -> tuple[dict[str, Any], _Results]:
    """A checkpoint's state of the training, and its results: earlier versions of the service saved only the state.

    train: the settings of the trial that goes on from it. is_first: whether it is in its first attempt, so that the
    checkpoint was left by drivers that the store does not know. Raises _OtherConfigurationError where it has others;
    one that only either of two versions knows does not count.
    """
    if "training" not in content:
        content = {"training": content, "results": {"since": content["epochs_done"], "lines": ""}}
    saved = content.get("configuration")
    if saved is None and is_first:
        raise _OtherConfigurationError("it does not say of which configuration it is")
    saved = saved or {}
    for name in sorted(saved.keys() & train.keys()):
        if saved[name] != train[name]:
            raise _OtherConfigurationError(f"it is of another configuration, with {name} {saved[name]!r}")
    return content["training"], _Results.from_state_dict(content["results"])


def _software(config: TrainConfig) -> Iterator[str]:
    """What its numbers depend on beside the configuration: the versions of what trains it."""
    for name in ("samstudy", "torch"):
        with suppress(PackageNotFoundError):  # it may be on the path only
            yield f"{name} {version(name)}"
    codes = (MODELS[config.model].code, DATASETS[config.dataset].code)
    yield from sorted({PACKAGES[code] for code in codes if code is not None})
