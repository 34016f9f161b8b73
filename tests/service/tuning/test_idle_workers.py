"""The worker that Tune keeps without a trial, with Tune's own controller and actor manager around stand-in actors."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal import actor_manager, event_manager
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution.tune_controller import TuneController
from ray.tune.utils.object_cache import _ObjectCache

from service.tuning.idle_workers import IdleWorkers

GROUP = "what a trial takes"


class Controller:
    """Tune's controller, as far as it keeps and ends workers."""

    _cleanup_cached_actors = TuneController._cleanup_cached_actors
    _remove_actor = TuneController._remove_actor

    def __init__(self) -> None:
        self._pending_trials: set[str] = set()
        self._running_trials: set[str] = set()
        self._paused_trials: set[str] = set()
        self._staged_trials: set[str] = set()
        self._stopping_actors: dict[Any, float] = {}
        self._earliest_stopping_actor = float("inf")
        self._actor_cache = _ObjectCache(may_keep_one=True)
        self._search_alg = SimpleNamespace(is_finished=lambda: False)
        self.freed: list[Any] = []
        self._actor_manager = RayActorManager(
            resource_manager=SimpleNamespace(  # type: ignore[arg-type]
                get_resource_futures=list,
                free_resources=lambda acquired_resource: self.freed.append(acquired_resource),
                update_state=lambda: None,
                has_resources_ready=lambda _: False,
                clear=lambda: None,
            )
        )

    def keep(self, worker: str) -> None:
        """A worker that has ended its trial."""
        tracked = TrackedActor(worker, on_start=None, on_stop=lambda _: None, on_error=None)  # type: ignore[arg-type]
        actor = SimpleNamespace(stop=SimpleNamespace(remote=lambda *_, **__: object()))
        self._actor_manager._live_actors_to_ray_actors_resources[tracked] = (actor, worker)  # type: ignore[assignment]
        assert self._actor_cache.cache_object(GROUP, tracked)

    @property
    def kept(self) -> int:
        return self._actor_cache.num_cached_objects


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many futures Ray was asked to wait for, each time; the first of them is done at once."""
    seen: list[int] = []

    def wait(futures: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
        seen.append(len(futures))
        return futures[:1], futures[1:]

    for module in (actor_manager, event_manager):
        ray = module.ray
        monkeypatch.setattr(
            module,
            "ray",
            SimpleNamespace(
                wait=wait,
                get=lambda _: None,
                kill=lambda _: None,
                actor=getattr(ray, "actor", None),
                exceptions=ray.exceptions,
                ObjectRef=object,
            ),
        )
    return seen


@pytest.fixture
def idle(waits: list[int]) -> Callable[[Controller], IdleWorkers]:
    def idle(controller: Controller) -> IdleWorkers:
        workers = IdleWorkers()
        workers.are_kept_by(controller)
        return workers

    return idle


def test_before_tune_has_a_controller_there_is_nothing_to_give_back() -> None:
    IdleWorkers().give_back()


def test_a_worker_that_the_next_trial_takes_in_this_step_stays(idle: Callable[[Controller], IdleWorkers]) -> None:
    controller = Controller()
    controller.keep("warm")
    controller._running_trials = {"another"}
    controller._pending_trials = {"the next one"}
    idle(controller).give_back()
    assert (controller.kept, controller._stopping_actors) == (1, {})


def test_while_another_trial_runs_tune_hears_of_its_end_itself(
    idle: Callable[[Controller], IdleWorkers], waits: list[int]
) -> None:
    controller = Controller()
    controller.keep("warm")
    controller._running_trials = {"another"}
    idle(controller).give_back()
    assert (controller.kept, len(controller._stopping_actors), waits) == (0, 1, [])


def test_without_a_trial_its_place_is_free_at_once_and_nobody_waits_any_longer(
    idle: Callable[[Controller], IdleWorkers], waits: list[int]
) -> None:
    controller = Controller()
    controller.keep("warm")
    workers = idle(controller)
    started = time.monotonic()
    for _ in range(3):  # Tune asks once a second, and comes to the end of its step in ten minutes
        workers.give_back()
    assert time.monotonic() - started < 2
    assert controller.freed == ["warm"]
    assert 1 <= len(waits) <= 3
