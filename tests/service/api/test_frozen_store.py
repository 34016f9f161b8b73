"""A frozen PostgreSQL: every request is answered in time, and nobody needs to start anything again afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access import NewKey, Role
from service.settings import Settings
from service.store.database import MAX_CONNECTIONS, Database
from service.store.keys import KeyStore
from tests.postgresql import Databases, PostgresqlMissingError, PostgresqlServer
from tests.service.conftest import RunningApi

ANSWER_S = 1.0
CONNECT_S = 2.0
CALLERS = 3 * MAX_CONNECTIONS


@pytest.fixture
def store_kind() -> str:
    return "postgresql"


@pytest.fixture
def server() -> Iterator[PostgresqlServer]:
    try:
        with PostgresqlServer() as server:
            yield server
    except PostgresqlMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def store_url(server: PostgresqlServer) -> Iterator[str]:
    with closing(Databases(server.url())) as databases:
        yield f"{databases.create()}?connect_timeout={CONNECT_S:.0f}"


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    database = Database(store_url, statement_timeout_s=1, answer_s=ANSWER_S)
    database.migrate()
    yield database
    database.dispose()


@pytest.fixture
def api_settings(tmp_path: Path, store_url: str) -> Settings:
    return Settings(home=tmp_path, database_url=store_url, host="127.0.0.1", requests_per_minute=0)


@pytest.fixture
def client(database: Database, running_api: RunningApi) -> Iterator[httpx.Client]:
    """With a key, at an API whose connections are all open."""
    token = KeyStore(database).create(NewKey(owner="ada", role=Role.USER))[1]
    headers = {"Authorization": f"Bearer {token.text}"}
    with httpx.Client(base_url=running_api.url, headers=headers, timeout=30, trust_env=False) as client:
        assert {answer.status_code for answer in ask_at_once(client)} == {200}
        yield client


def ask_at_once(client: httpx.Client) -> list[httpx.Response]:
    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(lambda _: client.get("/api/v1/studies"), range(CALLERS)))


def test_nobody_waits_without_end(client: httpx.Client, server: PostgresqlServer, a_spec: Any) -> None:
    with server.frozen():
        started = time.monotonic()
        answers = [*ask_at_once(client), client.post("/api/v1/studies", json=a_spec)]
        took_s = time.monotonic() - started
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert answer.headers["content-type"] == "application/problem+json"
        rounds = CALLERS / MAX_CONNECTIONS + 1  # of as many requests as there are threads
        assert took_s < ANSWER_S + rounds * CONNECT_S + 5
        assert client.get("/healthz").status_code == 200
    assert {answer.status_code for answer in ask_at_once(client)} == {200}
    assert client.post("/api/v1/studies", json=a_spec).status_code == 201


def test_the_server_stops_all_the_same(
    client: httpx.Client, running_api: RunningApi, server: PostgresqlServer, wait_until: Any
) -> None:
    threads = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool, server.frozen():
        asked = pool.submit(client.get, "/api/v1/studies")
        wait_until(lambda: running_api.waiting_requests == 1)
        running_api.stop()
        assert asked.result(10).status_code == 503
        wait_until(lambda: all(not thread.is_alive() for thread in threads if thread.name.startswith("AnyIO")))
