"""A client of the service that these tests share, which is a fixture of `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.client import Client
from tests.embedded_service import Service, wait_until

__all__ = ["Service", "wait_until"]


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.addresses.api_url) as client:
        yield client
