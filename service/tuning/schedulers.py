"""Early stopping: rules rebuilt from the store so that a new driver decides as the old one would have."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from service.spec import StudySpec
from service.spec_sections import HyperbandScheduler, MedianScheduler, NoScheduler
from service.store.snapshots import StudySnapshot
from service.study import Purpose
from service.tuning.decisions import IssuedTrial
from service.tuning.idle_workers import IdleWorkers, InOrder, Watched
from trainers.config import defaults

_LARGEST = 1e300


def scheduler_for(
    spec: StudySpec, snapshot: StudySnapshot, ours: Callable[[str], IssuedTrial], idle_workers: IdleWorkers
) -> TrialScheduler:
    """The scheduler that the spec names, which knows everything that the study has seen.

    ours: the trial of ours behind a Tune trial's id.
    """
    rule = _rule_of(spec)
    if rule is None:
        return InOrder(idle_workers)
    scheduler = StoppingScheduler(rule, spec.objective.metric, ours, idle_workers)
    confirming = {trial.id for trial in snapshot.trials if trial.purpose is Purpose.CONFIRM}
    for seen in snapshot.epoch_values:
        if seen.trial_id not in confirming:
            scheduler.take_in(seen.trial_id, seen.epoch, seen.value)
    return scheduler


def why_stopped(scheduler: TrialScheduler, trial_id: str) -> str | None:
    """Which value of a trial of ours was too far behind how many others; None where the scheduler did not stop it."""
    return scheduler.behind.get(trial_id) if isinstance(scheduler, StoppingScheduler) else None


class StoppingRule(Protocol):
    """Compares trials by the objective, one seed each; never means over different numbers of seeds."""

    def why_stop(self, trial_id: str, epoch: int, value: float) -> str | None:
        """Takes in what a trial reports; what it is to be stopped for, None where it goes on."""


class StoppingScheduler(Watched, FIFOScheduler):
    """Runs trials in order, and stops those that a rule finds behind; its decisions outlive the driver that made them.

    The rule knows trials by our ids. A Tune trial is one attempt; a trial that goes on as another Tune trial keeps its
    place. Trials that confirm the best are left alone.

    behind: the trials that are to stop, and why.
    """

    def __init__(
        self, rule: StoppingRule, metric: str, ours: Callable[[str], IssuedTrial], idle_workers: IdleWorkers
    ) -> None:
        super().__init__(idle_workers)
        self.rule = rule
        self.behind: dict[str, str] = {}
        self._metric = metric
        self._ours = ours

    def take_in(self, trial_id: str, epoch: int, value: float) -> None:
        """A search trial's result: a new one, or one that an earlier driver saw, in the order in which it saw them.

        Nothing more is decided about a trial that is behind, although it may train on: Tune asks about no result of a
        study that is pausing, so that a decision may be made only where the next driver replays it.
        """
        if trial_id in self.behind:
            return
        # A training that diverges reports any number there is, and cutoffs lie between two.
        why = self.rule.why_stop(trial_id, epoch, min(max(value, -_LARGEST), _LARGEST))
        if why is not None:
            self.behind[trial_id] = why

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        ours = self._ours(trial.trial_id)
        if ours.purpose is not Purpose.SEARCH:
            return str(TrialScheduler.CONTINUE)
        epoch, value = result.get("epoch"), result.get(self._metric)
        if epoch is not None and value is not None:
            self.take_in(ours.trial_id, epoch, value)
        return str(TrialScheduler.STOP if ours.trial_id in self.behind else TrialScheduler.CONTINUE)


@dataclass(frozen=True, slots=True)
class _OurTrial:
    """What a bracket of Tune's looks at of a trial, with our id."""

    trial_id: str


class Halving:
    """Asynchronous successive halving (arXiv 1810.05934), in one bracket (ASHA) or in several (Hyperband); Tune's own.

    Which bracket a trial comes into depends on its number within the study alone, and not on chance: a new driver, and
    a clone, put it into the same one.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        *,
        name: str,
        grace_period: int,
        max_t: int,
        reduction_factor: float,
        brackets: int,
    ) -> None:
        """name: what the spec calls it. max_t: the epochs of a whole trial."""
        tunes = AsyncHyperBandScheduler(
            max_t=max_t,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
            brackets=brackets,
            stop_last_trials=False,
        )
        self.brackets = tunes._brackets
        self._metric, self._sign, self._name = metric, _sign(mode), name
        weights = [math.exp(len(bracket._rungs)) for bracket in self.brackets]
        self._ends = list(itertools.accumulate(weights[:-1]))
        self._whole = sum(weights)

    def why_stop(self, trial_id: str, epoch: int, value: float) -> str | None:
        index = self.bracket_of(trial_id)
        bracket = self.brackets[index]
        if bracket.on_result(_OurTrial(trial_id), epoch, self._sign * value) != TrialScheduler.STOP:
            return None
        milestone, rung = next((milestone, rung) for milestone, rung in bracket._rungs if trial_id in rung)
        others = {name: other for name, other in rung.items() if name != trial_id}
        cutoff = self._sign * float(bracket.cutoff(others))
        where = f"{self._name}, from epoch {milestone:g} on"
        if len(self.brackets) > 1:
            where += f" in bracket {index}"
        return (
            f"{where}: {self._metric} {value:.6g} is {_side(self._sign)} {cutoff:.6g}, the cutoff of "
            f"{_others(len(others))} that came so far, one seed each"
        )

    def bracket_of(self, trial_id: str) -> int:
        """Its index. As Tune has it, a bracket is e times as probable with a rung more."""
        digest = hashlib.sha256(trial_id.partition("-")[2].encode()).digest()
        return bisect.bisect_right(self._ends, int.from_bytes(digest[:8]) / 2**64 * self._whole)


@dataclass(slots=True)
class _Course:
    """What the median rule keeps of a trial. All values are such that more is better.

    means: over what was reported from grace_period up to each of the epochs. total: of these values, exactly, since
    rounding must not put a mean above the values that it is of.
    """

    last_epoch: int = 0
    best: float = -math.inf
    total: Fraction = Fraction(0)
    epochs: array[int] = field(default_factory=lambda: array("q"))
    means: array[float] = field(default_factory=lambda: array("d"))

    def add_to_mean(self, epoch: int, value: float) -> None:
        self.total += Fraction(value)
        self.epochs.append(epoch)
        self.means.append(float(self.total / len(self.epochs)))

    def mean_up_to(self, epoch: int) -> float | None:
        reported = bisect.bisect_right(self.epochs, epoch)
        return self.means[reported - 1] if reported else None


class Median:
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.1), of each epoch's first report.

    From grace_period on, a trial is stopped after an epoch where its best value is strictly worse than the median of
    the other trials' means, if at least min_trials others have come as far. A mean is over what a trial reported from
    grace_period up to that epoch.

    The means up to each epoch are kept in their order, so that a result costs hardly more with more trials or epochs.
    """

    def __init__(self, metric: str, mode: str, *, grace_period: int, min_trials: int) -> None:
        self._metric, self._sign = metric, _sign(mode)
        self._grace_period, self._min_trials = grace_period, min_trials
        self._courses: dict[str, _Course] = {}
        self._epochs: list[int] = []  # those that any trial has reported
        self._means: dict[int, array[float]] = {}  # of the trials that have come as far

    def why_stop(self, trial_id: str, epoch: int, value: float) -> str | None:
        course = self._courses.setdefault(trial_id, _Course())
        if epoch <= course.last_epoch or math.isnan(value):
            return None  # an attempt that goes on from an earlier checkpoint trains epochs again
        course.best = max(course.best, self._sign * value)
        before, course.last_epoch = course.last_epoch, epoch
        if epoch < self._grace_period:
            return None
        course.add_to_mean(epoch, self._sign * value)
        others = self._means_of_others(course, epoch)
        why = self._comparison(course.best, others, epoch)
        for passed in self._epochs[bisect.bisect_right(self._epochs, before) : bisect.bisect(self._epochs, epoch)]:
            mean = course.mean_up_to(passed)
            if mean is not None:
                bisect.insort(self._means[passed], mean)
        return why

    def _means_of_others(self, course: _Course, epoch: int) -> array[float]:
        """As they are before this trial's own is among them; trials may have passed an epoch without a report."""
        if epoch not in self._means:
            further = (one for one in self._courses.values() if one is not course and one.last_epoch >= epoch)
            means = (one.mean_up_to(epoch) for one in further)
            self._means[epoch] = array("d", sorted(mean for mean in means if mean is not None))
            bisect.insort(self._epochs, epoch)
        return self._means[epoch]

    def _comparison(self, best: float, means: Sequence[float], epoch: int) -> str | None:
        """means: of the others, in order."""
        if len(means) < self._min_trials:
            return None
        median = (means[(len(means) - 1) // 2] + means[len(means) // 2]) / 2
        if best >= median:
            return None
        return (
            f"median, epoch {epoch}: the best {self._metric} so far, {self._sign * best:.6g}, is {_side(self._sign)} "
            f"{self._sign * median:z.6g}, the median of the means of {_others(len(means))} up to there, one seed each"
        )


def _sign(mode: str) -> int:
    return 1 if mode == "max" else -1


def _side(sign: int) -> str:
    return "below" if sign > 0 else "above"


def _others(count: int) -> str:
    return "1 other trial" if count == 1 else f"{count} other trials"


def _rule_of(spec: StudySpec) -> StoppingRule | None:
    chosen, objective = spec.scheduler, spec.objective
    if isinstance(chosen, NoScheduler):
        return None
    if isinstance(chosen, MedianScheduler):
        return Median(objective.metric, objective.mode, grace_period=chosen.grace_period, min_trials=chosen.min_trials)
    return Halving(
        objective.metric,
        objective.mode,
        name=chosen.name,
        grace_period=chosen.grace_period,
        max_t=int(spec.train.get("epochs", defaults()["epochs"])),
        reduction_factor=chosen.reduction_factor,
        brackets=chosen.brackets if isinstance(chosen, HyperbandScheduler) else 1,
    )
