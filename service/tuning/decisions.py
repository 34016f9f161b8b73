"""What a study's progress decides: to run a trial, to end the study, or to leave it."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.parameters import Point
from service.study import Purpose, Reason, StudyState


@dataclass(frozen=True, slots=True)
class IssuedTrial:
    """A trial to run now, as attempt number `attempt`, of which `epochs_done` epochs have been reported.

    max_trial_s: how long it may train, over all of its attempts. seconds_left: how much of that is left. None: no
    limit.
    """

    trial_id: str
    attempt: int
    epochs_done: int
    point: Point
    seed: int
    purpose: Purpose
    max_trial_s: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a study ends."""

    state: StudyState
    reason: Reason
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Leaving:
    """Nothing runs any more because the user wanted that; the store knows what becomes of the study."""
