"""A random schedule of faults from a seed: what dies or stalls, when, and several at once; and who carries it out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from tests.embedded_service import Service, kill
from tests.faults.invariants import Witness
from tests.postgresql import PostgresqlServer

_KILLS = {
    "kill api": ("service.cli", "api"),
    "kill controller": ("service.cli", "controller"),
    "kill mlflow": ("mlflow", "server"),
    "kill ray's gcs": ("gcs_server",),
    "kill raylet": ("raylet/raylet",),
    "kill ray's head": ("ray.scripts.scripts", "start"),
}
_STALLS = {
    "stall controller": ("service.cli", "controller"),
    "stall mlflow": ("mlflow",),
    "stall api": ("service.cli", "api"),
    "stall raylet": ("raylet/raylet",),
}

QUICK = (
    "kill api",
    "kill controller",
    "kill driver",
    "kill worker",
    "stall controller",
    "stall driver",
    "stall mlflow",
)
"""Faults from which the service recovers within seconds."""

EVERY = (*_KILLS, *_STALLS, "kill driver", "kill worker", "kill workers", "stall driver", "kill everything")

OF_POSTGRESQL = ("restart postgresql", "kill postgresql")


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens together, `after_s` seconds after the strike before. stall_s: how long what stalls does."""

    after_s: float
    faults: tuple[str, ...]
    stall_s: float

    def __str__(self) -> str:
        stalls = f" for {self.stall_s:.1f} s" if any(fault.startswith("stall") for fault in self.faults) else ""
        return f"after {self.after_s:.1f} s: {', '.join(self.faults)}{stalls}"


def random_schedule(seed: int, kinds: Sequence[str], *, faults: int, longest_pause_s: float) -> list[Strike]:
    """So many faults in a row of strikes, always the same for a seed."""
    choose = random.Random(seed)
    schedule: list[Strike] = []
    left = faults
    while left:
        together = tuple(choose.sample(kinds, k=min(left, choose.choice([1, 1, 2, 3]))))
        schedule.append(Strike(choose.uniform(0.2, longest_pause_s), together, choose.uniform(0.5, 8.0)))
        left -= len(together)
    return schedule


class Striker:
    """Carries a schedule out upon a service while a study of it runs."""

    def __init__(self, witness: Witness, postgresql: PostgresqlServer | None = None) -> None:
        self._witness = witness
        self._service: Service = witness.service
        self._postgresql = postgresql
        self._stalled: list[tuple[float, psutil.Process]] = []
        self.done: list[str] = []

    def carry_out(self, schedule: Sequence[Strike]) -> None:
        """Ends early where the study does. What was stalled goes on, whatever happens."""
        try:
            for strike in schedule:
                if not self._wait(strike.after_s):
                    break
                self._witness.remember()
                for fault in strike.faults:
                    self.done.append(fault)
                    self._carry_out(fault, strike.stall_s)
            while self._stalled:
                self._wait(0.1, whatever_happens=True)
        finally:
            self._wake(everything=True)

    def _wait(self, seconds: float, *, whatever_happens: bool = False) -> bool:
        """Waits; wakes meanwhile what has stalled long enough. False once the study has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._wake()
            if not whatever_happens and self._witness.study().state.is_final:
                return False
            time.sleep(0.05)
        return True

    def _carry_out(self, fault: str, stall_s: float) -> None:
        service = self._service
        if fault == "kill everything":
            self._wake(everything=True)
            service.kill()
            service.start()
        elif fault == "restart postgresql":
            assert self._postgresql is not None
            self._postgresql.restart()
        elif fault == "kill postgresql":
            assert self._postgresql is not None
            self._postgresql.kill()
            self._postgresql.start()
        elif fault.startswith("kill"):
            kill(self._victims(fault))
        else:
            for process in self._victims(fault):
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
                    self._stalled.append((time.monotonic() + stall_s, process))

    def _victims(self, fault: str) -> list[psutil.Process]:
        """The processes that a fault concerns; there may be none at the moment."""
        who: dict[str, Callable[[], list[psutil.Process]]] = {
            "kill driver": lambda: self._service.drivers(self._witness.study_id),
            "stall driver": lambda: self._service.drivers(self._witness.study_id),
            "kill worker": lambda: self._service.workers()[:1],
            "kill workers": self._service.workers,
        }
        words = _KILLS.get(fault) or _STALLS.get(fault)
        return who[fault]() if words is None else self._service.processes(*words)

    def _wake(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        for until, process in list(self._stalled):
            if everything or now >= until:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
                self._stalled.remove((until, process))
