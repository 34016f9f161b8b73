"""Ten drivers at once, each a process of its own, that write 100 results a second in all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from service.spec import parse_spec
from service.store import tables
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reconciling import ReconcilingStore
from service.store.studies import NewStudy, StudyStore
from service.study import StudyState
from tests.faults.conftest import study_spec

pytestmark = pytest.mark.soak

DRIVERS = 10
RESULTS_PER_S = 100
SECONDS = 60


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'samstudy.db'}"
        return
    databases = request.getfixturevalue("databases")
    url = databases.create()
    yield url
    databases.drop(url)


def test_ten_drivers_lose_none_of_a_hundred_results_a_second(store_url: str) -> None:
    database = Database(store_url)
    database.migrate()
    studies, reconciling = StudyStore(database), ReconcilingStore(database)
    spec = parse_spec(study_spec("ten-drivers"))
    epochs = SECONDS * RESULTS_PER_S // DRIVERS
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for _ in range(DRIVERS):
            study, _created = studies.create(NewStudy(spec.name, "", {}, spec.to_mapping(), "local", "digest"))
            claim = reconciling.claim(study.id, startup_lease_s=120)
            assert claim is not None
            driver = DrivingStore(database, study.id, claim.driver_attempt)
            _, (trial,) = driver.add_configuration({"rho": 0.1}, "rho", (0,), last_known=0)
            arguments = [store_url, study.id, str(claim.driver_attempt), trial.id, str(epochs), str(SECONDS / epochs)]
            processes[trial.id] = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.reporting_driver", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        took_s = [float(process.communicate(timeout=SECONDS + 60)[0]) for process in processes.values()]
        assert [process.returncode for process in processes.values()] == [0] * DRIVERS
    finally:
        for process in processes.values():
            process.kill()
            process.wait(30)
    with database.reading() as connection:
        rows = connection.execute(select(func.count()).select_from(tables.results)).scalar_one()
        distinct = select(tables.results.c.trial_id, tables.results.c.epoch).distinct()
        assert len(connection.execute(distinct).all()) == rows == DRIVERS * epochs
    for trial in processes:
        study_id = trial.rpartition("-")[0].rpartition("-")[0]
        results = studies.results(study_id, trial)
        assert [result.epoch for result in results] == [result.metrics["epoch"] for result in results]
        assert studies.get(study_id).state is StudyState.SUCCEEDED
    database.dispose()
    print(f"{rows} results in {max(took_s):.1f} s: {rows / max(took_s):.0f}/s")
    assert max(took_s) < SECONDS * 1.5 + 5  # what was reported is stored soon, not only at some time
