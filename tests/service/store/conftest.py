"""The stores over one database: SQLite always, PostgreSQL where SAMSTUDY_TEST_POSTGRESQL_URL names a server's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.store import tables
from service.store.database import Database
from service.store.driving import AttemptStarted, DrivingStore, EpochReported, TrialEnded
from service.store.exporting import ExportStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.studies import NewStudy, StudyStore
from service.study import Reason, Scalar, Study, StudyState, Trial, TrialState

POSTGRESQL_URL = os.environ.get("SAMSTUDY_TEST_POSTGRESQL_URL", "")


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Stores:
    """Every view of one database, and short ways through a study's life."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.studies = StudyStore(database)
        self.reconciling = ReconcilingStore(database)
        self.exporting = ExportStore(database)
        self._points = count()

    def create(self, **changes: Any) -> Study:
        fields: dict[str, Any] = {"name": "s", "description": "", "labels": {}, "spec": {"name": "s"}, "owner": "ada"}
        return self.studies.create(NewStudy(**{**fields, "request_digest": "digest", **changes}))[0]

    def claim(self, study: Study, lease_s: float = 60) -> DriverClaim:
        claim = self.reconciling.claim(study.id, lease_s)
        assert claim is not None
        return claim

    def drive(self, study: Study, lease_s: float = 60) -> DrivingStore:
        return DrivingStore(self.database, study.id, self.claim(study, lease_s).driver_attempt)

    def propose(self, driver: DrivingStore, seeds: Sequence[int] = (0,)) -> list[Trial]:
        point: dict[str, Scalar] = {"rho": float(next(self._points))}
        return driver.add_configuration(point, repr(point), seeds)[1]

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
        driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS)

    def lose(self, claim: DriverClaim, max_losses: int = 5) -> Study:
        study = self.reconciling.lose_driver(claim, max_losses=max_losses)
        assert study is not None
        return study


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    database = Database(POSTGRESQL_URL)
    database.migrate()
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL_URL else ["sqlite"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with the schema and nothing in it."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    postgresql: Database = request.getfixturevalue("postgresql")
    with postgresql.writing() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            connection.execute(table.delete())
    yield postgresql


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_sqlite(empty_sqlite: Path, tmp_path: Path) -> Iterator[Callable[..., Database]]:
    """Opens one and the same SQLite store, as each process would."""
    path = tmp_path / "store.db"
    shutil.copy(empty_sqlite, path)
    opened: list[Database] = []

    def open_it(**options: Any) -> Database:
        opened.append(Database(f"sqlite:///{path}", **options))
        return opened[-1]

    yield open_it
    for database in opened:
        database.dispose()


@pytest.fixture
def sqlite(open_sqlite: Callable[..., Database]) -> Database:
    return open_sqlite()


@pytest.fixture
def stores(database: Database) -> Stores:
    return Stores(database)


@pytest.fixture
def timed_stores(open_sqlite: Callable[..., Database], clock: Clock) -> Stores:
    """On SQLite, whose time is `clock`."""
    return Stores(open_sqlite(clock=clock))
