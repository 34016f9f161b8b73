"""Early stopping: Tune's schedulers, rebuilt from the store so that a new driver decides as the old one would have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, assert_never

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from service.spec import StudySpec
from service.spec_sections import AshaScheduler, NoScheduler
from service.store.snapshots import StudySnapshot
from service.study import Purpose
from service.tuning.decisions import IssuedTrial
from trainers.config import defaults

_LARGEST = 1e300


class ReplayedAsha(AsyncHyperBandScheduler):
    """Asynchronous successive halving (arXiv 1810.05934) whose rungs know trials by our ids.

    A Tune trial is one attempt; a trial that goes on as another Tune trial keeps its place in the rungs. A rung
    compares trials of one seed each, never means over different numbers of seeds; `why_stopped` says against how many.

    ours: the trial of ours behind a Tune trial's id. Trials that confirm the best are left alone.
    """

    def __init__(self, ours: Callable[[str], IssuedTrial], **arguments: Any) -> None:
        super().__init__(time_attr="epoch", **arguments)
        self._ours = ours
        self._behind: dict[str, str] = {}

    def why_stopped(self, trial_id: str) -> str | None:
        """Which value was too far behind how many others; None where the trial was not stopped."""
        return self._behind.get(trial_id)

    def replay(self, trial_id: str, epoch: int, value: float) -> None:
        """A result that an earlier driver saw, in the order in which it saw them; a decision to stop still holds."""
        trial = SimpleNamespace(trial_id=trial_id)
        if trial_id not in self._trial_info:
            super().on_trial_add(None, trial)
        self._judge(trial, {"epoch": epoch, self._metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        ours = self._ours(trial.trial_id)
        if ours.purpose is Purpose.SEARCH and ours.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, SimpleNamespace(trial_id=ours.trial_id))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours = self._ours(trial.trial_id)
        if ours.purpose is not Purpose.SEARCH:
            return str(TrialScheduler.CONTINUE)
        if ours.trial_id not in self._behind:
            self._judge(SimpleNamespace(trial_id=ours.trial_id), result)
        return str(TrialScheduler.STOP if ours.trial_id in self._behind else TrialScheduler.CONTINUE)

    def _judge(self, trial: SimpleNamespace, result: dict[str, Any]) -> None:
        value = result.get(self._metric)
        if value is not None:  # a training that diverges reports any number there is, and cutoffs lie between two
            result = {**result, self._metric: min(max(value, -_LARGEST), _LARGEST)}
        if super().on_trial_result(None, trial, result) == TrialScheduler.STOP:
            self._behind[trial.trial_id] = self._comparison(trial.trial_id)

    def _comparison(self, trial_id: str) -> str:
        """What the rung that has just judged the trial compared."""
        bracket = self._trial_info[trial_id]
        milestone, rung = next((milestone, rung) for milestone, rung in bracket._rungs if trial_id in rung)
        others = {name: value for name, value in rung.items() if name != trial_id}
        value, cutoff = self._metric_op * rung[trial_id], self._metric_op * float(bracket.cutoff(others))
        side = "below" if self._metric_op > 0 else "above"
        compared = "1 other trial" if len(others) == 1 else f"{len(others)} other trials"
        return (
            f"asha, from epoch {milestone:g} on: {self._metric} {value:.6g} is {side} {cutoff:.6g}, the cutoff of "
            f"{compared} that came so far, one seed each"
        )

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result of a trial that ends is in the rungs already; one that leaves for a pause is replayed."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Trials stay known: the next attempt goes on in the same bracket."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Trials stay known: the next attempt goes on in the same bracket."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its schedulers for a recovery of its own; ours goes through the store."""
        return {}


def scheduler_for(spec: StudySpec, snapshot: StudySnapshot, ours: Callable[[str], IssuedTrial]) -> TrialScheduler:
    """The scheduler that the spec names, with everything in its rungs that the study has seen."""
    match spec.scheduler:
        case NoScheduler():
            return FIFOScheduler()
        case AshaScheduler():
            return _replayed_asha(spec, spec.scheduler, snapshot, ours)
        case unknown:
            assert_never(unknown)


def why_stopped(scheduler: TrialScheduler, trial_id: str) -> str | None:
    """What the scheduler says of a trial of ours that it has stopped; None where it stops none."""
    return scheduler.why_stopped(trial_id) if isinstance(scheduler, ReplayedAsha) else None


def _replayed_asha(
    spec: StudySpec, asha: AshaScheduler, snapshot: StudySnapshot, ours: Callable[[str], IssuedTrial]
) -> ReplayedAsha:
    scheduler = ReplayedAsha(
        ours,
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        max_t=spec.train.get("epochs", defaults()["epochs"]),
        grace_period=asha.grace_period,
        reduction_factor=asha.reduction_factor,
        stop_last_trials=False,
    )
    confirming = {trial.id for trial in snapshot.trials if trial.purpose is Purpose.CONFIRM}
    for result in snapshot.results:
        if result.trial_id not in confirming and spec.objective.metric in result.metrics:
            scheduler.replay(result.trial_id, result.epoch, result.metrics[spec.objective.metric])
    return scheduler
