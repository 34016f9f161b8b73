"""The marker of these tests; the service that they share is a fixture of `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from tests.embedded_service import Service, wait_until

__all__ = ["Service", "wait_until"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.addresses.api_url) as client:
        yield client
