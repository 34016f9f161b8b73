"""The real service, started as a user starts it, for the tests of the whole way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.addresses import Addresses, running_addresses
from service.client import Client

_DEADLINE_S = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def wait_until(condition: Callable[[], bool], *, deadline_s: float = _DEADLINE_S, what: str) -> None:
    """Waits for something that happens in another process."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(0.05)


class Service:
    """`samstudy up` in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SAMSTUDY_"))}
        environment |= {"SAMSTUDY_HOME": str(home), "SAMSTUDY_LEASE_S": "3", "SAMSTUDY_HEARTBEAT_S": "0.5"}
        self.output = home.parent / "up.log"
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up"], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        wait_until(lambda: self._is_up(), what="samstudy up")
        addresses = running_addresses(home)
        assert addresses is not None
        self.addresses: Addresses = addresses

    def processes(self, *words: str) -> list[psutil.Process]:
        """The service's processes whose command line has all of these words."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes that train; Ray titles them by what they do at the moment."""
        return [*self.processes("ray::StudyTrial"), *self.processes("ray::ResourceTrainable")]

    def stop(self) -> tuple[int, list[psutil.Process]]:
        """Ctrl-C; answers the exit status and the processes that outlived it."""
        family = self.processes()
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(_DEADLINE_S)
        return status, [process for process in family if process.is_running() and process.status() != "zombie"]

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"samstudy up ended: {self.output.read_text()}")
        return running_addresses(self.home) is not None


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all of these tests; it must leave nothing behind when it ends."""
    service = Service(tmp_path_factory.mktemp("e2e") / "home")
    yield service
    status, survivors = service.stop()
    assert status == 0
    assert survivors == []


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.addresses.api_url) as client:
        yield client
