"""What tests of several folders share: the real service, which takes a while to start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.embedded_service import Service


def pytest_collection_finish() -> None:
    """What has been imported and collected by now stays, and looking for garbage in it took a sixth of all CPU time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One embedded service for all tests that let it live; it must leave nothing behind when it ends.

    The example of a package with its own model and data is installed there.
    """
    from tests.embedded_service import Service
    from tests.own_package import python_path

    packages = python_path(tmp_path_factory.mktemp("packages"))
    service = Service(tmp_path_factory.mktemp("service") / "home", {"PYTHONPATH": packages})
    yield service
    status, survivors = service.stop()
    assert status == 0
    assert survivors == []
