"""Which of the studies that wait is next, and who makes room for it."""

from __future__ import annotations

import pytest

from service.controller import Controller
from service.placement import Node
from service.store.driving import DrivingStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.reports import AttemptLost, AttemptStarted
from service.study import Study, StudyState
from tests.service.controller.world import World


def test_every_queued_study_gets_a_driver(world: World, controller: Controller) -> None:
    studies = []
    for _ in range(3):
        studies.append(world.create())
        world.advance(1)
    controller.reconcile()
    controller.reconcile()
    assert world.jobs.started == [DriverClaim(study.id, 1) for study in studies]
    assert {world.studies.get(study.id).state for study in studies} == {StudyState.RUNNING}


def test_a_study_waits_for_the_cluster_and_says_so(world: World, controller: Controller) -> None:
    study = world.create()
    world.jobs.is_down = True
    controller.reconcile()
    waiting = world.studies.get(study.id)
    assert (waiting.state, waiting.driver_attempt) == (StudyState.QUEUED, 0)
    assert waiting.waiting_reason == "the Ray cluster does not answer"
    world.jobs.is_down = False
    controller.reconcile()
    assert world.jobs.started == [DriverClaim(study.id, 1)]
    assert world.studies.get(study.id).waiting_reason == "its driver is starting"


def test_owners_take_turns_in_what_is_started_however_long_their_queues(world: World) -> None:
    world.config = world.config.model_copy(update={"max_running_studies": 2})
    controller = world.controller()
    for owner in 4 * ("ada", "bob"):
        world.create(owner)
        world.advance(0.01)  # else chance decides which is the older one
    controller.reconcile()

    def running() -> dict[str, Study]:
        driven = ReconcilingStore(world.database).driven()
        return {study.demand.owner: world.studies.get(study.demand.study_id) for study in driven}

    assert running().keys() == {"ada", "bob"}
    world.advance(1)
    world.create("cyd")
    world.end(running()["ada"])
    controller.reconcile()
    assert running().keys() == {"bob", "cyd"}, "ada, who runs as few as cyd by now, has had a turn"
    world.end(running()["bob"])
    controller.reconcile()
    assert running().keys() == {"ada", "cyd"}, "whose turn was before bob's"


def test_no_more_studies_run_than_may_and_the_others_say_so(world: World) -> None:
    world.config = world.config.model_copy(update={"max_running_studies": 2})
    controller = world.controller()
    busy = [world.create("ada") for _ in range(2)]
    controller.reconcile()
    late = world.create("ada")
    world.advance(1)
    other = world.create("bob")
    controller.reconcile()
    waiting = world.studies.get(late.id)
    assert waiting.state is StudyState.QUEUED
    assert waiting.waiting_reason == "2 studies run, as many as may at a time; it is among the 2 that wait"
    world.end(busy[0])
    controller.reconcile()
    assert world.studies.get(other.id).state is StudyState.RUNNING  # though it came later: its owner has none
    assert world.studies.get(late.id).state is StudyState.QUEUED


def states(world: World, *studies: Study) -> list[StudyState]:
    return [world.studies.get(study.id).state for study in studies]


def pass_by(world: World, controller: Controller, seconds: int, *drivers: DrivingStore) -> None:
    """Time in which these drivers live and the controller looks."""
    for _ in range(seconds):
        for driver in drivers:
            driver.heartbeat(60)
        world.advance(1)
        controller.reconcile()


def with_one_place(world: World) -> Controller:
    world.config = world.config.model_copy(update={"max_running_studies": 1, "node_grace_s": 30})
    return world.controller()


def with_a_stuck_study(world: World, controller: Controller) -> tuple[Study, DrivingStore]:
    """A study that no node holds, and its driver, which lives."""
    study = world.create("ada", gpu=8)
    pass_by(world, controller, 1)
    driver = world.driver(study)
    driver.heartbeat(60)
    return study, driver


def test_a_study_that_no_node_can_hold_gives_its_place_to_one_that_can_run(world: World) -> None:
    controller = with_one_place(world)
    stuck = world.create("ada", gpu=8)
    pass_by(world, controller, 40)
    assert states(world, stuck) == [StudyState.RUNNING], "nobody else waits"
    driver = world.driver(stuck)
    driver.heartbeat(60)
    other = world.create("bob")
    pass_by(world, controller, 30, driver)
    assert world.jobs.stopped == [], "a cluster that grows may be making a node"
    pass_by(world, controller, 1, driver)
    assert world.jobs.stopped == [DriverClaim(stuck.id, 1)]
    driver.give_up_lease()  # as a driver does that is asked to end
    pass_by(world, controller, 2)
    assert states(world, stuck, other) == [StudyState.QUEUED, StudyState.RUNNING]
    waiting = world.studies.get(stuck.id)
    assert waiting.waiting_reason == (
        "a trial needs 1 CPU and 8 GPUs on one node; no node has a GPU; "
        "meanwhile it lets studies run that the cluster can hold"
    )
    later = world.create("ada")
    pass_by(world, controller, 1, world.driver(other))
    world.end(other)
    pass_by(world, controller, 2)
    assert states(world, stuck, later) == [StudyState.QUEUED, StudyState.RUNNING], "it waits behind all others"
    world.end(later)
    pass_by(world, controller, 1)
    assert states(world, stuck) == [StudyState.RUNNING], "until there is a place for it"


def test_a_study_that_gave_its_place_away_has_its_turn_once_a_node_holds_it(world: World) -> None:
    controller = with_one_place(world)
    stuck, driver = with_a_stuck_study(world, controller)
    other = world.create("bob")
    pass_by(world, controller, 32, driver)
    driver.give_up_lease()
    pass_by(world, controller, 2)
    assert states(world, stuck, other) == [StudyState.QUEUED, StudyState.RUNNING]
    later = world.create("bob")
    world.jobs.has.append(Node(cpu=8, gpu=8))
    pass_by(world, controller, 2, world.driver(other))
    assert "as many as may at a time" in str(world.studies.get(stuck.id).waiting_reason)
    world.end(other)
    pass_by(world, controller, 1)
    assert states(world, stuck, later) == [StudyState.RUNNING, StudyState.QUEUED]


@pytest.mark.parametrize(
    "why", ["its node was away for a moment only", "it trains", "those that wait cannot run either"]
)
def test_a_study_keeps_its_place(world: World, why: str) -> None:
    controller = with_one_place(world)
    first = world.create("ada", gpu=8)
    pass_by(world, controller, 1)
    driver = world.driver(first)
    driver.heartbeat(60)
    if why == "it trains":  # on a node that the cluster no longer tells of
        (trial,) = driver.add_configuration({"rho": 0.1}, '{"rho":0.1}', [0], last_known=0)[1]
        driver.record([AttemptStarted(trial.id, 1, "node-1")])
    world.create("bob", gpu=4 if why == "those that wait cannot run either" else 0)
    pass_by(world, controller, 20, driver)
    if why == "its node was away for a moment only":
        world.jobs.has.append(Node(cpu=8, gpu=8))
        pass_by(world, controller, 2, driver)
        world.jobs.has.pop()
    pass_by(world, controller, 20, driver)
    assert world.jobs.stopped == []
    assert states(world, first) == [StudyState.RUNNING]


def test_a_freed_place_is_for_a_study_that_can_run(world: World) -> None:
    """And not for the oldest of those that wait for a node too, which would only have to give it away once more."""
    controller = with_one_place(world)
    stuck = [world.create("ada", gpu=8) for _ in range(3)]
    pass_by(world, controller, 1)
    (running,) = [study for study in stuck if world.studies.get(study.id).state is StudyState.RUNNING]
    driver = world.driver(running)
    driver.heartbeat(60)
    other = world.create("ada")
    pass_by(world, controller, 32, driver)
    driver.give_up_lease()
    pass_by(world, controller, 2)
    assert states(world, other) == [StudyState.RUNNING]
    assert "no node has a GPU" in str(world.studies.get(stuck[-1].id).waiting_reason)


def test_a_study_whose_node_was_there_meanwhile_keeps_its_place_as_long_as_any(world: World) -> None:
    controller = with_one_place(world)
    _study, driver = with_a_stuck_study(world, controller)
    world.create("bob")
    pass_by(world, controller, 20, driver)
    world.jobs.has.append(Node(cpu=8, gpu=8))
    (trial,) = driver.add_configuration({"rho": 0.1}, '{"rho":0.1}', [0], last_known=0)[1]
    driver.record([AttemptStarted(trial.id, 1, "node-1")])
    pass_by(world, controller, 20, driver)
    world.jobs.has.pop()
    driver.record([AttemptLost(trial.id, 1, "the node went away")])
    pass_by(world, controller, 20, driver)
    assert world.jobs.stopped == []
    pass_by(world, controller, 20, driver)
    assert world.jobs.stopped != []


def test_only_those_that_can_run_are_kept_waiting(world: World) -> None:
    controller = with_one_place(world)
    _study, driver = with_a_stuck_study(world, controller)
    world.create("bob", gpu=4)
    pass_by(world, controller, 40, driver)
    world.create("bob")
    pass_by(world, controller, 20, driver)
    assert world.jobs.stopped == []


def test_a_driver_that_is_killed_as_it_gives_its_place_away_is_no_loss_that_counts(world: World) -> None:
    controller = with_one_place(world)
    stuck = world.create("ada", gpu=8)
    for number in range(1, 8):
        pass_by(world, controller, 1)
        driver = world.driver(stuck, number)
        driver.heartbeat(10)
        other = world.create("bob")
        pass_by(world, controller, 32, driver)
        pass_by(world, controller, 80)  # Ray has killed it before it could say anything
        assert states(world, stuck, other) == [StudyState.QUEUED, StudyState.RUNNING]
        world.end(other)


def test_no_more_studies_give_their_places_than_wait_for_them(world: World) -> None:
    world.config = world.config.model_copy(update={"max_running_studies": 3, "node_grace_s": 30})
    controller = world.controller()
    stuck = [world.create("ada", gpu=1) for _ in range(3)]
    pass_by(world, controller, 1)
    drivers = [world.driver(study) for study in stuck]
    for driver in drivers:
        driver.heartbeat(60)
    world.create("bob")
    pass_by(world, controller, 40, *drivers)
    assert len(set(world.jobs.stopped)) == 1
