"""Drivers whose lease ran out, and those that are not to blame for it."""

from __future__ import annotations

import itertools

import pytest

from service.controller import Controller
from service.errors import StoreUnavailableError
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.study import Reason, Study, StudyState
from tests.service.controller.world import World


def test_a_clock_that_goes_back_keeps_no_dead_driver_and_ends_no_living_one(
    world: World, controller: Controller
) -> None:
    dead, living = world.create(), world.create()
    controller.reconcile()
    for study in (dead, living):
        world.driver(study).heartbeat(10)
    world.advance(10)
    world.set_clock_back(3600)
    controller.reconcile()
    assert world.jobs.stopped == []
    world.advance(1)
    world.driver(living).heartbeat(10)
    world.advance(9.5)
    controller.reconcile()
    assert world.jobs.stopped == [DriverClaim(dead.id, 1)]
    assert world.studies.get(living.id).driver_attempt == 1


def test_a_silent_driver_is_stopped_and_replaced(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    world.driver(study).heartbeat(10)
    world.advance(9)
    controller.reconcile()
    assert world.jobs.stopped == []
    world.advance(2)
    controller.reconcile()
    assert world.jobs.stopped == [DriverClaim(study.id, 1)]
    assert world.jobs.started == [DriverClaim(study.id, 1), DriverClaim(study.id, 2)]


def test_a_new_driver_has_its_time_to_start(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    world.advance(59)
    controller.reconcile()
    assert world.studies.get(study.id).driver_attempt == 1
    world.advance(2)
    controller.reconcile()
    assert world.studies.get(study.id).driver_attempt == 2


def with_a_living_driver(world: World, controller: Controller) -> Study:
    """A study whose driver holds a lease of 10 s."""
    study = world.create()
    controller.reconcile()
    world.driver(study).heartbeat(10)
    return study


def test_a_silent_driver_is_not_lost_before_its_job_has_ended(world: World, controller: Controller) -> None:
    study = with_a_living_driver(world, controller)
    world.jobs.leave = False
    world.advance(11)
    for _ in range(3):
        controller.reconcile()
        assert world.studies.get(study.id).state is StudyState.RUNNING
        world.advance(7)
    world.driver(study).heartbeat(10)  # it has only been busy
    world.jobs.leave = True
    controller.reconcile()
    assert world.studies.get(study.id).driver_attempt == 1
    world.advance(11)
    controller.reconcile()
    assert world.studies.get(study.id).driver_attempt == 2


@pytest.mark.parametrize("ends", [True, False])
def test_a_job_that_does_not_end_is_not_waited_for_and_not_forgotten(
    world: World, controller: Controller, ends: bool
) -> None:
    study = with_a_living_driver(world, controller)
    world.jobs.leave = False
    world.advance(11)
    controller.reconcile()
    world.advance(16)
    controller.reconcile()
    assert world.studies.get(study.id).driver_attempt == 2
    world.jobs.stopped.clear()
    world.advance(50)
    world.driver(study, 2).heartbeat(60)
    world.jobs.is_down = True
    controller.reconcile()
    world.jobs.is_down, world.jobs.leave = False, ends
    controller.reconcile()
    assert world.jobs.stopped == [DriverClaim(study.id, 1)]
    controller.reconcile()
    assert len(world.jobs.stopped) == (1 if ends else 2)
    world.advance(600)
    world.driver(study, 2).heartbeat(60)
    controller.reconcile()
    world.jobs.stopped.clear()
    controller.reconcile()
    assert world.jobs.stopped == []
    assert world.studies.get(study.id).driver_attempt == 2


@pytest.mark.parametrize("wish", ["cancel", "pause"])
def test_a_wish_that_comes_while_neither_driver_nor_cluster_answers_is_not_fulfilled_over_its_workers(
    world: World, controller: Controller, wish: str
) -> None:
    study = with_a_living_driver(world, controller)
    world.jobs.is_down = True
    world.advance(61)
    controller.reconcile()
    getattr(world.lifecycle, wish)(study.id)
    for _ in range(5):
        world.advance(30)
        controller.reconcile()
        assert world.studies.get(study.id).state is StudyState.STOPPING
    world.jobs.is_down, world.jobs.leave = False, False
    world.advance(30)
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.STOPPING
    assert set(world.jobs.stopped) == {DriverClaim(study.id, 1)}
    world.jobs.leave = True
    world.advance(30)
    controller.reconcile()
    ended = {"cancel": StudyState.CANCELLED, "pause": StudyState.PAUSED}
    assert world.studies.get(study.id).state is ended[wish]


def test_a_driver_is_lost_although_its_cluster_is_down_for_long(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ticks = itertools.count()
    controller = world.controller(clock=lambda: world._monotonic_s + 1e-6 * next(ticks))
    study = world.create()
    controller.reconcile()
    world.jobs.is_down = True
    world.advance(61)
    for _ in range(3):
        controller.reconcile()
    assert [record.message for record in caplog.records if study.id in record.message] == [
        f"study {study.id}: its driver is silent, and the Ray cluster does not answer"
    ]
    world.advance(599)
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.RUNNING
    world.advance(2)
    controller.reconcile()
    waiting = world.studies.get(study.id)
    assert (waiting.state, waiting.driver_attempt) == (StudyState.QUEUED, 1)
    assert waiting.waiting_reason == "the Ray cluster does not answer"


def test_a_study_whose_drivers_never_live_fails(world: World, controller: Controller) -> None:
    study = world.create()
    for _ in range(5):
        controller.reconcile()
        world.advance(61)
    controller.reconcile()
    failed = world.studies.get(study.id)
    assert (failed.state, failed.reason, len(world.jobs.started)) == (StudyState.FAILED, Reason.DRIVER_FAILED, 5)


def test_a_controller_begins_where_another_stopped(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    controller.leadership.resign()
    world.advance(61)
    other = world.controller("b")
    other.reconcile()
    assert world.jobs.started == [DriverClaim(study.id, 1)]  # it may be the store that was away, and not the driver
    world.advance(10)
    other.reconcile()
    assert world.jobs.started == [DriverClaim(study.id, 1), DriverClaim(study.id, 2)]


class FailingStore(ReconcilingStore):
    """A store that does not answer while it is down."""

    is_down = False

    def lead(self, name: str, holder: str, lease_s: float) -> bool:
        if self.is_down:
            raise StoreUnavailableError("down")
        return super().lead(name, holder, lease_s)


def test_a_driver_that_could_not_reach_the_store_gets_the_time_of_a_lease_when_it_is_back(world: World) -> None:
    store = FailingStore(world.database)
    controller = world.controller(store=store)
    study = world.create()
    controller.reconcile()
    driver = world.driver(study)
    driver.heartbeat(10)
    store.is_down = True
    world.advance(60)
    with pytest.raises(StoreUnavailableError):
        controller.reconcile()
    store.is_down = False
    controller.reconcile()
    assert world.jobs.stopped == []
    driver.heartbeat(10)  # what it has still to report is not refused
    world.advance(10)
    controller.reconcile()
    assert world.jobs.stopped == []
    world.advance(1)
    controller.reconcile()
    assert world.jobs.stopped == [DriverClaim(study.id, 1)]


@pytest.mark.parametrize(("stood_s", "is_lost"), [(60, False), (0.3, True)])
def test_drivers_may_renew_their_leases_after_the_controller_stood_still_too(
    world: World, controller: Controller, stood_s: float, is_lost: bool
) -> None:
    study = world.create()
    controller.reconcile()
    driver = world.driver(study)
    driver.heartbeat(10)
    world.advance(60)
    controller.stood_still(stood_s)
    controller.reconcile()
    assert (world.jobs.stopped == [DriverClaim(study.id, 1)]) is is_lost
    if not is_lost:
        driver.heartbeat(10)
        world.advance(9)
        controller.reconcile()
        assert world.jobs.stopped == []


def test_a_driver_that_does_not_wake_is_lost_after_the_time_of_a_lease(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    world.driver(study).heartbeat(10)
    world.advance(60)
    controller.stood_still(60)
    controller.reconcile()
    world.advance(10)
    controller.reconcile()
    assert world.jobs.stopped == [DriverClaim(study.id, 1)]


@pytest.mark.parametrize(("slept_s", "is_lost"), [(60.0, False), (0.3, True)])
def test_a_machine_that_sleeps_in_the_midst_of_a_look_costs_no_driver(
    world: World, slept_s: float, is_lost: bool
) -> None:
    asleep_s = 1_000.0
    store = ReconcilingStore(world.database)
    look_up, controller = store.shorten_leases, world.controller(store=store, asleep=lambda: asleep_s)

    def sleep_first(lease_s: float) -> list[DriverClaim]:
        nonlocal asleep_s
        world.advance(60)
        asleep_s += slept_s
        return look_up(lease_s)

    study = world.create()
    controller.reconcile()
    world.driver(study).heartbeat(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "shorten_leases", sleep_first)
        controller.reconcile()
    assert (world.jobs.stopped == [DriverClaim(study.id, 1)]) is is_lost
