"""PostgreSQL is restarted while a driver reports: every result that it was told is there afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.spec import parse_spec
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reconciling import ReconcilingStore
from service.store.studies import NewStudy, StudyStore
from service.study import StudyState
from tests.embedded_service import wait_until
from tests.faults.conftest import study_spec
from tests.postgresql import Databases, PostgresqlServer

EPOCHS = 200  # ten seconds, in which a restart ends also on a busy machine


@pytest.mark.soak
def test_a_driver_loses_no_result_when_postgresql_is_restarted(
    postgresql_server: PostgresqlServer, databases: Databases
) -> None:
    store_url = databases.create()
    database = Database(store_url)
    database.migrate()
    studies = StudyStore(database)
    spec = parse_spec(study_spec("restarted-store", epochs=EPOCHS))
    study, _ = studies.create(NewStudy(spec.name, "", {}, spec.to_mapping(), "local", "digest"))
    claim = ReconcilingStore(database).claim(study.id, startup_lease_s=120)
    assert claim is not None
    driver = DrivingStore(database, study.id, claim.driver_attempt)
    _, (trial,) = driver.add_configuration({"rho": 0.1}, "rho", (0,), last_known=0)
    arguments = [store_url, study.id, str(claim.driver_attempt), trial.id, str(EPOCHS), "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.reporting_driver", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        wait_until(lambda: len(studies.results(study.id, trial.id)) >= 5, what="the driver reports")
        postgresql_server.restart()
        assert len(studies.results(study.id, trial.id)) < EPOCHS, "the restart came too late"
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(30)
    assert [result.epoch for result in studies.results(study.id, trial.id)] == list(range(1, EPOCHS + 1))
    assert studies.get(study.id).state is StudyState.SUCCEEDED
    database.dispose()
