"""Starts of drivers, and what becomes of those that the cluster refuses or nobody could tell."""

from __future__ import annotations

from typing import Any

import pytest

from service.controller import Controller
from service.errors import ServiceSilentError, StoreUnavailableError
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.watching import CONTROLLER_LEASE, WatchingStore
from service.study import Study, StudyState
from tests.service.controller.world import World


def test_a_driver_that_cannot_be_submitted_leaves_its_study_queued(world: World, controller: Controller) -> None:
    study = world.create()
    world.jobs.takes_jobs = False
    controller.reconcile()
    waiting = world.studies.get(study.id)
    assert (waiting.state, waiting.waiting_reason) == (StudyState.QUEUED, "the Ray cluster does not take jobs")
    world.jobs.takes_jobs = True
    world.advance(1)
    controller.reconcile()
    assert world.jobs.started == [DriverClaim(study.id, 2)]  # a job's name cannot be used twice


def attempts_within(world: World, controller: Controller, study: Study, seconds: int, *, every_s: float = 0.25) -> int:
    """How many drivers the study gets meanwhile, at a look now and then."""
    before = world.studies.get(study.id).driver_attempt
    for _ in range(round(seconds / every_s)):
        controller.reconcile()
        world.advance(every_s)
    return world.studies.get(study.id).driver_attempt - before


def test_a_cluster_that_refuses_jobs_is_asked_less_and_less_often(world: World, controller: Controller) -> None:
    study = world.create()
    world.jobs.takes_jobs = False
    assert attempts_within(world, controller, study, 5) == 3  # after 0, 1 and 3 s
    assert len(world.studies.events(study.id)) == 1  # that it was queued
    assert attempts_within(world, controller, study, 58) == 3  # after 7, 15 and 31 s
    assert attempts_within(world, controller, study, 600, every_s=5) == 10  # once a minute
    world.jobs.takes_jobs = True
    assert attempts_within(world, controller, study, 60) == 1
    assert world.studies.get(study.id).state is StudyState.RUNNING


def test_a_study_that_the_cluster_refused_does_not_hold_up_the_others(world: World, controller: Controller) -> None:
    refused = world.create()
    world.jobs.takes_jobs = False
    controller.reconcile()
    world.jobs.takes_jobs = True
    other = world.create()
    controller.reconcile()
    assert world.jobs.started == [DriverClaim(other.id, 1)]
    assert world.studies.get(refused.id).waiting_reason == "the Ray cluster does not take jobs"


def test_a_study_that_the_cluster_refuses_has_waited_since_it_was_queued(world: World, controller: Controller) -> None:
    study = world.create()
    world.jobs.takes_jobs = False
    attempts_within(world, controller, study, 3600, every_s=20)
    assert WatchingStore(world.database).look().queued.oldest_s == 3600
    assert world.studies.get(study.id).started_at is None
    world.jobs.takes_jobs = True
    world.advance(60)
    controller.reconcile()
    assert [event.data["state"] for event in world.studies.events(study.id)] == ["QUEUED", "RUNNING"]
    assert world.studies.get(study.id).started_at is not None


def test_a_start_that_nobody_carried_out_is_done_again(world: World) -> None:
    study = world.create()
    assert ReconcilingStore(world.database).claim(study.id, 60) == DriverClaim(study.id, 1)
    successor = world.controller("b")
    successor.reconcile()
    world.advance(61)
    successor.reconcile()
    assert world.jobs.started == [DriverClaim(study.id, 2)]
    told = [(event.kind, event.data.get("state")) for event in world.studies.events(study.id)]
    assert told == [("study.state", "QUEUED"), ("driver.lost", None), ("study.state", "RUNNING")]


def test_a_start_that_its_controller_could_not_tell_is_told_once_the_driver_lives(world: World) -> None:
    study = world.create()

    class Forgetful(ReconcilingStore):
        def confirm_start(self, claim: DriverClaim) -> None:
            raise StoreUnavailableError("the store does not answer")

    with pytest.raises(StoreUnavailableError):
        world.controller(store=Forgetful(world.database)).reconcile()
    world.advance(11)
    successor = world.controller("b")
    successor.reconcile()
    assert [event.data["state"] for event in world.studies.events(study.id)] == ["QUEUED"]
    world.driver(study).heartbeat(10)
    successor.reconcile()
    assert [event.data["state"] for event in world.studies.events(study.id)] == ["QUEUED", "RUNNING"]
    assert world.jobs.started == [DriverClaim(study.id, 1)]


@pytest.mark.parametrize("how", ["started", "left the queue"])
def test_a_refusal_is_forgotten_once_the_study_has(world: World, controller: Controller, how: str) -> None:
    study = world.create()
    world.jobs.takes_jobs = False
    attempts_within(world, controller, study, 31)
    if how == "started":
        world.jobs.takes_jobs = True
        controller.reconcile()
        assert world.studies.get(study.id).state is StudyState.RUNNING
        world.jobs.takes_jobs = False
        world.driver(study, world.studies.get(study.id).driver_attempt).give_up_lease()
    else:
        world.lifecycle.pause(study.id)
        controller.reconcile()
        world.lifecycle.resume(study.id)
    assert attempts_within(world, controller, study, 2) == 2


def test_what_a_study_waits_for_is_told_without_passwords(world: World, controller: Controller) -> None:
    study = world.create()
    world.jobs.refusal = "the Ray cluster at http://me:s3/cret@ray does not take jobs"
    world.jobs.takes_jobs = False
    controller.reconcile()
    assert "me:***@ray" in str(world.studies.get(study.id).waiting_reason)


def test_a_start_that_is_answered_too_late_leaves_its_driver_the_study(world: World, controller: Controller) -> None:
    study = world.create()

    def late(claim: DriverClaim) -> None:
        world.advance(1)
        world.driver(study, claim.driver_attempt).heartbeat(10)
        world.advance(9)
        raise ServiceSilentError("the Ray cluster does not answer: timed out")

    world.jobs.start = late  # type: ignore[method-assign]
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.RUNNING
    assert world.studies.get(study.id).started_at is not None
    world.driver(study).heartbeat(10)


def test_a_term_that_begins_during_a_look_looks_for_starts_that_nobody_told(world: World) -> None:
    store = ReconcilingStore(world.database)
    controller = world.controller(store=store)
    world.create()
    controller.reconcile()  # which starts a driver, so that the next look reads what is told
    study, read = world.create(), store.unconfirmed_starts

    def read_and_lose_the_lead() -> Any:
        found = read()
        store.unconfirmed_starts = read  # type: ignore[method-assign]
        other = ReconcilingStore(world.database)
        world.advance(11)
        assert other.lead(CONTROLLER_LEASE, "b", 1)
        assert other.claim(study.id, 60)
        world.advance(2)
        controller.leadership.renew()
        return found

    store.unconfirmed_starts = read_and_lose_the_lead  # type: ignore[method-assign]
    controller.reconcile()
    world.driver(study).heartbeat(10)
    controller.reconcile()
    assert world.studies.get(study.id).started_at is not None
