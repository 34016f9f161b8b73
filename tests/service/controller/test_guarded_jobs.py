"""A cluster that lets one look wait is not asked again in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.controller import Controller
from service.errors import ServiceSilentError
from service.study import StudyState
from tests.service.controller.world import World, cancelled_studies


@pytest.mark.parametrize("silent", ["check", "start", "stop", "nodes"])
def test_a_cluster_that_says_nothing_is_asked_once_a_look(
    world: World, controller: Controller, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """Each question takes the time of the controller's lease: the store's own matters must not wait for all of them."""
    cancelled = cancelled_studies(world, controller, 2)
    lost = [world.create() for _ in range(3)]
    controller.reconcile()
    world.advance(100)
    controller.leadership.renew()
    world.advance(11)
    waiting = [world.create() for _ in range(3)]
    asked: list[str] = []

    def hangs(name: str) -> Callable[..., Any]:
        answer = getattr(world.jobs, name)

        def ask(*arguments: Any) -> Any:
            asked.append(name)
            if name == silent:
                world.advance(10)
                raise ServiceSilentError("the Ray cluster does not answer: timed out")
            return answer(*arguments)

        return ask

    for name in ("check", "start", "stop", "nodes"):
        monkeypatch.setattr(world.jobs, name, hangs(name))
    controller.reconcile()
    assert asked.index(silent) == len(asked) - 1
    states = {study.state for study in map(world.studies.get, [one.id for one in lost])}
    assert states <= {StudyState.QUEUED, StudyState.RUNNING}
    assert all(world.studies.get(study.id).waiting_reason for study in waiting)
    assert {world.studies.get(study.id).state for study in cancelled} <= {StudyState.STOPPING, StudyState.CANCELLED}
