from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.controller import Controller
from tests.service.controller.world import World


@pytest.fixture
def world(migrated_store: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copy(migrated_store, tmp_path / "samstudy.db")
    world = World(tmp_path / "samstudy.db")
    yield world
    world.database.dispose()


@pytest.fixture
def controller(world: World) -> Controller:
    return world.controller()
