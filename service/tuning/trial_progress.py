"""TrialProgress: what a study's driver knows of one trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from search_spaces.parameters import Point
from service.spec_sections import Objective
from service.study import Purpose, Trial, TrialState
from service.tuning.decisions import IssuedTrial

_LEAST_TRIAL_S = 0.001


@dataclass(slots=True, eq=False)
class TrialProgress:
    """A trial as the store has it when its driver begins or records it, and what its attempts have done since.

    Times are in seconds; `now_s` and `began_s` are the driver's stopwatch.

    attempt: number of the current or last attempt; 0 before the first. losses: how many a worker took along.
    trained_s: how long those that have ended trained. began_s: when the one that trains began; None where none does.
    seconds_left: how long the issued attempt may train; None: no limit. values: the objective's metric by epoch, until
    the trial has ended.
    """

    id: str
    configuration_id: str
    seed: int
    purpose: Purpose
    state: TrialState
    attempt: int
    epochs_done: int
    objective: float | None
    losses: int = 0
    trained_s: float = 0.0
    began_s: float | None = None
    seconds_left: float | None = None
    values: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: Trial, *, losses: int = 0, trained_s: float = 0.0) -> Self:
        """What the store says of the trial; losses, trained_s: of its attempts under drivers before."""
        return cls(
            id=trial.id,
            configuration_id=trial.configuration_id,
            seed=trial.seed,
            purpose=trial.purpose,
            state=trial.state,
            attempt=trial.attempt,
            epochs_done=trial.epochs_done,
            objective=trial.objective,
            losses=losses,
            trained_s=trained_s,
        )

    @property
    def has_begun(self) -> bool:
        """Whether a worker has ever begun with it."""
        return self.attempt > 0

    @property
    def is_training(self) -> bool:
        """Whether a worker trains it."""
        return self.state is TrialState.RUNNING

    @property
    def has_diverged(self) -> bool:
        """Whether its training diverged: it was stopped early without an objective, which a scheduler's stop leaves."""
        return self.state is TrialState.EARLY_STOPPED and self.objective is None

    def attempt_s(self, now_s: float) -> float:
        """How long the present attempt has trained; 0 where none does."""
        return 0.0 if self.began_s is None else now_s - self.began_s

    def is_overdue(self, now_s: float, grace_s: float) -> bool:
        """Whether the present attempt still trains so long after its time has run out."""
        if self.seconds_left is None or self.began_s is None:
            return False
        return self.attempt_s(now_s) > self.seconds_left + grace_s

    def issue(self, point: Point, max_trial_s: float | None) -> IssuedTrial:
        """Its next attempt, for Tune to run. max_trial_s: how long all of its attempts together may train."""
        self.seconds_left = None if max_trial_s is None else max(_LEAST_TRIAL_S, max_trial_s - self.trained_s)
        return IssuedTrial(
            self.id,
            self.attempt + 1,
            self.epochs_done,
            point,
            self.seed,
            self.purpose,
            max_trial_s,
            self.seconds_left,
        )

    def begin_attempt(self, attempt: int, now_s: float) -> None:
        """A worker has begun with this attempt."""
        self.state = TrialState.RUNNING
        self.attempt = attempt
        self.began_s = now_s

    def report_epoch(self, epoch: int, value: float | None) -> None:
        """An epoch is finished, `value` is the objective's metric. One that is done again counts as it was at first."""
        self.epochs_done = max(self.epochs_done, epoch)
        if value is not None:
            self.values.setdefault(epoch, value)

    def end_attempt(self, now_s: float) -> float:
        """The trial has left its worker, if it had one; answers how many seconds that attempt has trained."""
        spent_s = self.attempt_s(now_s)
        self.trained_s += spent_s
        self.began_s = None
        return spent_s

    def lose(self, max_retries: int) -> bool:
        """Its worker went away: True where it waits for its next attempt, False where it has been lost too often."""
        self.losses += 1
        if self.losses > max_retries:
            return False
        self.state = TrialState.PENDING
        return True

    def pause(self) -> None:
        """It has left its worker with the study's pause."""
        self.state = TrialState.PAUSED

    def end(self, state: TrialState, objective: Objective, *, has_diverged: bool) -> None:
        """It has reached this final state, and says of the objective what its epochs do: nothing where it diverged."""
        self.state = state
        if state in (TrialState.SUCCEEDED, TrialState.EARLY_STOPPED) and self.values and not has_diverged:
            self.objective = _objective_of([self.values[epoch] for epoch in sorted(self.values)], objective)
        self.values.clear()  # nobody asks for them any more


def _objective_of(values: list[float], objective: Objective) -> float:
    """What the values of a trial's epochs, in their order, say of the objective."""
    if objective.at == "last":
        return values[-1]
    return max(values) if objective.mode == "max" else min(values)
