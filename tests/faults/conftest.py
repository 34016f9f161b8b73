"""Studies to be disturbed, and a witness of what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.embedded_service import Service
from tests.faults.invariants import Witness
from tests.postgresql import Databases, PostgresqlMissingError, PostgresqlServer


def study_spec(name: str, *, epochs: int = 60, trials: int = 4, **changes: Any) -> dict[str, Any]:
    """A study of so many trials, of which two train at a time on two CPUs; each saves its state after every epoch."""
    spec = {
        "name": name,
        "train": {"dataset": "digits", "model": "mlp", "epochs": epochs, "batch_size": 128, "lr": 0.05},
        "search_space": {"rho": {"type": "categorical", "choices": [round(0.05 * n, 2) for n in range(1, trials + 1)]}},
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": [0]},
    }
    return {**spec, **changes}


def submit(service: Service, name: str, **options: Any) -> Witness:
    """Posts a study, and answers the witness of it."""
    with service.client() as client:
        return Witness(service, client.submit(study_spec(name, **options)).id)


def ask(client: Client, study_id: str, verb: str) -> None:
    """One request about a study, as curl would send it: pause, resume, stop, cancel."""
    httpx.post(f"{client.url}/api/v1/studies/{study_id}/{verb}", timeout=30).raise_for_status()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server of the tests' own, to be killed and started again."""
    try:
        server = PostgresqlServer()
        server.start()
    except PostgresqlMissingError as missing:
        pytest.skip(str(missing))
    with closing(server):
        yield server


@pytest.fixture(scope="module")
def databases(postgresql_server: PostgresqlServer) -> Iterator[Databases]:
    with closing(Databases(postgresql_server.url())) as databases:
        yield databases


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def begin(service: Service) -> Callable[..., Witness]:
    """Posts a study to the shared service."""

    def begin(name: str, **options: Any) -> Witness:
        return submit(service, name, **options)

    return begin
