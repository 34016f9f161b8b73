"""What the attempts of a study have used up: time, GPU hours, and how often a trial was lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from service.spec_sections import Budget
from service.store import tables
from service.store.sleeping import awake_s, sleeps_of
from service.study import AttemptState


@dataclass(frozen=True, slots=True)
class Spent:
    """What the attempts that have ended have taken, while the machines of their drivers were awake.

    lost_attempts: by trial, how many attempts a worker took along. trained_s: by trial, the seconds of its attempts.
    Both count from a trial's last retry by its user. attempts_s: the seconds of all attempts of the study.
    """

    lost_attempts: dict[str, int]
    trained_s: dict[str, float]
    attempts_s: float


def spent_on_attempts(connection: Connection, study_id: str) -> Spent:
    """What the study's attempts have taken, but for those that run."""
    attempts = connection.execute(
        select(tables.attempts, tables.trials.c.retried_after)
        .join(tables.trials, tables.trials.c.id == tables.attempts.c.trial_id)
        .where(tables.trials.c.study_id == study_id, tables.attempts.c.finished_at.is_not(None))
    )
    sleeps = sleeps_of(connection, study_id)
    lost: dict[str, int] = {}
    trained_s: dict[str, float] = {}
    attempts_s = 0.0
    for attempt in attempts:
        spent_s = awake_s(attempt.started_at, attempt.finished_at, sleeps)
        attempts_s += spent_s
        if attempt.number > attempt.retried_after:
            trained_s[attempt.trial_id] = trained_s.get(attempt.trial_id, 0.0) + spent_s
            if attempt.state == AttemptState.LOST and attempt.error is not None:
                lost[attempt.trial_id] = lost.get(attempt.trial_id, 0) + 1
    return Spent(lost, trained_s, attempts_s)


def used_up(connection: Connection, study: Row[Any], budget: Budget) -> str | None:
    """The limit on its time that a study without a driver has used up; None where the next driver has time left."""
    if budget.max_wallclock_s is not None and study.elapsed_s >= budget.max_wallclock_s:
        return "max_wallclock_s"
    if budget.max_gpu_hours is not None:
        gpu_s = study.spec["resources_per_trial"]["gpu"] * spent_on_attempts(connection, study.id).attempts_s
        if gpu_s >= 3600 * budget.max_gpu_hours:
            return "max_gpu_hours"
    return None
