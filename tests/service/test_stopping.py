"""SIGTERM: the processes of the service end in order, and nobody waits for what they held."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import select

from service.store import tables
from service.store.database import Database
from tests.service.processes import DEADLINE_S, Process, answers

if TYPE_CHECKING:
    from tests.service.conftest import Life


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_api_ends_its_streams_and_finishes_what_it_was_asked(
    start: Callable[..., Process],
    life: Life,
    a_spec: dict[str, Any],
    unused_port: int,
    wait_until: Callable[..., None],
) -> None:
    study = life.create()
    grace = "from service.api import app; app._GRACE_S = 60"  # a busy machine may not do in 3 s what is asked here
    api = start("api", prelude=grace, PORT=str(unused_port))
    base = f"http://127.0.0.1:{unused_port}"
    wait_until(lambda: answers(f"{base}/readyz"), DEADLINE_S)
    streamed: list[str] = []
    outcome: list[str] = []

    def follow() -> None:
        try:
            with httpx.stream("GET", f"{base}/api/v1/studies/{study.id}/events", timeout=60, trust_env=False) as stream:
                for line in stream.iter_lines():
                    streamed.append(line)
            outcome.append("ended")
        except httpx.HTTPError as error:
            outcome.append(repr(error))

    following = threading.Thread(target=follow)
    following.start()
    wait_until(lambda: bool(streamed), DEADLINE_S)

    body = json.dumps(a_spec).encode()
    with socket.create_connection(("127.0.0.1", unused_port), timeout=DEADLINE_S) as slow:
        head = "POST /api/v1/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-ID: slow\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        wait_until(lambda: answers(f"{base}/healthz"), DEADLINE_S)  # what was sent before it has been taken
        api.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(unused_port), DEADLINE_S)
        slow.sendall(body[10:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 201 ")

    assert api.process.wait(DEADLINE_S) in (0, -signal.SIGTERM)
    following.join(DEADLINE_S)
    assert outcome == ["ended"]
    assert "event: stream.end" not in streamed  # the study goes on: a client takes the stream up again elsewhere
    by_request = {line.get("request_id"): line for line in api.lines()}
    assert by_request["slow"]["status"] == 201
    assert len(life.studies.events(study.id)) == 1


def test_a_reader_that_does_not_read_does_not_keep_the_api(
    start: Callable[..., Process], life: Life, unused_port: int, wait_until: Callable[..., None]
) -> None:
    study = life.create()
    api = start("api", PORT=str(unused_port))
    wait_until(lambda: answers(f"http://127.0.0.1:{unused_port}/readyz"), DEADLINE_S)
    with socket.create_connection(("127.0.0.1", unused_port), timeout=DEADLINE_S) as silent:
        silent.sendall(b"POST /api/v1/studies HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        silent.sendall(f"GET /api/v1/studies/{study.id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert api.terminate() < 30


def leader(database: Database) -> str | None:
    with database.reading() as connection:
        found: str | None = connection.execute(select(tables.leases.c.holder)).scalar_one_or_none()
    return found


def test_a_controller_that_ends_lets_the_next_one_lead_at_once(
    start: Callable[..., Process], database: Database, unused_port: int, wait_until: Callable[..., None]
) -> None:
    nobody = f"http://127.0.0.1:{unused_port}"
    settings = {"LEASE_S": "600", "RAY_JOBS_URL": nobody, "MLFLOW_URL": nobody}
    first = start("controller", **settings)
    wait_until(lambda: leader(database) is not None, DEADLINE_S)
    second = start("controller", **settings)
    wait_until(lambda: any("runs" in line["message"] for line in second.lines()), DEADLINE_S)
    assert str(leader(database)).endswith(f":{first.process.pid}")
    assert first.terminate() < 30
    assert first.process.returncode == 0
    wait_until(lambda: str(leader(database)).endswith(f":{second.process.pid}"), 30)  # and not after ten minutes
    second.terminate()
    assert second.process.returncode == 0
    assert leader(database) is None
    assert {line["level"] for line in first.lines()} <= {"INFO", "WARNING"}


@pytest.mark.soak
def test_a_controller_whose_store_is_gone_ends_too(
    start: Callable[..., Process], database: Database, store_url: str, unused_port: int, wait_until: Callable[..., None]
) -> None:
    nobody = f"http://127.0.0.1:{unused_port}"
    controller = start("controller", RAY_JOBS_URL=nobody, MLFLOW_URL=nobody)
    wait_until(lambda: leader(database) is not None, DEADLINE_S)
    with database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE leases RENAME TO gone")
    wait_until(lambda: any("leases" in line["message"] for line in controller.lines()), DEADLINE_S)
    assert controller.terminate() < 30
    assert controller.process.returncode == 0
    assert all(line["logger"] for line in controller.lines())


@pytest.fixture
def silent_server() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port that takes every connection and answers nothing, and the connections."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hold() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        holding = threading.Thread(target=hold)
        holding.start()
        yield server.getsockname()[1], held
        server.shutdown(socket.SHUT_RDWR)
        holding.join(DEADLINE_S)
    for connection in held:
        connection.close()


@pytest.mark.soak
@pytest.mark.parametrize("silent", ["MLFLOW_URL", "RAY_JOBS_URL"])
def test_a_controller_gives_up_its_lead_although_somebody_is_silent(
    silent: str,
    start: Callable[..., Process],
    life: Life,
    database: Database,
    unused_port: int,
    silent_server: tuple[int, list[socket.socket]],
    wait_until: Callable[..., None],
) -> None:
    port, held = silent_server
    life.start(life.create())  # which MLflow has not heard of
    life.create()  # which waits for a driver
    settings = dict.fromkeys(("MLFLOW_URL", "RAY_JOBS_URL"), f"http://127.0.0.1:{unused_port}")
    controller = start("controller", **{**settings, silent: f"http://127.0.0.1:{port}", "LEASE_S": "600"})
    wait_until(lambda: bool(held), DEADLINE_S)
    assert controller.terminate() < 8  # as long as each call would wait for its answer, and longer, without a limit
    assert controller.process.returncode == 0
    assert leader(database) is None
    (last,) = [line["message"] for line in controller.lines() if "under way" in line["message"]]
    assert last.endswith("exporter" if silent == "MLFLOW_URL" else "reconciler")


def test_controllers_of_one_host_and_process_id_are_two(
    start: Callable[..., Process], database: Database, unused_port: int, wait_until: Callable[..., None]
) -> None:
    nobody = f"http://127.0.0.1:{unused_port}"
    controllers = [start("controller", RAY_JOBS_URL=nobody, MLFLOW_URL=nobody) for _ in range(2)]

    def name_of(controller: Process) -> str:
        said = [line["message"] for line in controller.lines() if line["message"].endswith(" runs")]
        return said[0].split()[1].rpartition(":")[0] if said else ""

    wait_until(lambda: all(name_of(controller) for controller in controllers), DEADLINE_S)
    first, second = map(name_of, controllers)
    assert first != second  # although only the process ids have been taken off
    assert {name.rpartition("-")[0] for name in (first, second)} == {socket.gethostname()}
