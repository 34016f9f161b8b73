"""What a driver reports of its trials, as the store records it."""

from __future__ import annotations

from dataclasses import dataclass

from service.study import TrialState


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A worker has begun with a trial."""

    trial_id: str
    attempt: int
    node: str | None


@dataclass(frozen=True, slots=True)
class EpochReported:
    """A trial has finished an epoch; `warning` is what went wrong beside that."""

    trial_id: str
    attempt: int
    epoch: int
    metrics: dict[str, float]
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial has reached a final state; `objective` is None where it has nothing to say of the objective.

    note: why it was stopped early.
    """

    trial_id: str
    attempt: int
    state: TrialState
    objective: float | None
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class AttemptPaused:
    """A trial has left its worker with its study's pause; its next attempt goes on from its checkpoint."""

    trial_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """A worker or node went away; the trial waits for its next attempt."""

    trial_id: str
    attempt: int
    error: str


Report = AttemptStarted | EpochReported | TrialEnded | AttemptPaused | AttemptLost
