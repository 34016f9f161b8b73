"""Early stopping: Tune's schedulers, rebuilt from the store so that a new driver decides as the old one would have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from service.spec import StudySpec
from service.spec_sections import AshaScheduler
from service.store.driving import StudySnapshot
from trainers.config import defaults


class ReplayedAsha(AsyncHyperBandScheduler):
    """Asynchronous successive halving (arXiv 1810.05934) whose rungs know trials by our ids.

    A Tune trial is one attempt; a trial that goes on as another Tune trial keeps its place in the rungs.

    trial_id_of: our trial's id for a Tune trial's.
    """

    def __init__(self, trial_id_of: Callable[[str], str], **arguments: Any) -> None:
        super().__init__(time_attr="epoch", **arguments)
        self._trial_id_of = trial_id_of
        self._behind: set[str] = set()

    def replay(self, trial_id: str, epoch: int, value: float) -> None:
        """A result that an earlier driver saw, in the order in which it saw them; a decision to stop still holds."""
        trial = SimpleNamespace(trial_id=trial_id)
        if trial_id not in self._trial_info:
            super().on_trial_add(None, trial)
        if super().on_trial_result(None, trial, {"epoch": epoch, self._metric: value}) == TrialScheduler.STOP:
            self._behind.add(trial_id)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        known = self._ours(trial)
        if known.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, known)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours = self._ours(trial)
        if ours.trial_id in self._behind:
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, ours, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result is in the rungs already: a scheduler sees every result before the trial ends."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Trials stay known: the next attempt goes on in the same bracket."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Trials stay known: the next attempt goes on in the same bracket."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its schedulers for a recovery of its own; ours goes through the store."""
        return {}

    def _ours(self, trial: Any) -> SimpleNamespace:
        return SimpleNamespace(trial_id=self._trial_id_of(trial.trial_id))


def scheduler_for(spec: StudySpec, snapshot: StudySnapshot, trial_id_of: Callable[[str], str]) -> TrialScheduler:
    """The scheduler that the spec names, with everything in its rungs that the study has seen."""
    if not isinstance(spec.scheduler, AshaScheduler):
        return FIFOScheduler()
    scheduler = ReplayedAsha(
        trial_id_of,
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        max_t=spec.train.get("epochs", defaults()["epochs"]),
        grace_period=spec.scheduler.grace_period,
        reduction_factor=spec.scheduler.reduction_factor,
        stop_last_trials=False,
    )
    for result in snapshot.results:
        if spec.objective.metric in result.metrics:
            scheduler.replay(result.trial_id, result.epoch, result.metrics[spec.objective.metric])
    return scheduler
