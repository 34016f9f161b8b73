"""Early stopping: Tune's schedulers, rebuilt from the store so that a new driver decides as the old one would have."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from service.spec import StudySpec
from service.spec_sections import HyperbandScheduler, MedianScheduler, NoScheduler
from service.store.snapshots import StudySnapshot
from service.study import Purpose
from service.tuning.decisions import IssuedTrial
from service.tuning.idle_workers import IdleWorkers, InOrder, Watched
from trainers.config import defaults

_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class _OurTrial:
    """What a scheduler of Tune's looks at of a trial, with our id."""

    trial_id: str


class Replayed(Watched):
    """A scheduler of Tune's that knows trials by our ids, and whose decisions outlive the driver that made them.

    A Tune trial is one attempt; a trial that goes on as another Tune trial keeps its place. Compared are trials of one
    seed each, never means over different numbers of seeds; `why_stopped` says against how many. Trials that confirm the
    best are left alone.

    To be inherited from before the scheduler of Tune's. Only `_judge` and `_comparison` know what that one does.
    """

    _metric: str

    def __init__(self, ours: Callable[[str], IssuedTrial], idle_workers: IdleWorkers, **arguments: Any) -> None:
        """ours: the trial of ours behind a Tune trial's id. arguments: of the scheduler of Tune's."""
        super().__init__(idle_workers, time_attr="epoch", **arguments)
        self._ours = ours
        self._known: dict[str, _OurTrial] = {}
        self._behind: dict[str, str] = {}

    def why_stopped(self, trial_id: str) -> str | None:
        """Which value was too far behind how many others; None where the trial was not stopped."""
        return self._behind.get(trial_id)

    def replay(self, trial_id: str, epoch: int, value: float) -> None:
        """A result that an earlier driver saw, in the order in which it saw them; a decision to stop still holds."""
        if trial_id not in self._behind:  # decided once: an epoch may follow, where Tune did not ask about this one
            self._decide(self._met(trial_id), {"epoch": epoch, self._metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._idle_workers.are_kept_by(tune_controller)
        ours = self._ours(trial.trial_id)
        if ours.purpose is Purpose.SEARCH:
            self._met(ours.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours = self._ours(trial.trial_id)
        if ours.purpose is not Purpose.SEARCH:
            return str(TrialScheduler.CONTINUE)
        if ours.trial_id not in self._behind:
            self._decide(self._met(ours.trial_id), result)
        return str(TrialScheduler.STOP if ours.trial_id in self._behind else TrialScheduler.CONTINUE)

    def _met(self, trial_id: str) -> _OurTrial:
        if trial_id not in self._known:
            self._known[trial_id] = _OurTrial(trial_id)
            super(Watched, self).on_trial_add(None, self._known[trial_id])
        return self._known[trial_id]

    def _decide(self, trial: _OurTrial, result: dict[str, Any]) -> None:
        value = result.get(self._metric)
        if value is not None:  # a training that diverges reports any number there is, and cutoffs lie between two
            result = {**result, self._metric: min(max(value, -_LARGEST), _LARGEST)}
        if self._judge(trial, result) == TrialScheduler.STOP:
            self._behind[trial.trial_id] = self._comparison(trial, result["epoch"])

    def _judge(self, trial: _OurTrial, result: dict[str, Any]) -> str:
        """What Tune's scheduler decides."""
        return str(super().on_trial_result(None, trial, result))

    def _comparison(self, trial: _OurTrial, epoch: int) -> str:
        """What has just been compared, where the trial is to stop after this epoch."""
        raise NotImplementedError

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result of a trial that ends is known already; one that leaves for a pause is replayed."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Trials stay known: the next attempt goes on in the same place."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Trials stay known: the next attempt goes on in the same place."""


class ReplayedHalving(Replayed, AsyncHyperBandScheduler):
    """Asynchronous successive halving (arXiv 1810.05934), in one bracket (ASHA) or in several (Hyperband).

    Which bracket a trial comes into depends on its number within the study alone, and not on chance: a new driver, and
    a clone, put it into the same one.
    """

    def __init__(self, *of_ours: Any, name: str, **arguments: Any) -> None:
        """name: what the spec calls it."""
        super().__init__(*of_ours, stop_last_trials=False, **arguments)
        self._name = name

    def _met(self, trial_id: str) -> _OurTrial:
        is_new = trial_id not in self._known
        trial = super()._met(trial_id)
        if is_new:
            self._trial_info[trial_id] = self._brackets[self._bracket_of(trial_id)]
        return trial

    def _bracket_of(self, trial_id: str) -> int:
        """As Tune has it, e times as probable with a rung more."""
        weights = [math.exp(len(bracket._rungs)) for bracket in self._brackets]
        digest = hashlib.sha256(trial_id.partition("-")[2].encode()).digest()
        number = int.from_bytes(digest[:8]) / 2**64 * sum(weights)
        return bisect.bisect_right(list(itertools.accumulate(weights[:-1])), number)

    def _comparison(self, trial: _OurTrial, epoch: int) -> str:
        bracket = self._trial_info[trial.trial_id]
        milestone, rung = next((milestone, rung) for milestone, rung in bracket._rungs if trial.trial_id in rung)
        others = {name: value for name, value in rung.items() if name != trial.trial_id}
        value, cutoff = self._metric_op * rung[trial.trial_id], self._metric_op * float(bracket.cutoff(others))
        side = "below" if self._metric_op > 0 else "above"
        where = f"{self._name}, from epoch {milestone:g} on"
        if len(self._brackets) > 1:
            where += f" in bracket {self._brackets.index(bracket)}"
        return (
            f"{where}: {self._metric} {value:.6g} is {side} {cutoff:.6g}, the cutoff of {_others(len(others))} that "
            "came so far, one seed each"
        )


class ReplayedMedian(Replayed, MedianStoppingRule):
    """The median stopping rule (Golovin et al. 2017, Google Vizier), of each epoch's first report."""

    def _judge(self, trial: _OurTrial, result: dict[str, Any]) -> str:
        seen = self._results.get(trial)
        if seen and result["epoch"] <= seen[-1]["epoch"]:
            return str(TrialScheduler.CONTINUE)  # an attempt that goes on from an earlier checkpoint trains it again
        return super()._judge(trial, result)

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        """Tune's own would have the trial give way to others, and go on later."""
        return str(TrialScheduler.CONTINUE)

    def _comparison(self, trial: _OurTrial, epoch: int) -> str:
        others = [other for other in self._trials_beyond_time(epoch) if other != trial]
        means = [float(self._running_mean(other, epoch)) for other in others]
        side = "below" if self._mode == "max" else "above"
        best, median = self._best_result(trial), statistics.median(means)
        return (
            f"median, epoch {epoch}: the best {self._metric} so far, {best:.6g}, is {side} {median:.6g}, the median of "
            f"the means of {_others(len(means))} up to there, one seed each"
        )


def _others(count: int) -> str:
    return "1 other trial" if count == 1 else f"{count} other trials"


def scheduler_for(
    spec: StudySpec, snapshot: StudySnapshot, ours: Callable[[str], IssuedTrial], idle_workers: IdleWorkers
) -> TrialScheduler:
    """The scheduler that the spec names, which knows everything that the study has seen."""
    scheduler = _new_scheduler(spec, ours, idle_workers)
    if not isinstance(scheduler, Replayed):
        return scheduler
    confirming = {trial.id for trial in snapshot.trials if trial.purpose is Purpose.CONFIRM}
    for seen in snapshot.epoch_values:
        if seen.trial_id not in confirming:
            scheduler.replay(seen.trial_id, seen.epoch, seen.value)
    return scheduler


def why_stopped(scheduler: TrialScheduler, trial_id: str) -> str | None:
    """What the scheduler says of a trial of ours that it has stopped; None where it stops none."""
    return scheduler.why_stopped(trial_id) if isinstance(scheduler, Replayed) else None


def _new_scheduler(spec: StudySpec, ours: Callable[[str], IssuedTrial], idle_workers: IdleWorkers) -> TrialScheduler:
    chosen = spec.scheduler
    if isinstance(chosen, NoScheduler):
        return InOrder(idle_workers)
    arguments: dict[str, Any] = {
        "metric": spec.objective.metric,
        "mode": spec.objective.mode,
        "grace_period": chosen.grace_period,
    }
    if isinstance(chosen, MedianScheduler):
        return ReplayedMedian(ours, idle_workers, min_samples_required=chosen.min_trials, **arguments)
    return ReplayedHalving(
        ours,
        idle_workers,
        name=chosen.name,
        max_t=spec.train.get("epochs", defaults()["epochs"]),
        reduction_factor=chosen.reduction_factor,
        brackets=chosen.brackets if isinstance(chosen, HyperbandScheduler) else 1,
        **arguments,
    )
