"""Tune's side of a study: the searcher that hands out trials, the callback that hears of them, the stopper."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from service.errors import LeaseLostError, StoreUnavailableError
from service.store.reports import AttemptLost, AttemptPaused, AttemptStarted, EpochReported, TrialEnded
from service.store.snapshots import Instructions
from service.study import Intent, Reason, StudyState, TrialState
from service.tuning.decisions import Ending, IssuedTrial, Leaving
from service.tuning.idle_workers import IdleWorkers
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.progress import StudyProgress
from service.tuning.recorder import Recorder

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
"""How often it is looked whether trials are overdue."""


class _Unsaved:
    """Tune pickles what it is given, for a recovery of its own; ours goes through the store."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Unsaved, Searcher):
    """Answers Tune's question for the next trial with whatever the study's progress decides.

    It answers None, "ask again later", while the study waits for running trials, and FINISHED once nothing is left.
    """

    def __init__(
        self,
        progress: StudyProgress,
        recorder: Recorder,
        order_for: Callable[[IssuedTrial], TrialOrder],
        idle_workers: IdleWorkers,
    ) -> None:
        super().__init__()
        self._progress = progress
        self._recorder = recorder
        self._order_for = order_for
        self._idle_workers = idle_workers
        self._issued: dict[str, IssuedTrial] = {}
        self._orders: dict[str, TrialOrder] = {}
        self._paused: set[str] = set()
        self._withdrawn: set[str] = set()
        self._followed: Instructions | None = None
        self._decided: Ending | Leaving | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._recorder.tick()  # where nothing runs, Tune asks again and again within one step of its loop
        if self.must_stop():
            return str(Searcher.FINISHED)
        try:
            issued = self._progress.next_trial()
        except StoreUnavailableError as error:
            logger.warning("waiting for the store: %s", error)
            return None
        except LeaseLostError:
            self._recorder.lose_lease()
            return str(Searcher.FINISHED)
        if isinstance(issued, Ending | Leaving):
            self._decided = issued
            return str(Searcher.FINISHED)
        if issued is None:
            if self._progress.has_all_of_its_share:
                self._idle_workers.give_back()
            return None
        order = self._order_for(issued)
        self._issued[trial_id] = issued
        self._orders[trial_id] = order
        return order.to_tune_config()

    def must_stop(self) -> bool:
        """Whether the study ends now, whatever runs: cancelled, out of budget, too many failures, or lease lost.

        So it does where nothing is left that a user who pauses or stops it waits for. What is decided stays decided,
        and what its user wishes after that is not followed: the store sees that the decision did not know it.
        """
        instructions = self._recorder.instructions
        if self._decided is None:
            if instructions is not None and instructions is not self._followed:
                self._progress.follow(instructions)
                self._followed = instructions
            self._decided = self._progress.must_end_now()
        return self._is_cancelled or self._recorder.has_lost_lease or self._decided is not None

    @property
    def ending(self) -> Ending | Leaving | None:
        """How the study ends, or that the driver leaves it; None while there is more to run."""
        if self._is_cancelled:
            return Ending(StudyState.CANCELLED, Reason.USER)
        return self._progress.settled(self._decided) if isinstance(self._decided, Ending) else self._decided

    @property
    def _is_cancelled(self) -> bool:
        instructions = self._recorder.instructions
        return instructions is not None and instructions.intent is Intent.CANCEL

    def pauses(self, trial_id: str, *, is_saved: bool) -> bool:
        """Whether a Tune trial is to leave its worker after this result. is_saved: whether its state is kept.

        It is while the study is being paused, as soon as its state is, or at once where it never is.
        """
        if trial_id in self._withdrawn:
            return True
        never_saves = not self._orders[trial_id].checkpoint_every_epochs
        if self._progress.is_pausing and (is_saved or never_saves):
            self._paused.add(trial_id)
        return trial_id in self._paused

    def has_paused(self, trial_id: str) -> bool:
        """Whether a Tune trial has been told to leave its worker."""
        return trial_id in self._paused

    def withdraw(self, trial_id: str) -> None:
        """Takes back a Tune trial that began too late: it is to leave its worker, and nothing that it says counts."""
        self._withdrawn.add(trial_id)

    def is_withdrawn(self, trial_id: str) -> bool:
        """Whether what a Tune trial says counts no more."""
        return trial_id in self._withdrawn

    def issued(self, trial_id: str) -> IssuedTrial:
        """Our trial behind a Tune trial's id."""
        return self._issued[trial_id]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's own bookkeeping; the study hears of its trials through the callback."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the store has everything."""


class StudyCallback(_Unsaved, tune.Callback):
    """Hears from Tune what trials do; tells the progress at once and the store through the recorder."""

    def __init__(
        self,
        searcher: StudySearcher,
        progress: StudyProgress,
        recorder: Recorder,
        *,
        metric: str,
        why_stopped: Callable[[str], str | None],
        tidy_checkpoints: Callable[[str], None],
        trial_grace_s: float,
    ) -> None:
        """why_stopped: what early stopping says of a trial of ours that it has stopped.

        trial_grace_s: how long after its time has run out a trial's worker is killed, where it does not end by itself.
        """
        self._searcher = searcher
        self._progress = progress
        self._recorder = recorder
        self._metric = metric
        self._why_stopped = why_stopped
        self._tidy_checkpoints = tidy_checkpoints
        self._trial_grace_s = trial_grace_s
        self._last: dict[str, TrialReport] = {}
        self._overdue: set[str] = set()
        self._look_again_at = 0.0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop goes round; a worker that takes no notice of its trial's limit, as in a call of C, is killed."""
        self._recorder.tick()
        if time.monotonic() < self._look_again_at:
            return
        self._look_again_at = time.monotonic() + _LOOK_EVERY_S
        for trial in trials:
            if trial.status != "RUNNING" or trial.trial_id in self._overdue:
                continue
            issued = self._searcher.issued(trial.trial_id)
            actor = trial.temporary_state.ray_actor
            if actor is not None and self._progress.is_overdue(issued.trial_id, self._trial_grace_s):
                logger.warning(
                    "trial %s is overdue: its worker is killed", issued.trial_id, extra={"trial_id": issued.trial_id}
                )
                self._overdue.add(trial.trial_id)
                ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        issued = self._searcher.issued(trial.trial_id)
        if self._progress.attempt_started(issued.trial_id, issued.attempt):
            self._recorder.record(AttemptStarted(issued.trial_id, issued.attempt, trial.node_ip or None))
        else:
            self._searcher.withdraw(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self._searcher.is_withdrawn(trial.trial_id):
            return
        report = TrialReport.from_tune_result(result)
        self._last[trial.trial_id] = report
        if report.is_result:
            self._progress.epoch_reported(report.trial_id, report.epoch, report.metrics.get(self._metric))
            if report.warning is not None:
                logger.warning("trial %s: %s", report.trial_id, report.warning, extra={"trial_id": report.trial_id})
            self._recorder.record(
                EpochReported(report.trial_id, report.attempt, report.epoch, report.metrics, report.warning)
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        issued = self._searcher.issued(trial.trial_id)
        report = self._last.pop(trial.trial_id, None)
        if self._searcher.is_withdrawn(trial.trial_id):
            return
        if report is not None and report.error is not None:
            self._end(issued, TrialState.FAILED, error=report.error)
        elif report is not None and report.divergence is not None:
            self._end(issued, TrialState.EARLY_STOPPED, divergence=report.divergence)
        elif report is not None and report.is_last:
            self._end(issued, TrialState.SUCCEEDED)
        elif self._searcher.must_stop():
            return  # the study's end cancels it
        elif self._searcher.has_paused(trial.trial_id):
            self._progress.trial_paused(issued.trial_id)
            self._recorder.record(AttemptPaused(issued.trial_id, issued.attempt))
        elif report is not None:
            self._end(issued, TrialState.EARLY_STOPPED)
        else:
            self._lose(issued, "the worker ended before its first report")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker is gone: what the training itself does wrong comes as a result."""
        issued = self._searcher.issued(trial.trial_id)
        self._last.pop(trial.trial_id, None)
        if not self._progress.has_started(issued.trial_id, issued.attempt):  # the worker died of its start
            self.on_trial_start(iteration, trials, trial)
        if trial.trial_id in self._overdue:
            error = (
                f"the trial has trained for its budget.max_trial_s of {issued.max_trial_s:g} s, took no notice for "
                f"{self._trial_grace_s:g} s more, and its worker was killed"
            )
            self._end(issued, TrialState.FAILED, error=error)
        elif not self._searcher.is_withdrawn(trial.trial_id):
            self._lose(issued, _last_words(trial))

    def _lose(self, issued: IssuedTrial, error: str) -> None:
        if self._progress.attempt_lost(issued.trial_id):
            said = {"trial_id": issued.trial_id}
            logger.warning("trial %s lost attempt %d: %s", issued.trial_id, issued.attempt, error, extra=said)
            self._recorder.record(AttemptLost(issued.trial_id, issued.attempt, error))
        else:
            self._end(issued, TrialState.FAILED, error=f"its workers were lost once too often; the last time:\n{error}")

    def _end(
        self, issued: IssuedTrial, state: TrialState, *, error: str | None = None, divergence: str | None = None
    ) -> None:
        objective = self._progress.trial_ended(issued.trial_id, state, has_diverged=divergence is not None)
        note = divergence
        if note is None and state is TrialState.EARLY_STOPPED:
            note = self._why_stopped(issued.trial_id)
        self._recorder.record(
            TrialEnded(issued.trial_id, issued.attempt, state, objective, error, note),
            after_commit=lambda: self._tidy_checkpoints(issued.trial_id),
        )


class StudyStopper(_Unsaved, tune.Stopper):
    """Ends every trial at once when the study must stop, and each at its next checkpoint when it is being paused."""

    def __init__(self, searcher: StudySearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._searcher.pauses(trial_id, is_saved=TrialReport.from_tune_result(result).is_saved)

    def stop_all(self) -> bool:
        return self._searcher.must_stop()


def _last_words(trial: Any) -> str:
    """What Tune wrote down of the trial's error; Trial.get_error would look for it in storage, where it may not be."""
    path = Path(trial.error_file or "")
    return path.read_text(errors="replace").strip() if path.is_file() else "the worker ended without a word"
