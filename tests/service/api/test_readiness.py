"""GET /readyz: whether the API can do its work, and what is wrong where not."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.readiness import KNOWN_S, PATIENCE_S, Readiness
from service.errors import StoreUnavailableError
from service.settings import Settings
from service.store.database import Database
from tests.postgresql import PostgresqlMissingError, PostgresqlServer
from tests.small_disk import small_disk


def answer(database: Database, home: Path) -> tuple[int, str, str]:
    """Status, code, and what is wrong."""
    response = TestClient(create_app(database, Settings(home=home))).get("/readyz")
    body = response.json()
    assert response.status_code == 200 or response.headers["content-type"] == "application/problem+json"
    return response.status_code, body.get("code", ""), body.get("detail", "")


def test_a_store_that_can_be_written_is_ready(database: Database, tmp_path: Path) -> None:
    assert answer(database, tmp_path)[0] == 200


def test_a_file_that_cannot_be_written_is_not_ready(migrated_store: Path, tmp_path: Path) -> None:
    database = Database(f"sqlite:///file:{migrated_store}?mode=ro&uri=true")
    status, code, detail = answer(database, tmp_path)
    database.dispose()
    assert (status, code) == (503, "store_unavailable")
    assert "readonly" in detail


@pytest.mark.parametrize(("host", "is_told"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_where_others_can_ask_the_log_alone_says_what_is_wrong(
    host: str, is_told: bool, unused_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(f"postgresql+psycopg://me:secret@127.0.0.1:{unused_port}/studies")
    client = TestClient(create_app(database, Settings(home=tmp_path, host=host)))
    made_up = {"Authorization": f"Bearer sam_abcdefghjkmn_{64 * '0'}"}
    answers = [client.get("/readyz"), client.get("/api/v1/studies", headers=made_up)]
    database.dispose()
    assert [answer.status_code for answer in answers] == [503, 503]
    for answer in answers:
        assert (f"port {unused_port} failed" in answer.json()["detail"]) is is_told
        assert (answer.json()["detail"] == "the study store is not available: the log of the API says why") != is_told
    assert sum(f"port {unused_port} failed" in record.message for record in caplog.records) == (0 if is_told else 2)


def test_a_full_disk_is_not_ready_until_there_is_room(migrated_store: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", size_bytes=1024 * 1024) as disk:
        path = disk.path / "samstudy.db"
        path.write_bytes(migrated_store.read_bytes())
        database = Database(f"sqlite:///{path}")
        database.check_schema()
        disk.fill()
        status, code, detail = answer(database, tmp_path)
        assert (status, code) == (503, "store_unavailable")
        assert "full" in detail
        disk.free()
        assert answer(database, tmp_path)[0] == 200
        database.dispose()


def test_a_server_that_takes_no_writes_is_not_ready(database: Database, store_url: str, tmp_path: Path) -> None:
    if database.is_sqlite:
        pytest.skip("a server's matter")
    name = make_url(store_url).database
    with database.writing() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    standby = Database(store_url)
    try:
        status, code, detail = answer(standby, tmp_path)
    finally:
        standby.dispose()
        with database.writing() as connection:
            connection.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
    assert (status, code) == (503, "store_unavailable")
    assert "read-only" in detail


def test_a_server_that_went_away_is_not_ready_and_is_once_it_is_back(tmp_path: Path) -> None:
    try:
        with PostgresqlServer() as server:
            database = Database(server.url())
            database.migrate()
            assert answer(database, tmp_path)[0] == 200
            server.stop()
            assert answer(database, tmp_path)[:2] == (503, "store_unavailable")
            server.start()
            assert answer(database, tmp_path)[0] == 200
            database.dispose()
    except PostgresqlMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Of a server that takes connections and says nothing, like a PostgreSQL that hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"postgresql+psycopg://nobody@127.0.0.1:{server.getsockname()[1]}/none"


def test_a_store_that_says_nothing_is_not_ready_and_the_process_is_well(silent_url: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    database = Database(silent_url)
    with (
        TestClient(create_app(database, Settings(home=tmp_path))) as client,
        ThreadPoolExecutor(10) as threads,
    ):
        started = time.monotonic()
        probes = [threads.submit(client.get, "/readyz") for _ in range(10)]
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - started < PATIENCE_S
        answers = [probe.result(20) for probe in probes]
        assert time.monotonic() - started < 2 * PATIENCE_S
        again = time.monotonic()
        answers.append(client.get("/readyz"))  # the question is open still
        assert time.monotonic() - again < PATIENCE_S
    database.dispose()
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["code"] for answer in answers} == {"store_unavailable"}
    assert {answer.json()["detail"] for answer in answers} == {"the study store does not answer within 3 s"}


def is_ready(readiness: Readiness) -> bool:
    try:
        asyncio.run(readiness.check())
    except StoreUnavailableError:
        return False
    return True


def test_one_thread_asks_however_many_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    asked: list[str] = []
    goes_on = threading.Event()

    def hang() -> None:
        asked.append(threading.current_thread().name)
        goes_on.wait(20)

    monkeypatch.setattr(database, "check_schema", hang)
    readiness = Readiness(database, patience_s=0.1)

    async def ask_twenty_times() -> list[Any]:
        return await asyncio.gather(*(readiness.check() for _ in range(20)), return_exceptions=True)

    answers = [*asyncio.run(ask_twenty_times()), *asyncio.run(ask_twenty_times())]
    assert {type(answer) for answer in answers} == {StoreUnavailableError}
    assert len(asked) == 1
    goes_on.set()
    wait_until(lambda: is_ready(readiness))


def test_a_store_that_answers_late_is_ready_then(
    database: Database, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(database, "check_schema", lambda: goes_on.wait(20))
    readiness = Readiness(database, patience_s=0.1)
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        asyncio.run(readiness.check())
    goes_on.set()
    wait_until(lambda: is_ready(readiness))


def test_a_file_that_was_moved_away_is_not_ready_until_it_is_back(migrated_store: Path, tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "samstudy.db", tmp_path / "elsewhere.db"
    shutil.copy(migrated_store, path)
    database = Database(f"sqlite:///{path}")
    assert answer(database, tmp_path)[0] == 200
    path.rename(elsewhere)
    status, code, detail = answer(database, tmp_path)
    assert (status, code) == (503, "store_unavailable")
    assert "moved away" in detail
    assert not path.exists()
    elsewhere.rename(path)
    assert answer(database, tmp_path)[0] == 200
    database.dispose()


def test_probes_cannot_keep_the_store_busy(database: Database) -> None:
    now = 0.0
    readiness = Readiness(database, clock=lambda: now)
    asyncio.run(readiness.check())
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
    asyncio.run(readiness.check())
    now = KNOWN_S
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="revision older"):
            asyncio.run(readiness.check())
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
