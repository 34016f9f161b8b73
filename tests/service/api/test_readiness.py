"""GET /readyz: whether the API can do its work, and what is wrong where not."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.readiness import KNOWN_S, Readiness
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


def test_probes_cannot_keep_the_store_busy(database: Database) -> None:
    now = 0.0
    readiness = Readiness(database, clock=lambda: now)
    readiness.check()
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
    readiness.check()
    now = KNOWN_S
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="revision older"):
            readiness.check()
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
