"""Cancelled studies end, and never before their drivers' jobs have."""

from __future__ import annotations

import pytest

from service.controller import Controller
from service.errors import ServiceSilentError
from service.store.reconciling import DriverClaim
from service.store.reports import AttemptStarted
from service.study import Intent, StudyState
from tests.service.controller.world import World, cancelled_studies


def test_a_cancel_is_left_to_the_driver_for_a_while(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    driver = world.driver(study)
    (trial,) = driver.add_configuration({"rho": 0.1}, "a", [0], last_known=0)[1]
    driver.record([AttemptStarted(trial.id, 1, None)])
    world.lifecycle.cancel(study.id)
    world.advance(4)
    assert driver.heartbeat(10).intent is Intent.CANCEL
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.STOPPING
    world.advance(2)
    controller.reconcile()
    assert world.jobs.stopped == [DriverClaim(study.id, 1)]
    assert world.studies.get(study.id).state is StudyState.CANCELLED
    assert world.studies.trial(study.id, trial.id).state == "CANCELLED"


def test_a_cancel_is_not_said_to_be_done_while_the_job_may_run(world: World, controller: Controller) -> None:
    study = world.create()
    controller.reconcile()
    world.lifecycle.cancel(study.id)
    world.advance(6)
    world.jobs.is_down = True
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.STOPPING
    world.jobs.is_down = False
    world.advance(3)
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.CANCELLED


@pytest.mark.parametrize("after_s", [6, 61])  # within the driver's lease, and after it ran out
def test_a_cancel_is_done_once_the_job_has_ended(world: World, controller: Controller, after_s: float) -> None:
    study = world.create()
    controller.reconcile()
    world.lifecycle.cancel(study.id)
    world.advance(after_s)
    world.jobs.is_down = True
    for _ in range(2):
        controller.reconcile()
        world.advance(11)  # the time of a lease, which a driver has after the store was away
    assert world.studies.get(study.id).state is StudyState.STOPPING
    world.jobs.is_down, world.jobs.leave = False, False
    for _ in range(2):
        controller.reconcile()
        world.advance(3)
    assert world.studies.get(study.id).state is StudyState.STOPPING
    world.jobs.leave = True
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.CANCELLED


def test_a_cluster_that_does_not_answer_is_asked_about_one_cancel_and_now_and_then(
    world: World, controller: Controller
) -> None:
    """Each question may take the time of the controller's lease."""
    cancelled_studies(world, controller, 3)
    world.advance(61)
    asked = []

    def hang(claim: DriverClaim) -> bool:
        asked.append(claim)
        raise ServiceSilentError("the Ray cluster does not answer")

    world.jobs.stop = hang  # type: ignore[method-assign]
    for _ in range(8):  # looks at the store, a quarter of a second apart
        controller.reconcile()
        world.advance(0.25)
    assert len(asked) == 1
    world.advance(2)
    controller.reconcile()
    assert len(asked) == 2


@pytest.mark.parametrize("answers", [True, False])
def test_a_cancel_does_not_wait_for_ever_for_a_cluster_that_cannot_say_that_the_job_has_ended(
    world: World, controller: Controller, answers: bool
) -> None:
    studies = cancelled_studies(world, controller, 2)
    world.jobs.is_down, world.jobs.leave = not answers, False
    world.advance(500)
    controller.reconcile()
    assert {world.studies.get(study.id).state for study in studies} == {StudyState.STOPPING}
    world.advance(101)
    controller.reconcile()
    world.advance(11)  # the controller has been in contact with the store for a lease
    controller.reconcile()
    assert {world.studies.get(study.id).state for study in studies} == {StudyState.CANCELLED}


def test_a_driver_with_a_lease_keeps_a_cancel_waiting(world: World, controller: Controller) -> None:
    (study,) = cancelled_studies(world, controller, 1)
    world.jobs.leave = False
    for _ in range(70):
        assert world.driver(study).heartbeat(10).intent is Intent.CANCEL
        controller.reconcile()
        world.advance(9)
    assert world.studies.get(study.id).state is StudyState.STOPPING


def test_a_cancel_ends_though_the_clock_went_back(world: World, controller: Controller) -> None:
    (study,) = cancelled_studies(world, controller, 1)
    world.set_clock_back(7200)
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.CANCELLED


def test_a_cancel_that_comes_while_its_driver_is_declared_lost_waits_for_the_job(
    world: World, controller: Controller
) -> None:
    study = world.create()
    controller.reconcile()
    world.advance(61)

    def cancelled_meanwhile(claim: DriverClaim) -> bool:
        world.lifecycle.cancel(study.id)
        return False

    world.jobs.stop = cancelled_meanwhile  # type: ignore[method-assign]
    controller.reconcile()
    world.advance(11)
    controller.reconcile()
    assert world.studies.get(study.id).state is StudyState.STOPPING


def test_a_cancelled_queued_study_never_starts(world: World, controller: Controller) -> None:
    world.lifecycle.cancel(world.create().id)
    controller.reconcile()
    assert world.jobs.started == []
