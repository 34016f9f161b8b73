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


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life: the store's time, and the stopwatch before and after that was asked for."""

    at: datetime
    before_s: float
    after_s: float


class SleepWatch:
    """Notices that a driver's machine has slept, by the store's clock and a stopwatch that stands still meanwhile.

    What is at fault where the two differ does not matter: what a driver has not lived through nobody pays for. Where
    the store's clock was set back, the seconds are below 0, so that they do not pay for what its next correction adds.
    stopwatch: in seconds.
    """

    def __init__(self, stopwatch: Callable[[], float]) -> None:
        self._stopwatch = stopwatch
        self._signs: dict[datetime, Sign] = {}

    def look(self, clock: Callable[[], datetime]) -> Sign:
        """A sign of life now. clock: the store's, which may take long to answer."""
        before_s, at = self._stopwatch(), clock()
        return Sign(at, before_s, self._stopwatch())

    def note(self, connection: Connection, study: Row[Any], sign: Sign) -> None:
        """Records of a locked study what its driver, which shows this sign of life, has slept since the last one.

        A sign counts once the store has it: where this transaction comes to nothing the next one tells the same.
        """
        last = self._signs.get(study.seen_at)
        self._signs = {one.at: one for one in (last, sign) if one is not None}
        if last is None:
            return
        passed_s = (sign.at - last.at).total_seconds()
        at_least, at_most = passed_s - (sign.after_s - last.before_s), passed_s - (sign.before_s - last.after_s)
        slept_s = max(at_least, 0.0) + min(at_most, 0.0)
        if abs(slept_s) >= _LEAST_SLEEP_S:
            data = {"driver_attempt": study.driver_attempt, "seconds": slept_s}
            records.add_event(connection, study.id, records.DRIVER_SLEPT, data, at=sign.at)


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
        spent_s = records.awake_s(attempt.started_at, attempt.finished_at, sleeps)
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
