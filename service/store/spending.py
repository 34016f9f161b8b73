"""What the attempts of a study have used up: time, GPU hours, and how often a trial was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from service.spec_sections import Budget
from service.store import records, tables
from service.study import AttemptState

_LEAST_SLEEP_S = 2.0  # less may be two clocks that do not agree


class SleepWatch:
    """Notices that a driver's machine has slept, by the store's clock and one that stands still meanwhile.

    stopwatch: the latter, in seconds. What is at fault where the two differ does not matter: what a driver has not
    lived through nobody pays for.
    """

    def __init__(self, stopwatch: Callable[[], float]) -> None:
        self._stopwatch = stopwatch
        self._signs: dict[datetime, float] = {}

    def note(self, connection: Connection, study: Row[Any], now: datetime) -> None:
        """Records of a locked study what its driver, which shows a sign of life, has slept since the last one.

        A sign counts once the store has it: where this transaction comes to nothing the next one tells the same.
        """
        awake_s, seen_at = self._stopwatch(), study.seen_at
        last_s = self._signs.get(seen_at)
        self._signs = {now: awake_s} if last_s is None else {seen_at: last_s, now: awake_s}
        if last_s is None:
            return
        slept_s = (now - seen_at).total_seconds() - (awake_s - last_s)
        if slept_s >= _LEAST_SLEEP_S:
            data = {"driver_attempt": study.driver_attempt, "seconds": slept_s}
            records.add_event(connection, study.id, records.DRIVER_SLEPT, data, at=now)


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
    sleeps = records.sleeps_of(connection, study_id)
    lost: dict[str, int] = {}
    trained_s: dict[str, float] = {}
    attempts_s = 0.0
    for attempt in attempts:
        spent_s = records.awake_s(attempt.started_at, attempt.finished_at, sleeps, attempt.driver_attempt)
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
