"""Running studies hear their shares of the cluster."""

from __future__ import annotations

from service.controller import Controller
from service.store.reports import AttemptStarted
from service.study import Study
from tests.service.controller.world import World


def slots(world: World, *studies: Study) -> list[int | None]:
    return [world.studies.get(study.id).slots for study in studies]


def test_a_study_alone_has_no_limit_and_two_share_the_cluster(world: World, controller: Controller) -> None:
    first = world.create()
    controller.reconcile()
    assert slots(world, first) == [None]
    second = world.create()
    world.advance(5)
    controller.reconcile()
    assert slots(world, first, second) == [2, 2]
    world.end(second)
    world.advance(5)
    controller.reconcile()
    assert slots(world, first, second) == [None, None]


def test_owners_share_before_their_studies_do(world: World, controller: Controller) -> None:
    many = [world.create("ada") for _ in range(2)]
    one = world.create("bob")
    controller.reconcile()
    assert slots(world, *many, one) == [1, 1, 2]


def test_owners_for_whom_there_is_no_slot_take_turns(world: World, controller: Controller) -> None:
    studies = []
    for owner in ("ada", "bob", "cyd", "dan", "eve"):
        studies.append(world.create(owner))
        world.advance(0.1)
    controller.reconcile()
    assert slots(world, *studies) == [1, 1, 1, 1, 0]
    for study in studies[:4]:
        driver = world.driver(study)
        (trial,) = driver.add_configuration({"rho": 0.1}, '{"rho":0.1}', [0], last_known=0)[1]
        driver.record([AttemptStarted(trial.id, 1, "node-1")])
    for _ in range(12):
        assert slots(world, *studies) == [1, 1, 1, 1, 0]
        for study in studies:
            world.driver(study).heartbeat(60)
        world.advance(5)
        controller.reconcile()
    assert slots(world, *studies) == [1, 1, 1, 0, 1]  # after a minute


def test_a_cluster_that_does_not_say_what_it_has_leaves_the_shares_alone(world: World, controller: Controller) -> None:
    studies = [world.create(), world.create()]
    controller.reconcile()
    world.jobs.is_down = True
    world.advance(5)
    controller.reconcile()
    assert slots(world, *studies) == [2, 2]
