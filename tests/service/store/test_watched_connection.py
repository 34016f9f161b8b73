"""A PostgreSQL that is frozen keeps its connections and says nothing: whoever waits for it is told so in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from contextlib import AbstractContextManager, ExitStack

import psutil
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from service.errors import StoreUnavailableError
from service.store.database import Database
from tests.postgresql import PostgresqlMissingError, PostgresqlServer

ANSWER_S = 0.5
CONNECT_S = 2  # the least that libpq takes
STATEMENT_S = 0.5
MARGIN_S = 3.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A server that a test may freeze."""
    try:
        with PostgresqlServer() as server:
            yield server
    except PostgresqlMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def database(server: PostgresqlServer, open_url: Callable[..., Database]) -> Database:
    url = f"{server.url()}?connect_timeout={CONNECT_S}"
    database = open_url(url, statement_timeout_s=STATEMENT_S, answer_s=ANSWER_S)
    assert ask(database) == 1
    return database


def ask(database: Database) -> int:
    with database.reading() as connection:
        return one(connection)


def one(connection: Connection) -> int:
    answer: int = connection.execute(text("SELECT 1")).scalar_one()
    return answer


def test_a_connection_that_nobody_uses_is_given_up_soon(server: PostgresqlServer, database: Database) -> None:
    with server.frozen():
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            ask(database)
        assert time.monotonic() - started < ANSWER_S + CONNECT_S + MARGIN_S
    assert ask(database) == 1


@pytest.mark.parametrize("how", ["reading", "writing"])
def test_a_transaction_is_given_up_after_its_statements_time(
    server: PostgresqlServer, database: Database, how: str
) -> None:
    transaction: Callable[[], AbstractContextManager[Connection]] = getattr(database, how)
    with pytest.raises(StoreUnavailableError, match="has said nothing"), transaction() as connection:  # noqa: PT012
        one(connection)
        with server.frozen():
            started = time.monotonic()
            try:
                one(connection)
            finally:
                assert STATEMENT_S < time.monotonic() - started < STATEMENT_S + ANSWER_S + CONNECT_S + MARGIN_S
    assert ask(database) == 1


def test_a_frozen_commit_is_given_up_too(server: PostgresqlServer, database: Database) -> None:
    refused = pytest.raises(StoreUnavailableError, match="has said nothing")
    with ExitStack() as stack, refused, database.writing() as connection:
        one(connection)
        stack.enter_context(server.frozen())
    assert ask(database) == 1


@pytest.mark.parametrize("how", ["reading", "writing"])
def test_where_its_own_process_hangs_alone_a_transaction_is_given_up_too(
    database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The server goes on greeting others. What writes may take longer than what reads."""
    monkeypatch.setattr("service.store.database._LONGEST_WRITE_S", 4 * (STATEMENT_S + ANSWER_S))
    transaction: Callable[[], AbstractContextManager[Connection]] = getattr(database, how)
    with pytest.raises(StoreUnavailableError, match="has said nothing"), transaction() as connection:  # noqa: PT012
        backend = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        backend.suspend()
        started = time.monotonic()
        try:
            one(connection)
        finally:
            waited_s = time.monotonic() - started
            backend.resume()
    least_s = (4 if how == "writing" else 1) * (STATEMENT_S + ANSWER_S)
    assert least_s < waited_s < least_s + STATEMENT_S + ANSWER_S + MARGIN_S
    assert ask(database) == 1


def test_a_server_that_is_at_work_may_take_its_time(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 3 * (STATEMENT_S + ANSWER_S)})


def test_a_server_that_is_at_work_and_takes_no_more_connections_is_there(
    server: PostgresqlServer, database: Database, open_url: Callable[..., Database]
) -> None:
    name = make_url(server.url()).database
    admin = open_url(server.url("template1"))
    with database.writing() as connection:
        with admin.writing() as changing:
            changing.exec_driver_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        try:
            connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 2 * (STATEMENT_S + ANSWER_S)})
        finally:
            with admin.writing() as changing:
                changing.exec_driver_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")


def test_a_statement_of_which_the_url_says_that_it_may_take_longer_does(
    server: PostgresqlServer, open_url: Callable[..., Database]
) -> None:
    url = f"{server.url()}?options=-c%20statement_timeout%3D7s"
    database = open_url(url, statement_timeout_s=STATEMENT_S, answer_s=ANSWER_S)
    with database.reading() as connection:
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 2 * (STATEMENT_S + ANSWER_S)})


def test_that_another_server_of_the_url_answers_means_nothing(
    server: PostgresqlServer, open_url: Callable[..., Database], unused_port: int
) -> None:
    parsed = make_url(f"{server.url()}?connect_timeout={CONNECT_S}")
    hosts = [f"127.0.0.1:{port}" for port in (parsed.port, unused_port)]
    url = parsed.set(host=None, port=None).update_query_dict({"host": hosts}).render_as_string(hide_password=False)
    database = open_url(url, statement_timeout_s=STATEMENT_S, answer_s=ANSWER_S)
    with pytest.raises(StoreUnavailableError, match="has said nothing"), database.reading() as connection:  # noqa: PT012
        one(connection)
        with server.frozen():
            one(connection)


def test_a_process_that_sets_no_time_waits(server: PostgresqlServer, open_url: Callable[..., Database]) -> None:
    patient = open_url(server.url(), answer_s=ANSWER_S)
    with patient.reading() as connection, ThreadPoolExecutor(1) as pool:
        one(connection)
        with server.frozen():
            asked = pool.submit(one, connection)
            with pytest.raises(FuturesTimeoutError):
                asked.result(STATEMENT_S + 4 * ANSWER_S)
        assert asked.result(MARGIN_S) == 1
