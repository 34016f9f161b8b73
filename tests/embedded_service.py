"""The real service: `samstudy up` in a process of its own, as a user starts it, and whatever can happen to it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

from service.addresses import Addresses, running_addresses
from service.client import Client
from service.store.database import Database

DEADLINE_S = 120.0
TIDY_S = 40.0
"""Processes and checkpoints go a moment after their study has ended."""

_PR_SET_PDEATHSIG = 1

_QUICK = {  # seconds: what is dead is missed soon
    "SAMSTUDY_LEASE_S": "3",
    "SAMSTUDY_HEARTBEAT_S": "0.5",
    "SAMSTUDY_STARTUP_LEASE_S": "20",
}


def wait_until(condition: Callable[[], bool], *, deadline_s: float = DEADLINE_S, what: str) -> None:
    """Waits for something that happens in another process."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(0.05)


class Service:
    """`samstudy up` on one home; it can be killed with everything that it has started, and started again.

    settings: environment of the service, over the short leases of the tests.
    """

    def __init__(self, home: Path, settings: dict[str, str] | None = None) -> None:
        self.home = home
        self.output = home.parent / "up.log"
        self._settings = {"SAMSTUDY_HOME": str(home), **_QUICK, **(settings or {})}
        self.store_url = self._settings.get("SAMSTUDY_DATABASE_URL", f"sqlite:///{home / 'samstudy.db'}")
        self.database = Database(self.store_url)
        self.start()

    def start(self) -> None:
        """Returns once everything answers."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SAMSTUDY_"))}
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up"],
                env={**inherited, **self._settings},
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_the_tests,
            )
        wait_until(self._is_up, what="samstudy up")
        addresses = running_addresses(self.home)
        assert addresses is not None
        self.addresses: Addresses = addresses

    def setting(self, name: str) -> str:
        """What its environment says; empty where that says nothing."""
        return self._settings.get(name, "")

    def client(self, *, patience_s: float = 60.0) -> Client:
        """A client that bears with an API which is away for a while."""
        return Client(self.addresses.api_url, patience_s=patience_s)

    def processes(self, *words: str) -> list[psutil.Process]:
        """The service's processes whose command line has all of these words, orphans included."""
        found = []
        is_up = self._process.poll() is None
        children = psutil.Process(self._process.pid).children(recursive=True) if is_up else []
        for process in children + self._orphans():
            with suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and all(word in line for word in words):
                    found.append(process)
        return found

    def drivers(self, study_id: str) -> list[psutil.Process]:
        """The driver of a study: Python itself, not the shell that Ray starts it from."""
        found = []
        for process in self.processes("-m service.tuning.driver", study_id):
            with suppress(psutil.NoSuchProcess):
                if not process.name().startswith(("sh", "bash")):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes that train; Ray titles them by what they do at the moment."""
        return [*self.processes("ray::StudyTrial"), *self.processes("ray::ResourceTrainable")]

    def worker(self) -> psutil.Process:
        """One of them: between two calls its title is another for a moment."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found.extend(self.workers())
            return bool(found)

        wait_until(look, what="a worker trains")
        return found[0]

    def stop(self, how: signal.Signals = signal.SIGINT) -> tuple[int, list[psutil.Process]]:
        """Ctrl-C, or SIGTERM; answers the exit status and the processes that outlived it."""
        self.database.dispose()
        family = self.processes()
        self._process.send_signal(how)
        status = self._process.wait(DEADLINE_S)
        return status, [process for process in family if lives(process)]

    def kill(self) -> None:
        """SIGKILL for `samstudy up` and everything that it has started, all at once: the machine goes away."""
        up = psutil.Process(self._process.pid)
        up.suspend()  # it starts nothing again meanwhile
        kill([up, *self.processes()])
        self._process.wait(DEADLINE_S)

        def nothing_is_left() -> bool:
            left = self.processes()  # what they have started while they were killed one after the other
            kill(left)
            return not left

        wait_until(nothing_is_left, what="everything that the killed service has started is gone")

    def _orphans(self) -> list[psutil.Process]:
        """Processes with the service's home in their environment whose parent is gone, and their children."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.ppid() == 1 and process.environ().get("SAMSTUDY_HOME") == str(self.home):
                    found |= {process, *process.children(recursive=True)}
        return [process for process in found if process.pid != os.getpid()]

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"samstudy up ended: {self.output.read_text()}")
        addresses = running_addresses(self.home)
        return addresses is not None and addresses.pid == self._process.pid


def lives(process: psutil.Process) -> bool:
    """One that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill(processes: Iterable[psutil.Process]) -> None:
    """`kill -9` of these processes; returns when they are gone."""
    victims = list(processes)
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not any(lives(process) for process in victims), deadline_s=30, what="killed processes are gone")


@contextmanager
def frozen(*processes: psutil.Process, store: Database | None = None) -> Iterator[None]:
    """SIGSTOP for these processes while the block runs, then SIGCONT.

    store: a SQLite file that none of them may be writing to just then: its lock would hold up everybody else.
    """
    try:
        with store.writing() if store else nullcontext():
            for process in processes:
                process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _end_with_the_tests() -> None:
    """The kernel sends `samstudy up` its Ctrl-C when pytest is gone, however that went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
