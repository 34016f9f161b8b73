"""A store, a study's life in it, and the API over it: as a test client, and as a real server."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app, server_of
from service.settings import Settings
from service.spec import parse_spec
from service.store import tables
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.inserting import last_number
from service.store.lifecycle import LifecycleStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import AttemptLost, AttemptStarted, EpochReported, Report, TrialEnded
from service.store.studies import NewStudy, StudyStore
from service.study import Reason, Scalar, Study, StudyState, Trial, TrialState
from tests.ports import free_port
from tests.postgresql import Databases, EmptyStores, PostgresqlMissingError, PostgresqlServer
from tests.service.mlflow_server import MlflowServer
from tests.service.processes import DEADLINE_S, Process

POSTGRESQL_URL = os.environ.get("SAMSTUDY_TEST_POSTGRESQL_URL", "")


@pytest.fixture
def a_spec() -> dict[str, Any]:
    """A sound study spec: 5 λ × 4 ρ × 2 seeds = 40 trials of 3 epochs."""
    return {
        "name": "lambda-rho-digits",
        "labels": {"team": "vision"},
        "train": {"dataset": "digits", "model": "mlp", "epochs": 3},
        "search_space": "paper_lambda_rho",
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": [0, 1]},
    }


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file with its schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("store") / "samstudy.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Databases]:
    """Databases on a PostgreSQL server of the tests' own.

    SAMSTUDY_TEST_POSTGRESQL_URL names another server, by a database of it and a user who may create others, or says
    `none`.
    """
    with ExitStack() as stack:
        url = POSTGRESQL_URL
        if url == "none":
            pytest.skip("SAMSTUDY_TEST_POSTGRESQL_URL is none")
        if not url:
            try:
                url = stack.enter_context(PostgresqlServer()).url()
            except PostgresqlMissingError as missing:
                pytest.skip(str(missing))
        yield stack.enter_context(closing(Databases(url)))


@pytest.fixture(scope="session")
def postgresql_stores(postgresql: Databases) -> Iterator[EmptyStores]:
    with closing(EmptyStores(postgresql)) as stores:
        yield stores


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for all, as it takes seconds to start: every test has experiments of its own there.

    Who kills it starts it again.
    """
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store_kind() -> str:
    """sqlite or postgresql; what overrides this with both runs its tests on both."""
    return "sqlite"


@pytest.fixture
def store_url(store_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a store with its schema and nothing in it."""
    if store_kind == "sqlite":
        home = tmp_path / "home"
        home.mkdir()
        shutil.copy(request.getfixturevalue("migrated_store"), home / "samstudy.db")
        yield f"sqlite:///{home / 'samstudy.db'}"
        return
    stores: EmptyStores = request.getfixturevalue("postgresql_stores")
    yield stores.next()


@pytest.fixture
def api_settings(tmp_path: Path, store_url: str) -> Settings:
    return Settings(
        home=tmp_path / "home", database_url=store_url, url="", host="127.0.0.1", mlflow_url="http://mlflow.test"
    )


@pytest.fixture
def database(store_url: str, stopping_servers: list[threading.Thread]) -> Iterator[Database]:
    database = Database(store_url)
    yield database
    if not database.is_sqlite:
        for thread in stopping_servers:  # they would hold connections that nobody closes
            thread.join(10)
    database.dispose()


@pytest.fixture
def api(database: Database, api_settings: Settings) -> Iterator[TestClient]:
    """The API without a network; an unexpected error is answered as it is in production."""
    with TestClient(create_app(database, api_settings), raise_server_exceptions=False) as client:
        client.base_url = client.base_url.join("/api/v1/")
        yield client


class Life:
    """Studies that live through the store's own classes, as the controller and a driver would have it."""

    def __init__(self, database: Database, spec: Mapping[str, Any]) -> None:
        self._database = database
        self._spec = dict(spec)
        self.studies = StudyStore(database)
        self.lifecycle = LifecycleStore(database)

    def create(self, **changes: Any) -> Study:
        """A QUEUED study, its spec changed in these sections."""
        spec = parse_spec({**self._spec, **changes})
        new = NewStudy(spec.name, spec.description, spec.labels, spec.to_mapping(), "local", "digest")
        return self.studies.create(new)[0]

    def start(self, study: Study) -> DrivingStore:
        """Makes it RUNNING."""
        reconciling = ReconcilingStore(self._database)
        claim = reconciling.claim(study.id, startup_lease_s=60)
        assert claim is not None
        reconciling.confirm_start(claim)
        return DrivingStore(self._database, study.id, claim.driver_attempt)

    def propose(self, driver: DrivingStore, point: dict[str, Scalar], seeds: tuple[int, ...] = (0, 1)) -> list[Trial]:
        """A configuration with its PENDING trials."""
        with self._database.reading() as connection:  # a snapshot would read the whole study
            known = last_number(connection, tables.configurations, driver.study_id)
        return driver.add_configuration(point, str(sorted(point.items())), seeds, last_known=known)[1]

    def train(self, driver: DrivingStore, trial: Trial, accuracy: float, *, epochs: int = 3) -> None:
        """Runs the trial to its success; its accuracy grows up to the given one."""
        driver.record(self._training(trial, accuracy, epochs))

    def begin(self, driver: DrivingStore, trial: Trial, attempt: int = 1) -> None:
        driver.record([AttemptStarted(trial.id, attempt, "node-1")])

    def run(self, driver: DrivingStore, trials: Sequence[Trial], accuracies: Sequence[float | None]) -> None:
        """Trains each of the trials, or has it fail where its accuracy is None."""
        reports: list[Report] = []
        for trial, accuracy in zip(trials, accuracies, strict=True):
            reports += self._failure(trial) if accuracy is None else self._training(trial, accuracy)
        driver.record(reports)

    def lose(self, driver: DrivingStore, trial: Trial, attempt: int = 1) -> None:
        driver.record([AttemptLost(trial.id, attempt, "the node went away")])

    def fail(self, driver: DrivingStore, trial: Trial, error: str = "ValueError: no") -> None:
        driver.record(self._failure(trial, error))

    @staticmethod
    def _training(trial: Trial, accuracy: float, epochs: int = 3) -> list[Report]:
        metrics = [
            {"val_accuracy": accuracy - 0.1 * (epochs - epoch), "val_loss": 1.0} for epoch in range(1, epochs + 1)
        ]
        return [
            AttemptStarted(trial.id, 1, "node-1"),
            *(EpochReported(trial.id, 1, epoch, values) for epoch, values in enumerate(metrics, 1)),
            TrialEnded(trial.id, 1, TrialState.SUCCEEDED, accuracy),
        ]

    @staticmethod
    def _failure(trial: Trial, error: str = "ValueError: no") -> list[Report]:
        return [AttemptStarted(trial.id, 1, "node-1"), TrialEnded(trial.id, 1, TrialState.FAILED, None, error)]

    def succeed(self, driver: DrivingStore) -> None:
        driver.finish(StudyState.SUCCEEDED, Reason.SPACE_EXHAUSTED, known=driver.snapshot().known)

    def finished(self, accuracies: Mapping[tuple[Scalar, Scalar], tuple[float | None, ...]], **changes: Any) -> Study:
        """A SUCCEEDED study with these accuracies by (λ, ρ), one for each seed; None: the trial failed."""
        study = self.create(**changes)
        driver = self.start(study)
        for (lam, rho), values in accuracies.items():
            self.run(driver, self.propose(driver, {"lambda": lam, "rho": rho}, tuple(range(len(values)))), values)
        self.succeed(driver)
        return self.studies.get(study.id)


@pytest.fixture
def life(database: Database, a_spec: dict[str, Any]) -> Life:
    return Life(database, a_spec)


@pytest.fixture
def start(store_url: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a command over the store."""
    started: list[Process] = []

    def start(command: str, *, prelude: str = "", **settings: str) -> Process:
        environment = {"SAMSTUDY_HOME": str(tmp_path / "home"), "SAMSTUDY_DATABASE_URL": store_url}
        environment |= {f"SAMSTUDY_{name}": value for name, value in settings.items()}
        started.append(Process(command, environment, tmp_path / f"{len(started)}.log", prelude))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait(DEADLINE_S)


class RunningApi:
    """A real server on a port of its own, which can be stopped and started again there."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        app = create_app(self._database, self._settings)
        self.stopping = app.state.stopping
        self._server = server_of(app, self._settings.model_copy(update={"port": self.port}))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started

    @property
    def waiting_requests(self) -> int:
        return len(self._server.server_state.tasks)

    def ask_to_stop(self) -> threading.Thread:
        self.stopping.set()
        self._server.should_exit = True
        return self._thread

    def stop(self) -> None:
        thread = self.ask_to_stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def stopping_servers() -> Iterator[list[threading.Thread]]:
    """Servers that were asked to stop: they take a moment, which the next test need not wait for."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def running_api(
    database: Database, api_settings: Settings, stopping_servers: list[threading.Thread]
) -> Iterator[RunningApi]:
    running = RunningApi(database, api_settings)
    yield running
    stopping_servers.append(running.ask_to_stop())


def wait_until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def unused_port() -> int:
    return free_port()
