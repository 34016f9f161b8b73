"""StudyProgress: what a study's driver knows, and what it decides to run next. It knows neither Ray nor SQL."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from search_spaces.parameters import Point, point_key
from service.analysis.aggregation import most_seeds_first, summarise
from service.analysis.counting import counted, is_whole, reaches
from service.analysis.moments import mean_of
from service.spec import StudySpec
from service.store.driving import NewConfigurationsError
from service.store.snapshots import Instructions, Known, StudySnapshot, stored_budget
from service.study import Configuration, Intent, Purpose, Reason, StudyState, Trial, TrialState
from service.tuning.algorithms import Algorithm
from service.tuning.decisions import Ending, IssuedTrial, Leaving

_LEAST_TRIAL_S = 0.001


class ConfigurationLog(Protocol):
    """Where new configurations and trials are recorded before anything of them runs."""

    def add_configuration(
        self, point: Point, point_key: str, seeds: Sequence[int], *, last_known: int
    ) -> tuple[Configuration, list[Trial]]:
        """Records the point with one trial for each seed. Raises NewConfigurationsError."""

    def add_confirming_trials(self, configuration_id: str, seeds: Sequence[int]) -> list[Trial]:
        """Records trials of a configuration that is there."""

    def configurations_after(self, number: int) -> list[tuple[Configuration, list[Trial]]]:
        """What users have enqueued since the configuration with this number."""


@dataclass(slots=True)
class _TrialProgress:
    trial_id: str
    configuration_id: str
    seed: int
    purpose: Purpose
    state: TrialState
    attempt: int
    losses: int
    trained_s: float
    began_s: float | None = None
    seconds_left: float | None = None
    epochs_done: int = 0
    values: dict[int, float] = field(default_factory=dict)
    objective: float | None = None

    @property
    def has_diverged(self) -> bool:
        """Whether its training left the finite numbers: what early stopping stops has a value of the objective."""
        return self.state is TrialState.EARLY_STOPPED and self.objective is None


class StudyProgress:
    """One study while a driver runs it, rebuilt from the store's snapshot.

    stopwatch: seconds that stand still while the machine sleeps, for all limits on time, as the workers count them and
    the store does.
    """

    def __init__(
        self,
        spec: StudySpec,
        snapshot: StudySnapshot,
        algorithm: Algorithm,
        log: ConfigurationLog,
        *,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._budget = spec.budget
        self._algorithm = algorithm
        self._log = log
        self._stopwatch = stopwatch
        self._began_s = stopwatch()
        claimed_at = snapshot.study.running_since
        starting_s = (snapshot.read_at - claimed_at).total_seconds() if claimed_at else 0.0
        self._elapsed_s = snapshot.study.elapsed_s + max(0.0, starting_s)
        self._attempts_s = snapshot.attempts_s
        self._intent = snapshot.study.intent
        self._slots = snapshot.study.slots
        self._points: dict[str, Point] = {}
        self._numbers: dict[str, int] = {}
        self._trials: dict[str, _TrialProgress] = {}
        self._trials_of: defaultdict[str, list[_TrialProgress]] = defaultdict(list)
        self._failures = 0
        self._waiting: list[str] = []
        self._running: set[str] = set()
        self._last_configuration = 0
        self._newest_configuration = 0
        self._exhausted = False
        self._unrecorded: Point | None = None
        self._target_reached = False
        self._has_decided = False
        self._to_confirm: list[str] | None = None  # chosen once, until the search has something new after all
        self._replay(snapshot)

    def follow(self, instructions: Instructions) -> None:
        """Takes over what the user and the controller want by now. A driver that has begun to pause goes on with it."""
        if self._intent is not Intent.PAUSE:
            self._intent = instructions.intent
        self._budget = stored_budget(instructions.budget)
        self._slots = instructions.slots
        self._newest_configuration = instructions.last_configuration

    @property
    def known(self) -> Known:
        """What of the user's wishes this driver knows, and so has taken into account when it decides to end."""
        return Known(self._budget, max(self._last_configuration, self._newest_configuration))

    def next_trial(self) -> IssuedTrial | Ending | Leaving | None:
        """What to do now: run this trial, end the study so, leave it, or (None) wait for a running trial."""
        self._has_decided = True
        ending = self.must_end_now()
        if ending:
            return ending
        if self._newest_configuration > self._last_configuration:
            self._take_over(self._log.configurations_after(self._last_configuration))
        under_way = self._under_way()
        has_place = len(under_way) < self._most_at_once()
        if self.is_pausing or (under_way and not has_place):
            return None
        waiting = self._first_waiting()
        if waiting is None and self._intent is Intent.RUN:
            self._add_trials()  # without a place it tells whether anything is left to do
            waiting = self._first_waiting()
        if waiting is not None:
            return self._issue(waiting) if has_place else None
        return None if under_way else self._natural_ending()

    def must_end_now(self) -> Ending | Leaving | None:
        """How the study ends at once, running trials or not, or that the driver leaves it; None where it may go on.

        It leaves once nothing is left that its user wants to wait for: trials that the cluster has no place for yet are
        not waited for, because their number says nothing of when there will be one. At its target they are not either.
        """
        most = self._budget.max_failed_trials
        if most is not None and self._failures > most:
            return Ending(
                StudyState.FAILED,
                Reason.TOO_MANY_FAILURES,
                f"{self._failures} trials failed, and budget.max_failed_trials is {most}",
            )
        longest = self._budget.max_wallclock_s
        if longest is not None and self._elapsed_s + self._stopwatch() - self._began_s > longest:
            return self._ending_over(f"budget.max_wallclock_s of {longest:g}")
        hours = self._budget.max_gpu_hours
        if hours is not None and self._gpu_hours() > hours:
            return self._ending_over(f"budget.max_gpu_hours of {hours:g}")
        waited_for = self._waited_for()
        if waited_for is not None:
            return None if waited_for else Leaving()
        if self._target_reached and not (self._spec.confirm or self._under_way() or self._first_waiting()):
            return self._natural_ending()  # Tune asks for no trial while those that it has wait for their places
        return None

    def attempt_started(self, trial_id: str, attempt: int) -> bool:
        """A worker has begun with the trial: False where it comes too late, and the trial waits again.

        So it does where the study is being paused, or where it was stopped or has reached its target before the trial
        had begun.
        """
        trial = self._trials[trial_id]
        if self.is_pausing or not self._may_run(trial):
            self._running.discard(trial_id)
            self._waiting.insert(0, trial_id)
            return False
        trial.state = TrialState.RUNNING
        trial.attempt = attempt
        trial.began_s = self._stopwatch()
        return True

    def has_started(self, trial_id: str, attempt: int) -> bool:
        """Whether a worker has begun with this attempt of the trial, or with a later one."""
        return self._trials[trial_id].attempt >= attempt

    def epoch_reported(self, trial_id: str, epoch: int, value: float | None) -> None:
        """The trial has finished an epoch; `value` is the objective's metric, where the epoch reported it."""
        trial = self._trials[trial_id]
        trial.epochs_done = max(trial.epochs_done, epoch)
        if value is not None:
            trial.values.setdefault(epoch, value)

    def is_overdue(self, trial_id: str, grace_s: float) -> bool:
        """Whether the trial still trains so long after its time has run out."""
        trial = self._trials[trial_id]
        if trial.seconds_left is None or trial.began_s is None:
            return False
        return self._stopwatch() - trial.began_s > trial.seconds_left + grace_s

    def attempt_lost(self, trial_id: str) -> bool:
        """A worker or node went away: True where the trial waits for its next attempt, False where it had its last."""
        trial = self._end_attempt(trial_id)
        trial.losses += 1
        if trial.losses > self._spec.failure.max_retries:
            return False
        trial.state = TrialState.PENDING
        self._waiting.insert(0, trial_id)
        return True

    def trial_paused(self, trial_id: str) -> None:
        """The trial has left its worker with the study's pause."""
        self._end_attempt(trial_id).state = TrialState.PAUSED

    def trial_ended(self, trial_id: str, state: TrialState, *, has_diverged: bool = False) -> float | None:
        """The trial has reached a final state; answers what it says of the objective: nothing where it diverged."""
        trial = self._end_attempt(trial_id)
        trial.state = state
        self._failures += state is TrialState.FAILED
        if state in (TrialState.SUCCEEDED, TrialState.EARLY_STOPPED) and trial.values and not has_diverged:
            trial.objective = self._objective_of([trial.values[epoch] for epoch in sorted(trial.values)])
        trial.values.clear()  # nobody asks for them any more
        if trial.purpose is Purpose.SEARCH:
            self._to_confirm = None
            self._learn(trial.configuration_id)
        return trial.objective

    def open_trials(self) -> list[str]:
        """Ids of the trials that have not ended."""
        return [trial.trial_id for trial in self._trials.values() if not trial.state.is_final]

    @property
    def is_pausing(self) -> bool:
        """Whether running trials are to save their state and leave."""
        return self._intent is Intent.PAUSE

    @property
    def waiting_reason(self) -> str | None:
        """Why nothing trains, or why no new trial does, as far as the study itself is the reason."""
        training = self._training()
        if self.is_pausing:
            return f"is being paused: {training} trials train up to their next checkpoint"
        if self._intent is Intent.STOP and training:
            return f"is being stopped: {training} trials train to their end"
        if self._target_reached and training:
            others = "only what confirms its best begins" if self._spec.confirm else "no other begins"
            return f"has reached its target: what trains does so to its end, {others}"
        return None

    @property
    def is_training(self) -> bool:
        """Whether a worker trains one of the trials."""
        return self._training() > 0

    @property
    def is_about_to_end(self) -> bool:
        """Whether no trial is yet to train, as far as it has been asked for one; asked by another thread too."""
        trials = list(self._trials.values())
        return self._has_decided and all(trial.state.is_final or not self._may_run(trial) for trial in trials)

    @property
    def has_no_share(self) -> bool:
        """Whether other studies hold all of the cluster."""
        return self._slots == 0 and not self._running

    @property
    def has_all_of_its_share(self) -> bool:
        """Whether it has as many trials under way as other studies leave it room for; never without others."""
        return self._slots is not None and len(self._running) >= self._slots

    def _training(self) -> int:
        """How many trials workers train; asked by another thread too."""
        return sum(self._trials[trial_id].state is TrialState.RUNNING for trial_id in list(self._running))

    def _waited_for(self) -> list[str] | None:
        """The trials that a study being paused or stopped waits for; None where it is neither."""
        if self.is_pausing:
            return [trial_id for trial_id in self._running if self._trials[trial_id].state is TrialState.RUNNING]
        if self._intent is Intent.STOP:
            return [trial_id for trial_id in self.open_trials() if self._trials[trial_id].attempt > 0]
        return None

    def _replay(self, snapshot: StudySnapshot) -> None:
        """Puts everything that the store has into the algorithm; trials that did not end wait again."""
        for configuration in snapshot.configurations:
            self._add_point(configuration)
        for trial in snapshot.trials:
            losses = snapshot.lost_attempts.get(trial.id, 0)
            self._add(trial, losses=losses, trained_s=snapshot.trained_s.get(trial.id, 0.0))
        for seen in snapshot.epoch_values:
            if not self._trials[seen.trial_id].state.is_final:
                self.epoch_reported(seen.trial_id, seen.epoch, seen.value)
        for configuration_id, point in self._points.items():
            self._algorithm.known(point)
            self._learn(configuration_id)

    def _take_over(self, added: Iterable[tuple[Configuration, Iterable[Trial]]]) -> None:
        """What users have enqueued, or what was recorded without an answer; the algorithm does not propose it again."""
        for configuration, trials in added:
            self._add_point(configuration)
            self._algorithm.known(configuration.point)
            if self._unrecorded is not None and point_key(self._unrecorded) == point_key(configuration.point):
                self._unrecorded = None  # a user has enqueued this very point, or the log's answer was lost
            for trial in trials:
                self._add(trial)

    def _under_way(self) -> list[str]:
        """The trials that Tune has, but for those that are not to begin any more."""
        return [trial_id for trial_id in self._running if self._may_run(self._trials[trial_id])]

    def _most_at_once(self) -> float:
        limits = (self._budget.max_concurrent_trials, self._slots)
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def _first_waiting(self) -> str | None:
        return next((trial_id for trial_id in self._waiting if self._may_run(self._trials[trial_id])), None)

    def _may_run(self, trial: _TrialProgress) -> bool:
        """A study finishes what has begun. Being stopped it begins nothing, at its target only what confirms it."""
        if trial.attempt > 0:
            return True
        if self._intent is Intent.STOP:
            return False
        return not self._target_reached or trial.purpose is Purpose.CONFIRM

    def _issue(self, trial_id: str) -> IssuedTrial:
        self._waiting.remove(trial_id)
        self._running.add(trial_id)
        trial = self._trials[trial_id]
        longest = self._budget.max_trial_s
        trial.seconds_left = None if longest is None else max(_LEAST_TRIAL_S, longest - trial.trained_s)
        return IssuedTrial(
            trial_id,
            trial.attempt + 1,
            trial.epochs_done,
            self._points[trial.configuration_id],
            trial.seed,
            trial.purpose,
            longest,
            trial.seconds_left,
        )

    def _add_trials(self) -> None:
        """One more configuration; once the search is over and nothing of it runs, the trials that confirm its best."""
        if not self._search_is_over():
            self._propose()
        if self._search_is_over() and not self._is_searching() and self._first_waiting() is None:
            self._confirm()

    def _search_is_over(self) -> bool:
        most = self._budget.max_trials
        seeds = len(self._spec.replicates.seeds)
        return self._target_reached or self._exhausted or (most is not None and len(self._points) >= most // seeds)

    def _is_searching(self) -> bool:
        return any(self._trials[trial_id].purpose is Purpose.SEARCH for trial_id in self._under_way())

    def _propose(self) -> None:
        """Asks for a configuration and records it, unless the space is used up."""
        point = self._unrecorded or self._algorithm.propose()
        if point is None:
            self._exhausted = True
            return
        self._unrecorded = point  # the log may be unavailable for a while
        try:
            configuration, trials = self._log.add_configuration(
                point, point_key(point), self._spec.replicates.seeds, last_known=self._last_configuration
            )
        except NewConfigurationsError:
            self._take_over(self._log.configurations_after(self._last_configuration))
            return
        self._unrecorded = None
        self._add_point(configuration)
        for trial in trials:
            self._add(trial)

    def _confirm(self) -> None:
        """Records the trials on fresh seeds that the best configurations do not have yet."""
        confirm = self._spec.confirm
        if confirm is None:
            return
        if self._to_confirm is None:
            self._to_confirm = self._best_ones(confirm.top_k)
        for configuration_id in self._to_confirm:
            known = {one.seed for one in self._trials_of[configuration_id] if one.purpose is Purpose.CONFIRM}
            missing = [seed for seed in confirm.seeds if seed not in known]
            if missing:
                for trial in self._log.add_confirming_trials(configuration_id, missing):
                    self._add(trial)

    def _best_ones(self, number: int) -> list[str]:
        """Ids of so many configurations, the best first; it looks at all trials, which may be ten thousand."""
        keys = {name: self._rank(name) for name in self._points}
        ranked = sorted((key, name) for name, key in keys.items() if key is not None)
        return [name for _, name in ranked[:number]]

    def _rank(self, configuration_id: str) -> tuple[int, float, float, int] | None:
        """A sort key, the best configuration first, as the API has it; None where no seed counts."""
        values = counted(self._search_trials(configuration_id))
        if not values:
            return None
        return most_seeds_first(summarise(values), self._numbers[configuration_id], self._spec.objective.mode)

    def _search_trials(self, configuration_id: str) -> list[_TrialProgress]:
        return [trial for trial in self._trials_of[configuration_id] if trial.purpose is Purpose.SEARCH]

    def _add_point(self, configuration: Configuration) -> None:
        self._to_confirm = None
        self._points[configuration.id] = dict(configuration.point)
        self._numbers[configuration.id] = configuration.number
        self._last_configuration = max(self._last_configuration, configuration.number)

    def _add(self, trial: Trial, *, losses: int = 0, trained_s: float = 0.0) -> None:
        progress = _TrialProgress(
            trial_id=trial.id,
            configuration_id=trial.configuration_id,
            seed=trial.seed,
            purpose=trial.purpose,
            state=trial.state,
            attempt=trial.attempt,
            losses=losses,
            trained_s=trained_s,
            epochs_done=trial.epochs_done,
            objective=trial.objective,
        )
        self._trials[trial.id] = progress
        self._trials_of[trial.configuration_id].append(progress)
        self._failures += trial.state is TrialState.FAILED
        if not trial.state.is_final:
            self._waiting.append(trial.id)

    def _end_attempt(self, trial_id: str) -> _TrialProgress:
        trial = self._trials[trial_id]
        self._running.discard(trial_id)
        if trial.began_s is not None:
            spent_s = self._stopwatch() - trial.began_s
            trial.trained_s += spent_s
            self._attempts_s += spent_s
            trial.began_s = None
        return trial

    def _gpu_hours(self) -> float:
        now_s = self._stopwatch()
        began_s = [self._trials[trial_id].began_s for trial_id in self._running]
        running_s = sum(now_s - began for began in began_s if began is not None)
        return self._spec.resources_per_trial.gpu * (self._attempts_s + running_s) / 3600

    def _learn(self, configuration_id: str) -> None:
        """Tells the algorithm what a configuration is worth once all trials of the search on it have ended.

        That is the mean over all that have an objective, those that were stopped early too. What lacks a seed is never
        complete and reaches no target; what diverges with one of them is worth nothing, however good the others are.
        """
        trials = self._search_trials(configuration_id)
        if not trials or not all(trial.state.is_final for trial in trials):
            return
        if any(trial.has_diverged for trial in trials):
            self._algorithm.learn(self._points[configuration_id], "pruned", None)
            return
        values = [one.objective for one in trials if one.objective is not None and math.isfinite(one.objective)]
        if not values:
            self._algorithm.learn(self._points[configuration_id], "failed", None)
            return
        mean, whole = mean_of(values), is_whole(trials)
        self._algorithm.learn(self._points[configuration_id], "complete" if whole else "pruned", mean)
        objective = self._spec.objective
        self._target_reached |= whole and reaches(mean, objective.target, objective.mode)

    def _objective_of(self, values: list[float]) -> float:
        if self._spec.objective.at == "last":
            return values[-1]
        return max(values) if self._spec.objective.mode == "max" else min(values)

    def settled(self, decided: Ending) -> Ending:
        """A decided end as it is once nothing runs any more: a trial may have succeeded since it was decided."""
        if decided.reason is Reason.BUDGET_EXHAUSTED and self._has_success():
            return Ending(StudyState.SUCCEEDED, Reason.BUDGET_EXHAUSTED)
        return decided

    def _ending_over(self, limit: str) -> Ending:
        """The end of a study that has used up this limit of its budget; without anything found it is a failure."""
        if self._has_success():
            return Ending(StudyState.SUCCEEDED, Reason.BUDGET_EXHAUSTED)
        return Ending(StudyState.FAILED, Reason.BUDGET_EXHAUSTED, f"no trial succeeded within {limit}")

    def _natural_ending(self) -> Ending:
        if self._target_reached:
            return Ending(StudyState.SUCCEEDED, Reason.TARGET_REACHED)
        reason = Reason.SPACE_EXHAUSTED if self._exhausted else Reason.MAX_TRIALS
        if self._trials and not self._has_success():
            if self._failures == len(self._trials):
                return Ending(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "every trial failed")
            return Ending(
                StudyState.FAILED, Reason.TOO_MANY_FAILURES if self._failures else reason, self._why_none_succeeded()
            )
        return Ending(StudyState.SUCCEEDED, reason)

    def _why_none_succeeded(self) -> str:
        number = len(self._trials)
        diverged = sum(trial.has_diverged for trial in self._trials.values())
        if diverged == number:
            return f"no trial succeeded: all {number} diverged, so lr or rho is too large"
        if not self._failures + diverged:
            return f"no trial succeeded: all {number} were stopped early"
        parts = [f"{self._failures} failed" * bool(self._failures), f"{diverged} diverged" * bool(diverged)]
        others = "the others were stopped early" * (self._failures + diverged < number)
        return f"no trial succeeded: of {number}, {', '.join(part for part in (*parts, others) if part)}"

    def _has_success(self) -> bool:
        return any(trial.state is TrialState.SUCCEEDED for trial in self._trials.values())
