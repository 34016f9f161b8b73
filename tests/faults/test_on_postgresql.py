"""The service on PostgreSQL, which goes away itself, or sees everything else die."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.embedded_service import Service, frozen, kill
from tests.faults.conftest import submit
from tests.faults.schedule import postgresql_processes
from tests.postgresql import Databases, PostgresqlServer

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def service_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, postgresql_server: PostgresqlServer, databases: Databases
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("postgresql") / "home"
    service = Service(home, {"SAMSTUDY_DATABASE_URL": databases.create()})
    assert service.database.is_sqlite is False
    yield service
    assert service.stop() == (0, [])


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_study_goes_on_when_postgresql_is_back(
    how: str, service_on_postgresql: Service, postgresql_server: PostgresqlServer
) -> None:
    witness = submit(service_on_postgresql, f"postgresql-{how}", epochs=100)
    for finished in range(2):
        witness.wait_for_trials(finished=finished, epochs=5)
        witness.remember()
        postgresql_server.stop() if how == "stopped" else postgresql_server.kill()
        postgresql_server.start()
    study = witness.check(trials=4)
    assert study.driver_attempt == 1


def test_a_study_goes_on_when_postgresql_was_away_for_longer_than_any_lease(
    service_on_postgresql: Service, postgresql_server: PostgresqlServer
) -> None:
    witness = submit(service_on_postgresql, "postgresql-away", epochs=150)
    witness.wait_for_trials(finished=0, training=2, epochs=5)
    postgresql_server.stop()
    threading.Event().wait(3 * float(service_on_postgresql.setting("SAMSTUDY_LEASE_S")))
    postgresql_server.start()
    study = witness.check(trials=4)
    assert study.driver_attempt == 1  # its driver was there all the time, and is given the time to say so


def test_a_study_goes_on_when_postgresql_answers_again(
    service_on_postgresql: Service, postgresql_server: PostgresqlServer
) -> None:
    """SIGSTOP for all of its processes: connections stay, and nobody hears a word for longer than any lease."""
    witness = submit(service_on_postgresql, "postgresql-stalls", epochs=150)
    witness.wait_for_trials(finished=0, training=2, epochs=5)
    with frozen(*postgresql_processes(postgresql_server)):
        threading.Event().wait(2 * float(service_on_postgresql.setting("SAMSTUDY_LEASE_S")))
    witness.check(trials=4)


def test_a_driver_that_dies_while_postgresql_is_away_costs_no_epoch(
    service_on_postgresql: Service, postgresql_server: PostgresqlServer
) -> None:
    """What the store never heard of is in the checkpoints, which are ahead of it."""
    service = service_on_postgresql
    witness = submit(service, "postgresql-away-and-driver", trials=2, epochs=300)
    witness.wait_for_trials(finished=0, training=2, epochs=5)
    known = {trial.id: trial.epochs_done for trial in witness.trials()}
    postgresql_server.stop()
    threading.Event().wait(3)
    kill(service.drivers(witness.study_id))
    postgresql_server.start()
    assert witness.check(trials=2).driver_attempt == 2
    for trial in witness.trials():
        before = [result for result in witness.store.results(witness.study_id, trial.id) if result.attempt == 1]
        continued = witness.continued_after(trial.id, 2)
        assert known[trial.id] <= len(before) < continued - 2  # it trained on for 3 s, half a second an epoch at most
        assert witness.epochs_trained(trial.id, 2) == list(range(continued + 1, 301))


@pytest.mark.parametrize("victim", ["driver", "controller", "worker", "everything"])
def test_a_study_on_postgresql_survives_the_death_of(victim: str, service_on_postgresql: Service) -> None:
    service = service_on_postgresql
    witness = submit(service, f"postgresql-and-{victim}")
    witness.wait_for_trials(finished=1)
    witness.remember()
    if victim == "everything":
        service.kill()
        service.start()
    elif victim == "driver":
        kill(service.drivers(witness.study_id))
    elif victim == "worker":
        kill([service.worker()])
    else:
        kill(service.processes("service.cli", victim))
    witness.check(trials=4)
