"""A random schedule of faults from a seed: what dies or stalls, when, and several at once; and who carries it out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
from sqlalchemy.engine import make_url

from service.errors import StoreUnavailableError
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

OF_POSTGRESQL = ("restart postgresql", "kill postgresql", "stall postgresql")

_VICTIM_S = 10.0
"""How long a fault waits for somebody whom it concerns: what was killed just before is being started again."""


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
    """Carries a schedule out upon a service while a study of it runs.

    done: the faults that have hit something. missed: those that have found nothing to hit, and those that came after
    the study's end.
    """

    def __init__(self, witness: Witness, postgresql: PostgresqlServer | None = None) -> None:
        self._witness = witness
        self._service: Service = witness.service
        self._postgresql = postgresql
        self._stalls: list[_Stall] = []
        self.done: list[str] = []
        self.missed: list[str] = []

    def carry_out(self, schedule: Sequence[Strike]) -> None:
        """Ends early where the study does. What was stalled goes on, whatever happens."""
        try:
            for strike in schedule:
                is_over = not self._wait(strike.after_s)
                for fault in strike.faults:
                    hits = not is_over and self._carry_out(fault, strike.stall_s)
                    (self.done if hits else self.missed).append(fault)
            for stall in self._stalls:
                stall.wait()
        finally:
            self._wake_everything()

    def _wait(self, seconds: float) -> bool:
        """Waits, and takes down what has ended by then; False once the study has."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._is_over():
                return False
            time.sleep(0.05)
        with suppress(StoreUnavailableError):
            self._witness.remember()
        return True

    def _is_over(self) -> bool:
        try:
            return self._witness.study().state.is_final
        except StoreUnavailableError:
            return False

    def _carry_out(self, fault: str, stall_s: float) -> bool:
        """Whether there was somebody to hit."""
        victims = self._victims(fault)
        deadline = time.monotonic() + _VICTIM_S
        while not victims and time.monotonic() < deadline and not self._is_over():
            time.sleep(0.05)
            victims = self._victims(fault)
        if not victims:
            return False
        if fault == "kill everything":
            self._wake_everything()
            self._service.kill()
            self._service.start()
        elif fault in ("restart postgresql", "kill postgresql"):
            assert self._postgresql is not None
            self._wake_everything()
            if fault == "kill postgresql":
                self._postgresql.kill()
                self._postgresql.start()
            else:
                self._postgresql.restart()
        elif fault.startswith("kill"):
            kill(victims)
        else:
            self._stalls.append(_Stall(victims, stall_s))
        return True

    def _victims(self, fault: str) -> list[psutil.Process]:
        """The processes that a fault concerns; there may be none at the moment."""
        who: dict[str, Callable[[], list[psutil.Process]]] = {
            "kill driver": lambda: self._service.drivers(self._witness.study_id),
            "stall driver": lambda: self._service.drivers(self._witness.study_id),
            "kill worker": lambda: self._service.workers()[:1],
            "kill workers": self._service.workers,
            "kill everything": self._service.processes,
            **dict.fromkeys(OF_POSTGRESQL, self._postgresql_processes),
        }
        words = _KILLS.get(fault) or _STALLS.get(fault)
        return who[fault]() if words is None else self._service.processes(*words)

    def _postgresql_processes(self) -> list[psutil.Process]:
        assert self._postgresql is not None
        return postgresql_processes(self._postgresql)

    def _wake_everything(self) -> None:
        for stall in self._stalls:
            stall.end()


class _Stall:
    """SIGSTOP for these processes at once, and SIGCONT after a while, whatever the tests wait for meanwhile."""

    def __init__(self, processes: Sequence[psutil.Process], seconds: float) -> None:
        self._processes = processes
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        self._timer = threading.Timer(seconds, self._resume)
        self._timer.daemon = True
        self._timer.start()

    def wait(self) -> None:
        self._timer.join()

    def end(self) -> None:
        """Lets them go on now."""
        self._timer.cancel()
        self._timer.join()
        self._resume()

    def _resume(self) -> None:
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def postgresql_processes(server: PostgresqlServer) -> list[psutil.Process]:
    """The server's postmaster, first, and its children; of this server alone, should the tests have others too."""
    port = str(make_url(server.url()).port)
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if process.name() == "postgres" and port in process.cmdline():
                return [process, *process.children(recursive=True)]
    return []
