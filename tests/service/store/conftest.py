"""The stores over one database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.spec import parse_spec
from service.store import tables
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.exporting import ExportStore
from service.store.inserting import last_number
from service.store.lifecycle import LifecycleStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.reports import AttemptStarted, EpochReported, TrialEnded
from service.store.snapshots import Known
from service.store.studies import NewStudy, StudyStore
from service.study import Reason, Scalar, Study, StudyState, Trial, TrialState
from tests.postgresql import Databases

SPEC: dict[str, Any] = parse_spec(
    {"name": "s", "search_space": "paper_lambda_rho", "objective": {"metric": "val_accuracy", "mode": "max"}}
).to_mapping()


class Clock:
    """A clock that moves when it is told to, and a stopwatch beside it that stands still while the machine sleeps."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.awake_s = 0.0

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.awake_s += seconds

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Stores:
    """Every view of one database, and short ways through a study's life."""

    def __init__(self, database: Database, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self.database = database
        self._stopwatch = stopwatch
        self.studies = StudyStore(database)
        self.lifecycle = LifecycleStore(database)
        self.reconciling = ReconcilingStore(database)
        self.exporting = ExportStore(database)
        self._points = count()

    def create(self, **changes: Any) -> Study:
        fields: dict[str, Any] = {"name": "s", "description": "", "labels": {}, "spec": SPEC, "owner": "ada"}
        return self.studies.create(NewStudy(**{**fields, "request_digest": "digest", **changes}))[0]

    def claim(self, study: Study, lease_s: float = 60) -> DriverClaim:
        claim = self.reconciling.claim(study.id, lease_s)
        assert claim is not None
        self.reconciling.confirm_start(claim)
        return claim

    def drive(self, study: Study, lease_s: float = 60) -> DrivingStore:
        return self.driver(self.claim(study, lease_s))

    def driver(self, claim: DriverClaim) -> DrivingStore:
        return DrivingStore(self.database, claim.study_id, claim.driver_attempt, stopwatch=self._stopwatch)

    def propose(self, driver: DrivingStore, seeds: Sequence[int] = (0,)) -> list[Trial]:
        point: dict[str, Scalar] = {"rho": float(next(self._points))}
        with self.database.reading() as connection:  # a snapshot would read the whole study
            known = last_number(connection, tables.configurations, driver.study_id)
        return driver.add_configuration(point, repr(point), seeds, last_known=known)[1]

    def begin(self, driver: DrivingStore, attempt: int = 1) -> Trial:
        """A trial that runs."""
        (trial,) = self.propose(driver)
        driver.record([AttemptStarted(trial.id, attempt, "node-1")])
        return trial

    def report(self, driver: DrivingStore, trial: Trial, epoch: int, attempt: int = 1, value: float = 0.5) -> None:
        driver.record([EpochReported(trial.id, attempt, epoch, {"val_loss": value})])

    def succeed(self, driver: DrivingStore, trial: Trial, attempt: int = 1) -> None:
        driver.record([TrialEnded(trial.id, attempt, TrialState.SUCCEEDED, 0.5)])

    def finish(self, driver: DrivingStore) -> None:
        assert self.end(driver) is StudyState.SUCCEEDED

    def end(self, driver: DrivingStore, known: Known | None = None) -> StudyState:
        """What becomes of the study whose driver ends it, with this knowledge or all that there is."""
        return driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=known or driver.snapshot().known)

    def lose(self, claim: DriverClaim, max_losses: int = 5) -> Study:
        study = self.reconciling.lose_driver(claim, max_losses=max_losses)
        assert study is not None
        return study


@pytest.fixture(params=["sqlite", "postgresql"])
def store_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def new_url(store_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database with nothing in it, not even a schema."""
    if store_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    databases: Databases = request.getfixturevalue("postgresql")
    url = databases.create()
    yield url
    databases.drop(url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_url() -> Iterator[Callable[..., Database]]:
    """Opens a database, and closes it when the test has ended."""
    opened: list[Database] = []

    def open_it(url: str, **options: Any) -> Database:
        opened.append(Database(url, **options))
        return opened[-1]

    yield open_it
    for database in opened:
        database.dispose()


@pytest.fixture
def open_database(store_url: str, open_url: Callable[..., Database]) -> Callable[[], Database]:
    """Opens one and the same store, as each process would."""
    return partial(open_url, store_url)


@pytest.fixture
def open_sqlite(migrated_store: Path, tmp_path: Path, open_url: Callable[..., Database]) -> Callable[..., Database]:
    """Opens one and the same SQLite store."""
    path = tmp_path / "store.db"
    shutil.copy(migrated_store, path)
    return partial(open_url, f"sqlite:///{path}")


@pytest.fixture
def sqlite(open_sqlite: Callable[..., Database]) -> Database:
    return open_sqlite()


@pytest.fixture
def database(open_database: Callable[[], Database]) -> Database:
    return open_database()


@pytest.fixture
def stores(database: Database) -> Stores:
    return Stores(database)


@pytest.fixture
def timed_stores(open_sqlite: Callable[..., Database], clock: Clock) -> Stores:
    """On SQLite, whose time is `clock`."""
    return Stores(open_sqlite(clock=clock), stopwatch=lambda: clock.awake_s)
