"""StudyProgress: what a study's driver knows, and what it decides to run next. It knows neither Ray nor SQL."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from service.spec import StudySpec
from service.store.snapshots import Instructions, Known, StudySnapshot, stored_budget
from service.study import Intent, Purpose, Trial, TrialState
from service.tuning.algorithms import Algorithm
from service.tuning.confirming import Confirmation
from service.tuning.decisions import Ending, IssuedTrial, Leaving
from service.tuning.endings import TrialCounts, ending_over_budget, natural_ending, settled
from service.tuning.search_progress import ConfigurationLog, SearchProgress
from service.tuning.trial_progress import TrialProgress


class StudyProgress:
    """One study while a driver runs it, rebuilt from the store's snapshot.

    Its trials wait until they are issued to Tune, which begins them once the cluster has a place, and come back to wait
    where an attempt is lost. New ones come from the search, and after that from the confirmation of its best.

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
        self._log = log
        self._search = SearchProgress(spec, algorithm, log)
        self._confirmation = Confirmation(spec.confirm, spec.objective.mode)
        self._trials: dict[str, TrialProgress] = {}
        self._counts = TrialCounts()
        self._waiting: list[TrialProgress] = []
        self._issued: set[TrialProgress] = set()
        self._stopwatch = stopwatch
        self._began_s = stopwatch()
        claimed_at = snapshot.study.running_since
        starting_s = (snapshot.read_at - claimed_at).total_seconds() if claimed_at else 0.0
        self._elapsed_s = snapshot.study.elapsed_s + max(0.0, starting_s)
        self._attempts_s = snapshot.attempts_s
        self._intent = snapshot.study.intent
        self._slots = snapshot.study.slots
        self._newest_configuration = 0
        self._has_decided = False
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
        return Known(self._budget, max(self._search.last_configuration, self._newest_configuration))

    def next_trial(self) -> IssuedTrial | Ending | Leaving | None:
        """What to do now: run this trial, end the study so, leave it, or (None) wait for a running trial.

        Raises StoreUnavailableError, LeaseLostError.
        """
        self._has_decided = True
        ending = self.must_end_now()
        if ending:
            return ending
        if self._newest_configuration > self._search.last_configuration:
            for trial in self._search.take_over():
                self._add(trial)
        under_way = self._under_way()
        has_place = len(under_way) < self._most_at_once()
        if self.is_pausing or (under_way and not has_place):
            return None
        waiting = self._first_waiting()
        if waiting is None and self._intent is Intent.RUN:
            self._add_new_trials()  # without a place it tells whether anything is left to do
            waiting = self._first_waiting()
        if waiting is not None:
            return self._issue(waiting) if has_place else None
        return None if under_way else self._natural_ending()

    def must_end_now(self) -> Ending | Leaving | None:
        """How the study ends at once, running trials or not, or that the driver leaves it; None where it may go on.

        It leaves once nothing is left that its user wants to wait for: trials that the cluster has no place for yet are
        not waited for, because their number says nothing of when there will be one. At its target they are not either.
        """
        ending = self._ending_over_budget()
        if ending:
            return ending
        waited_for = self._waited_for()
        if waited_for is not None:
            return None if waited_for else Leaving()
        if self._search.has_reached_target and not (self._spec.confirm or self._under_way() or self._first_waiting()):
            return self._natural_ending()  # Tune asks for no trial while those that it has wait for their places
        return None

    def settled(self, decided: Ending) -> Ending:
        """A decided end as it is once nothing runs any more: a trial may have succeeded since it was decided."""
        return settled(decided, self._counts)

    def attempt_started(self, trial_id: str, attempt: int) -> bool:
        """A worker has begun with the trial: False where it comes too late, and the trial waits again.

        So it does where the study is being paused, or where it was stopped or has reached its target before the trial
        had begun.
        """
        trial = self._trials[trial_id]
        if self.is_pausing or not self._may_run(trial):
            self._issued.discard(trial)
            self._waiting.insert(0, trial)
            return False
        trial.begin_attempt(attempt, self._stopwatch())
        return True

    def has_started(self, trial_id: str, attempt: int) -> bool:
        """Whether a worker has begun with this attempt of the trial, or with a later one."""
        return self._trials[trial_id].attempt >= attempt

    def epoch_reported(self, trial_id: str, epoch: int, value: float | None) -> None:
        """The trial has finished an epoch; `value` is the objective's metric, where the epoch reported it."""
        self._trials[trial_id].report_epoch(epoch, value)

    def is_overdue(self, trial_id: str, grace_s: float) -> bool:
        """Whether the trial still trains so long after its time has run out."""
        return self._trials[trial_id].is_overdue(self._stopwatch(), grace_s)

    def attempt_lost(self, trial_id: str) -> bool:
        """A worker or node went away: True where the trial waits for its next attempt, False where it had its last."""
        trial = self._end_attempt(trial_id)
        has_another = trial.lose(self._spec.failure.max_retries)
        if has_another:
            self._waiting.insert(0, trial)
        return has_another

    def trial_paused(self, trial_id: str) -> None:
        """The trial has left its worker with the study's pause."""
        self._end_attempt(trial_id).pause()

    def trial_ended(self, trial_id: str, state: TrialState, *, has_diverged: bool = False) -> float | None:
        """The trial has reached a final state; answers what it says of the objective: nothing where it diverged."""
        trial = self._end_attempt(trial_id)
        trial.end(state, self._spec.objective, has_diverged=has_diverged)
        self._counts.end(trial)
        if trial.purpose is Purpose.SEARCH:
            self._confirmation.choose_again()
            self._search.learn(self._search.configurations[trial.configuration_id])
        return trial.objective

    def open_trials(self) -> list[str]:
        """Ids of the trials that have not ended."""
        return [trial.id for trial in self._trials.values() if not trial.state.is_final]

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
        if self._search.has_reached_target and training:
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
        return self._slots == 0 and not self._issued

    @property
    def has_all_of_its_share(self) -> bool:
        """Whether it has as many trials under way as other studies leave it room for; never without others."""
        return self._slots is not None and len(self._issued) >= self._slots

    def _replay(self, snapshot: StudySnapshot) -> None:
        """Puts everything that the store has into the algorithm; trials that did not end wait again."""
        for configuration in snapshot.configurations:
            self._search.add(configuration)
        for trial in snapshot.trials:
            losses = snapshot.lost_attempts.get(trial.id, 0)
            self._add(trial, losses=losses, trained_s=snapshot.trained_s.get(trial.id, 0.0))
        for seen in snapshot.epoch_values:
            if not self._trials[seen.trial_id].state.is_final:
                self.epoch_reported(seen.trial_id, seen.epoch, seen.value)
        self._search.replay()

    def _add(self, trial: Trial, *, losses: int = 0, trained_s: float = 0.0) -> None:
        """Takes in a recorded trial of a configuration that the search has; it waits, unless it has ended."""
        progress = TrialProgress.of(trial, losses=losses, trained_s=trained_s)
        self._trials[trial.id] = progress
        self._search.configurations[trial.configuration_id].trials.append(progress)
        self._counts.add(progress)
        if not trial.state.is_final:
            self._waiting.append(progress)
        if trial.purpose is Purpose.SEARCH:
            self._confirmation.choose_again()

    def _add_new_trials(self) -> None:
        """One more configuration; once the search is over and nothing of it runs, the trials that confirm its best."""
        if not self._search_is_over():
            for trial in self._search.propose():
                self._add(trial)
        if self._search_is_over() and not self._is_searching() and self._first_waiting() is None:
            for configuration, seeds in self._confirmation.missing(self._search.configurations.values()):
                for trial in self._log.add_confirming_trials(configuration.id, seeds):
                    self._add(trial)

    def _search_is_over(self) -> bool:
        return self._search.is_over(self._budget.max_trials)

    def _issue(self, trial: TrialProgress) -> IssuedTrial:
        self._waiting.remove(trial)
        self._issued.add(trial)
        return trial.issue(self._search.configurations[trial.configuration_id].point, self._budget.max_trial_s)

    def _end_attempt(self, trial_id: str) -> TrialProgress:
        trial = self._trials[trial_id]
        self._issued.discard(trial)
        self._attempts_s += trial.end_attempt(self._stopwatch())
        return trial

    def _may_run(self, trial: TrialProgress) -> bool:
        """A study finishes what has begun. Being stopped it begins nothing, at its target only what confirms it."""
        if trial.has_begun:
            return True
        if self._intent is Intent.STOP:
            return False
        return not self._search.has_reached_target or trial.purpose is Purpose.CONFIRM

    def _first_waiting(self) -> TrialProgress | None:
        return next((trial for trial in self._waiting if self._may_run(trial)), None)

    def _under_way(self) -> list[TrialProgress]:
        """The trials that Tune has, but for those that are not to begin any more."""
        return [trial for trial in self._issued if self._may_run(trial)]

    def _is_searching(self) -> bool:
        return any(trial.purpose is Purpose.SEARCH for trial in self._under_way())

    def _training(self) -> int:
        """How many trials workers train; asked by another thread too."""
        return sum(trial.is_training for trial in list(self._issued))

    def _waited_for(self) -> list[TrialProgress] | None:
        """The trials that a study being paused or stopped waits for; None where it is neither."""
        if self.is_pausing:
            return [trial for trial in self._issued if trial.is_training]
        if self._intent is Intent.STOP:
            return [trial for trial in self._trials.values() if trial.has_begun and not trial.state.is_final]
        return None

    def _most_at_once(self) -> float:
        limits = (self._budget.max_concurrent_trials, self._slots)
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def _ending_over_budget(self) -> Ending | None:
        now_s = self._stopwatch()
        running_s = sum(trial.attempt_s(now_s) for trial in self._issued)
        return ending_over_budget(
            self._budget,
            self._counts,
            wallclock_s=self._elapsed_s + now_s - self._began_s,
            gpu_hours=self._spec.resources_per_trial.gpu * (self._attempts_s + running_s) / 3600,
        )

    def _natural_ending(self) -> Ending:
        return natural_ending(
            self._counts,
            has_reached_target=self._search.has_reached_target,
            is_exhausted=self._search.is_exhausted,
        )
