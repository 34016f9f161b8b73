"""The sleep of the machines that drivers run on, which no budget pays for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from service.store import tables

DRIVER_SLEPT = "driver.slept"
"""The event of a driver whose machine has slept; its data are `Sleep`'s."""

_LEAST_SLEEP_S = 2.0  # less may be two clocks that do not agree


@dataclass(frozen=True, slots=True)
class Sleep:
    """How long the machine of a study's driver had slept when the driver next showed a sign of life."""

    seconds: float
    woke_at: datetime


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

    def slept_s(self, seen_at: datetime, sign: Sign) -> float:
        """What the machine has slept between the last sign of life that the store has, of this time, and this one.

        A sign counts once the store has it: where its transaction comes to nothing the next one tells the same.
        """
        last = self._signs.get(seen_at)
        self._signs = {one.at: one for one in (last, sign) if one is not None}
        if last is None:
            return 0.0
        passed_s = (sign.at - last.at).total_seconds()
        at_least, at_most = passed_s - (sign.after_s - last.before_s), passed_s - (sign.before_s - last.after_s)
        slept_s = max(at_least, 0.0) + min(at_most, 0.0)
        return slept_s if abs(slept_s) >= _LEAST_SLEEP_S else 0.0


def sleeps_of(connection: Connection, study_id: str) -> list[Sleep]:
    """How the machines of a study's drivers have slept."""
    table = tables.events
    query = select(table.c.data, table.c.at).where(table.c.study_id == study_id, table.c.kind == DRIVER_SLEPT)
    return [Sleep(row.data["seconds"], row.at) for row in connection.execute(query)]


def awake_s(since: datetime, until: datetime, sleeps: Collection[Sleep]) -> float:
    """The seconds between two signs of life of a driver in which its machine did not sleep. sleeps: of its study.

    A study has one driver at a time, so that what was slept in between is that driver's.
    """
    slept_s = sum(sleep.seconds for sleep in sleeps if since < sleep.woke_at <= until)
    return max(0.0, (until - since).total_seconds() - slept_s)
