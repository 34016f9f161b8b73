"""Two controllers started by mistake on one store: one leads, the other waits, and neither does harm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from service.store import tables
from tests.embedded_service import Service, frozen, wait_until
from tests.faults.invariants import Witness


@pytest.fixture
def second_controller(service: Service) -> Iterator[subprocess.Popen[bytes]]:
    """Another controller with the environment of the one that `samstudy up` has started."""
    (first,) = service.processes("service.cli", "controller")
    wait_for_leader(service, first.pid)
    path = service.home / "logs" / "second-controller.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "controller"], env=first.environ(), stdout=log, stderr=log
        )
    yield process
    process.terminate()
    assert process.wait(30) == 0
    print(path.read_text())  # shown where the test has failed


def lease(service: Service) -> Any:
    """The controllers' lease, None where nobody has it yet, and the store's time."""
    with service.database.reading() as connection:
        row = connection.execute(select(tables.leases).where(tables.leases.c.name == "controller")).one_or_none()
        return row, service.database.now(connection)


def leader(service: Service) -> int | None:
    """Process id of the controller that holds the lease."""
    row, _ = lease(service)
    return None if row is None else int(row.holder.rpartition(":")[2])


def wait_for_leader(service: Service, process_id: int) -> None:
    try:
        wait_until(lambda: leader(service) == process_id, what=f"the controller {process_id} leads")
    except TimeoutError:
        print(lease(service))
        raise


@pytest.mark.soak
def test_the_second_takes_over_from_a_leader_that_stalls_and_the_first_does_no_harm_when_it_wakes(
    service: Service, begin: Callable[..., Witness], second_controller: subprocess.Popen[bytes]
) -> None:
    (first,) = service.processes("service.cli", "controller")
    assert leader(service) == first.pid
    witness = begin("two-controllers", trials=4)
    witness.wait_for_trials(finished=1)
    witness.remember()
    with frozen(first, store=service.database):
        wait_for_leader(service, second_controller.pid)
        witness.wait_for_trials(finished=2, training=0)
    study = witness.check(trials=4)
    assert study.driver_attempt == 1
    assert leader(service) == second_controller.pid

    another = begin("two-controllers-again", trials=2)
    second = psutil.Process(second_controller.pid)
    with frozen(second, store=service.database):  # before the driver has reported anything
        wait_for_leader(service, first.pid)
        another.wait_for_trials(finished=1, training=0)
    assert another.check(trials=2).driver_attempt == 1
    assert witness.check(trials=4) == study
