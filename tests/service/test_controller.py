from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import pytest

from service.controller import Controller
from service.controlling import repeat
from service.errors import ServiceSilentError, ServiceUnavailableError, StoreUnavailableError
from service.placement import Node
from service.settings import Settings
from service.spec import parse_spec
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.lifecycle import LifecycleStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.reports import AttemptLost, AttemptStarted
from service.store.studies import NewStudy, StudyStore
from service.store.watching import CONTROLLER_LEASE, WatchingStore
from service.study import Intent, Reason, Study, StudyState
from service.tuning.jobs import DriverJobs

SPEC = parse_spec(
    {"name": "s", "search_space": "paper_lambda_rho", "objective": {"metric": "val_accuracy", "mode": "max"}}
).to_mapping()


class FakeJobs:
    """Ray's jobs as far as the controller sees them."""

    def __init__(self) -> None:
        self.is_down = False
        self.takes_jobs = True
        self.has = [Node(cpu=4, gpu=0)]
        self.leave = True
        self.refusal = "the Ray cluster does not take jobs"
        self.started: list[DriverClaim] = []
        self.stopped: list[DriverClaim] = []

    def nodes(self) -> list[Node]:
        self.check()
        return self.has

    def check(self) -> None:
        if self.is_down:
            raise ServiceSilentError("the Ray cluster does not answer")

    def start(self, claim: DriverClaim) -> None:
        self.check()
        if not self.takes_jobs:
            raise ServiceUnavailableError(self.refusal)
        self.started.append(claim)

    def stop(self, claim: DriverClaim) -> bool:
        self.check()
        self.stopped.append(claim)
        return self.leave


class World:
    """A store whose time stands still until it is moved, and the jobs of a cluster."""

    def __init__(self, path: Path) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic_s = 0.0
        self.database = Database(f"sqlite:///{path}", clock=lambda: self._now)
        self.studies = StudyStore(self.database)
        self.lifecycle = LifecycleStore(self.database)
        self.jobs = FakeJobs()
        self.config = Settings(home=path.parent, lease_s=10, startup_lease_s=60, cancel_grace_s=5)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic_s += seconds

    def set_clock_back(self, seconds: float) -> None:
        """The store's clock; the controllers' own know nothing of it."""
        self._now -= timedelta(seconds=seconds)

    def controller(
        self,
        holder: str = "a",
        store: ReconcilingStore | None = None,
        clock: Callable[[], float] | None = None,
        asleep: Callable[[], float] = lambda: 0.0,
    ) -> Controller:
        return Controller(
            store or ReconcilingStore(self.database),
            cast(DriverJobs, self.jobs),
            self.config,
            holder=holder,
            clock=clock or (lambda: self._monotonic_s),
            asleep=asleep,
        )

    def create(self, owner: str = "ada", *, gpu: float = 0) -> Study:
        spec = SPEC | {"resources_per_trial": {"cpu": 1, "gpu": gpu}}
        return self.studies.create(NewStudy("s", "", {}, spec, owner, "digest"))[0]

    def driver(self, study: Study, number: int = 1) -> DrivingStore:
        return DrivingStore(self.database, study.id, number)

    def end(self, study: Study) -> None:
        driver = self.driver(study)
        driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)


@pytest.fixture
def world(migrated_store: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copy(migrated_store, tmp_path / "samstudy.db")
    world = World(tmp_path / "samstudy.db")
    yield world
    world.database.dispose()


@pytest.fixture
def controller(world: World) -> Controller:
    return world.controller()


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


def cancelled_studies(world: World, controller: Controller, count: int) -> list[Study]:
    studies = [world.create() for _ in range(count)]
    controller.reconcile()
    for study in studies:
        world.lifecycle.cancel(study.id)
    return studies


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


def test_a_store_that_does_not_answer_is_said_so(world: World, tmp_path: Path) -> None:
    nowhere = Database(f"sqlite:///{tmp_path}")
    controller = Controller(ReconcilingStore(nowhere), cast(Any, world.jobs), world.config, holder="a")
    with pytest.raises(StoreUnavailableError):
        controller.reconcile()


def test_an_action_that_fails_is_done_again(wait_until: Callable[..., None]) -> None:
    stopping, calls = Event(), []

    def action() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise (StoreUnavailableError("down") if len(calls) == 1 else RuntimeError("a defect"))

    thread = Thread(target=repeat, args=(action, stopping, 0.001))
    thread.start()
    wait_until(lambda: len(calls) >= 5)
    stopping.set()
    thread.join(5)
    assert not thread.is_alive()


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


def test_an_action_hears_how_long_its_process_stood_still(wait_until: Callable[..., None]) -> None:
    stopping, seconds, heard = Event(), iter([0.0, 0.25, 10.0, 40.25]), list[float]()

    def hear(stood_s: float) -> None:
        heard.append(stood_s)
        if len(heard) == 2:
            stopping.set()

    repeat(lambda: None, stopping, 0.25, stood_still=hear, clock=lambda: next(seconds))
    assert heard == [0.0, 30.0]


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
