"""StudyProgress: what a study's driver knows, and what it decides to run next. It knows neither Ray nor SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Protocol

from search_spaces.parameters import Point, point_key
from service.spec import StudySpec
from service.store.driving import StudySnapshot
from service.study import Configuration, Reason, StudyState, Trial, TrialState
from service.tuning.algorithms import Algorithm, Outcome


@dataclass(frozen=True, slots=True)
class IssuedTrial:
    """A trial to run now, as attempt number `attempt`, of which `epochs_done` epochs have been reported."""

    trial_id: str
    attempt: int
    epochs_done: int
    point: Point
    seed: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a study ends."""

    state: StudyState
    reason: Reason
    error: str | None = None


class ConfigurationLog(Protocol):
    """Where new configurations are recorded before anything of them runs."""

    def add_configuration(
        self, point: Point, point_key: str, seeds: tuple[int, ...]
    ) -> tuple[Configuration, list[Trial]]:
        """Records the point with one trial for each seed."""


@dataclass(slots=True)
class _TrialProgress:
    trial_id: str
    configuration_id: str
    seed: int
    state: TrialState
    attempt: int
    losses: int
    epochs_done: int = 0
    values: dict[int, float] = field(default_factory=dict)
    objective: float | None = None


class StudyProgress:
    """One study while a driver runs it, rebuilt from the store's snapshot.

    clock: the time, for the wall-clock budget.
    """

    def __init__(
        self,
        spec: StudySpec,
        snapshot: StudySnapshot,
        algorithm: Algorithm,
        log: ConfigurationLog,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._spec = spec
        self._algorithm = algorithm
        self._log = log
        self._clock = clock
        self._started_at = snapshot.study.started_at or clock()
        self._points: dict[str, Point] = {}
        self._trials: dict[str, _TrialProgress] = {}
        self._trials_of: defaultdict[str, list[_TrialProgress]] = defaultdict(list)
        self._failures = 0
        self._waiting: list[str] = []
        self._running: set[str] = set()
        self._exhausted = False
        self._unrecorded: Point | None = None
        self._target_reached = False
        self._replay(snapshot)

    def next_trial(self) -> IssuedTrial | Ending | None:
        """What to do now: run this trial, end the study so, or (None) wait for a running trial."""
        ending = self.must_end_now()
        if ending:
            return ending
        limit = self._spec.budget.max_concurrent_trials
        if limit is not None and len(self._running) >= limit:
            return None
        if not self._waiting and not self._target_reached:
            self._propose()
        if self._waiting and not self._target_reached:
            trial = self._trials[self._waiting.pop(0)]
            self._running.add(trial.trial_id)
            point = self._points[trial.configuration_id]
            return IssuedTrial(trial.trial_id, trial.attempt + 1, trial.epochs_done, point, trial.seed)
        return None if self._running else self._natural_ending()

    def must_end_now(self) -> Ending | None:
        """How the study ends at once, running trials or not; None where it may go on."""
        most = self._spec.budget.max_failed_trials
        if most is not None and self._failures > most:
            return Ending(
                StudyState.FAILED,
                Reason.TOO_MANY_FAILURES,
                f"{self._failures} trials failed, and budget.max_failed_trials is {most}",
            )
        longest = self._spec.budget.max_wallclock_s
        if longest is not None and (self._clock() - self._started_at).total_seconds() > longest:
            return Ending(StudyState.SUCCEEDED, Reason.BUDGET_EXHAUSTED)
        return None

    def attempt_started(self, trial_id: str, attempt: int) -> None:
        """A worker has begun with the trial."""
        trial = self._trials[trial_id]
        trial.state = TrialState.RUNNING
        trial.attempt = attempt

    def epoch_reported(self, trial_id: str, epoch: int, value: float | None) -> None:
        """The trial has finished an epoch; `value` is the objective's metric, where the epoch reported it."""
        trial = self._trials[trial_id]
        trial.epochs_done = max(trial.epochs_done, epoch)
        if value is not None:
            trial.values.setdefault(epoch, value)

    def attempt_lost(self, trial_id: str) -> bool:
        """A worker or node went away: True where the trial waits for its next attempt, False where it had its last."""
        trial = self._trials[trial_id]
        self._running.discard(trial_id)
        trial.losses += 1
        if trial.losses > self._spec.failure.max_retries:
            return False
        trial.state = TrialState.PENDING
        self._waiting.insert(0, trial_id)
        return True

    def trial_ended(self, trial_id: str, state: TrialState) -> float | None:
        """The trial has reached a final state; answers what it says of the objective."""
        trial = self._trials[trial_id]
        self._running.discard(trial_id)
        trial.state = state
        self._failures += state is TrialState.FAILED
        if state in (TrialState.SUCCEEDED, TrialState.EARLY_STOPPED) and trial.values:
            trial.objective = self._objective_of(list(trial.values.values()))
        self._learn(trial.configuration_id)
        return trial.objective

    def open_trials(self) -> list[str]:
        """Ids of the trials that have not ended."""
        return [trial.trial_id for trial in self._trials.values() if not trial.state.is_final]

    @property
    def is_training(self) -> bool:
        """Whether a worker trains one of the trials."""
        return any(self._trials[trial_id].state is TrialState.RUNNING for trial_id in list(self._running))

    def _replay(self, snapshot: StudySnapshot) -> None:
        """Puts everything that the store has into the algorithm; trials that did not end wait again."""
        for configuration in snapshot.configurations:
            self._points[configuration.id] = dict(configuration.point)
        for trial in snapshot.trials:
            self._add(trial, losses=snapshot.lost_attempts.get(trial.id, 0))
            if not trial.state.is_final:
                self._waiting.append(trial.id)
        for result in snapshot.results:
            self.epoch_reported(result.trial_id, result.epoch, result.metrics.get(self._spec.objective.metric))
        for configuration_id, point in self._points.items():
            self._algorithm.known(point)
            self._learn(configuration_id)

    def _propose(self) -> None:
        """Asks for one more configuration and records it, unless the budget or the space is used up."""
        budget = self._spec.configuration_budget()
        if self._exhausted or (budget is not None and len(self._points) >= budget):
            return
        point = self._unrecorded or self._algorithm.propose()
        if point is None:
            self._exhausted = True
            return
        self._unrecorded = point  # the log may be unavailable for a while
        configuration, trials = self._log.add_configuration(point, point_key(point), self._spec.replicates.seeds)
        self._unrecorded = None
        self._points[configuration.id] = point
        for trial in trials:
            self._add(trial, losses=0)
            self._waiting.append(trial.id)

    def _add(self, trial: Trial, *, losses: int) -> None:
        progress = _TrialProgress(
            trial_id=trial.id,
            configuration_id=trial.configuration_id,
            seed=trial.seed,
            state=trial.state,
            attempt=trial.attempt,
            losses=losses,
            objective=trial.objective,
        )
        self._trials[trial.id] = progress
        self._trials_of[trial.configuration_id].append(progress)
        self._failures += trial.state is TrialState.FAILED

    def _learn(self, configuration_id: str) -> None:
        """Tells the algorithm what a configuration is worth once all of its trials have ended."""
        trials = self._trials_of[configuration_id]
        if not trials or not all(trial.state.is_final for trial in trials):
            return
        states = {trial.state for trial in trials}
        values = [trial.objective for trial in trials if trial.objective is not None]
        value = fmean(values) if values else None
        outcome: Outcome = "complete"
        if TrialState.EARLY_STOPPED in states:
            outcome = "pruned"
        if value is None:
            outcome = "failed"
        self._algorithm.learn(self._points[configuration_id], outcome, value)
        target = self._spec.objective.target
        if target is not None and value is not None and states == {TrialState.SUCCEEDED}:
            better = value >= target if self._spec.objective.mode == "max" else value <= target
            self._target_reached = self._target_reached or better

    def _objective_of(self, values: list[float]) -> float:
        if self._spec.objective.at == "last":
            return values[-1]
        return max(values) if self._spec.objective.mode == "max" else min(values)

    def _natural_ending(self) -> Ending:
        if self._target_reached:
            return Ending(StudyState.SUCCEEDED, Reason.TARGET_REACHED)
        reason = Reason.SPACE_EXHAUSTED if self._exhausted else Reason.MAX_TRIALS
        if self._trials and self._failures == len(self._trials):
            return Ending(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "every trial failed")
        return Ending(StudyState.SUCCEEDED, reason)
