"""One controller leads, and the others wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from service.controller import Controller
from service.errors import StoreUnavailableError
from service.store.database import Database
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.tuning.jobs import DriverJobs
from tests.service.controller.world import World


def test_one_controller_leads_and_the_other_waits(world: World, controller: Controller) -> None:
    second = world.controller("b")
    controller.reconcile()
    world.create()
    second.reconcile()
    assert (controller.leadership.leads, second.leadership.leads) == (True, False)
    assert world.jobs.started == []
    controller.leadership.resign()
    second.reconcile()
    assert (controller.leadership.leads, second.leadership.leads) == (False, True)
    assert len(world.jobs.started) == 1


def test_a_controller_that_fell_silent_is_succeeded(world: World, controller: Controller) -> None:
    second = world.controller("b")
    controller.reconcile()
    world.create()
    world.advance(9)
    second.reconcile()
    assert not second.leadership.leads
    world.advance(2)
    second.reconcile()
    assert second.leadership.leads
    controller.reconcile()
    assert not controller.leadership.leads
    assert len(world.jobs.started) == 1


def test_the_lead_is_kept_while_the_cluster_lets_the_reconciler_wait(world: World, controller: Controller) -> None:
    other = world.controller("b")
    controller.reconcile()
    for _ in range(5):
        world.advance(5)
        assert controller.leadership.renew()
        other.reconcile()
        assert (controller.leadership.leads, other.leadership.leads) == (True, False)
    assert controller.leadership.term == 1


def test_a_controller_that_hangs_in_a_look_for_good_leads_no_longer(world: World, controller: Controller) -> None:
    world.create()
    leads: list[bool] = []

    def hang(_claim: DriverClaim) -> None:
        for _ in range(20):
            world.advance(5)
            controller.leadership.hold()
            leads.append(controller.leadership.leads)

    world.jobs.start = hang  # type: ignore[method-assign]
    controller.reconcile()
    assert leads == [True] * 12 + [False] * 8
    controller.leadership.hold()
    assert controller.leadership.leads


def test_a_controller_that_could_not_renew_its_lease_in_time_leads_no_longer(world: World) -> None:
    now = 0.0
    store = ReconcilingStore(world.database)
    controller = Controller(store, cast(DriverJobs, world.jobs), world.config, holder="a", clock=lambda: now)
    assert not controller.leadership.leads
    controller.reconcile()
    assert controller.leadership.leads
    now = world.config.lease_s - 0.001
    assert controller.leadership.leads
    now = world.config.lease_s
    assert not controller.leadership.leads


def test_a_clock_that_goes_back_delays_no_successor(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    second = world.controller("b")
    world.advance(15)
    second.reconcile()
    world.set_clock_back(3600)
    third = world.controller("c")
    third.reconcile()
    assert third.leadership.leads
    second.reconcile()
    assert not second.leadership.leads
    assert world.studies.get(study.id).driver_attempt == 1


def test_a_store_that_does_not_answer_is_said_so(world: World, tmp_path: Path) -> None:
    nowhere = Database(f"sqlite:///{tmp_path}")
    controller = Controller(ReconcilingStore(nowhere), cast(Any, world.jobs), world.config, holder="a")
    with pytest.raises(StoreUnavailableError):
        controller.reconcile()
