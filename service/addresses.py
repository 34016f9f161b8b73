"""Where a running embedded service is: written by `samstudy up`, read by the client and the command.

A service runs in a home exactly while somebody holds the lock of the home, whatever files a killed one left there.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from service.errors import SamstudyError

_PATIENCE_S = 1.0
"""Looking whether somebody holds the lock takes it for a moment."""


class AlreadyRunningError(SamstudyError):
    """Another `samstudy up` runs with the same home."""

    status = 409
    code = "already_running"
    title = "The embedded service runs already"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the parts of an embedded service are; `pid` is the process of `samstudy up`."""

    api_url: str
    mlflow_url: str
    ray_url: str
    home: str
    pid: int


def running_addresses(home: Path) -> Addresses | None:
    """Where the embedded service of this home runs; None where it does not."""
    try:
        addresses = Addresses(**json.loads(_file(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return addresses if _is_held(home) else None


@contextmanager
def holding(home: Path) -> Iterator[None]:
    """Holds the home for this process. Raises AlreadyRunningError."""
    deadline = time.monotonic() + _PATIENCE_S
    with _lock_file(home).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    message = f"another `samstudy up` uses {home}; set SAMSTUDY_HOME for a second one"
                    raise AlreadyRunningError(message) from error
                time.sleep(0.05)
        yield


def on_this_machine(url: str) -> bool:
    """Whether the address is a loopback one, which has no proxy in front. Raises ValueError where it is no URL."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what is bound to the host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def publish(addresses: Addresses) -> None:
    """Lets others on this machine find the service."""
    _file(Path(addresses.home)).write_text(json.dumps(asdict(addresses)))


def withdraw(addresses: Addresses) -> None:
    """The service is gone."""
    _file(Path(addresses.home)).unlink(missing_ok=True)


def _is_held(home: Path) -> bool:
    try:
        with _lock_file(home).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _lock_file(home: Path) -> Path:
    return home / "up.lock"


def _file(home: Path) -> Path:
    return home / "addresses.json"
