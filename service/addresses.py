"""Where a running embedded service is: written by `samstudy up`, read by the client and the command."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


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
    return addresses if psutil.pid_exists(addresses.pid) else None


def publish(addresses: Addresses) -> None:
    """Lets others on this machine find the service."""
    _file(Path(addresses.home)).write_text(json.dumps(asdict(addresses)))


def withdraw(addresses: Addresses) -> None:
    """The service is gone."""
    _file(Path(addresses.home)).unlink(missing_ok=True)


def _file(home: Path) -> Path:
    return home / "addresses.json"
