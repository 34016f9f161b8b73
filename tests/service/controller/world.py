"""A store whose time a test moves, a cluster that does as it is told, and a controller between them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from service.controller import Controller
from service.errors import ServiceSilentError, ServiceUnavailableError
from service.placement import Node
from service.settings import Settings
from service.spec import parse_spec
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.lifecycle import LifecycleStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.studies import NewStudy, StudyStore
from service.study import Reason, Study, StudyState
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


def cancelled_studies(world: World, controller: Controller, count: int) -> list[Study]:
    studies = [world.create() for _ in range(count)]
    controller.reconcile()
    for study in studies:
        world.lifecycle.cancel(study.id)
    return studies
