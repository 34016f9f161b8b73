from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from service.errors import StoreUnavailableError
from service.store import tables
from service.store.database import Database
from service.store.studies import NewStudy, StudyStore
from tests.postgresql import PostgresqlMissingError, PostgresqlServer


@pytest.fixture
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that a test may kill."""
    try:
        with PostgresqlServer() as server:
            yield server
    except PostgresqlMissingError as missing:
        pytest.skip(str(missing))


def _migrate(url: str, barrier: Any, failures: Any) -> None:
    barrier.wait(20)
    try:
        Database(url).migrate()
    except StoreUnavailableError as error:
        failures.put(str(error))


def test_the_migrations_build_exactly_the_tables(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_migrating_again_changes_nothing(stores: Any) -> None:
    study = stores.create()
    stores.database.migrate()
    stores.database.check_schema()
    assert stores.studies.get(study.id) == study


def test_two_processes_may_migrate_at_once(new_url: str, open_url: Callable[..., Database]) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, failures = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_migrate, args=(new_url, barrier, failures)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert failures.empty(), failures.get()
    open_url(new_url).check_schema()


def test_threads_may_migrate_an_empty_store_at_once(new_url: str, open_url: Callable[..., Database]) -> None:
    databases = [open_url(new_url) for _ in range(4)]
    errors: list[Exception] = []

    def migrate(database: Database) -> None:
        try:
            database.migrate()
        except StoreUnavailableError as error:
            errors.append(error)

    threads = [threading.Thread(target=migrate, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_an_empty_database_says_what_to_do(new_url: str, open_url: Callable[..., Database]) -> None:
    with pytest.raises(StoreUnavailableError, match="run `samstudy migrate`"):
        open_url(new_url).check_schema()


def test_a_store_without_its_tables_is_unavailable(new_url: str, open_url: Callable[..., Database]) -> None:
    with pytest.raises(StoreUnavailableError, match="leases"), open_url(new_url).reading() as connection:
        connection.execute(select(tables.leases))


def test_a_store_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}")  # a folder is no database
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        database.migrate()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailableError, match="does not answer"), database.reading():
        pass


def test_a_killed_server_is_unavailable_until_it_is_back_with_all_that_was_committed(
    postgresql_server: PostgresqlServer, open_url: Callable[..., Database]
) -> None:
    database = open_url(postgresql_server.url())
    database.migrate()
    study = StudyStore(database).create(NewStudy("s", "", {}, {"name": "s"}, "ada", "digest"))[0]
    postgresql_server.kill()
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        StudyStore(database).get(study.id)
    postgresql_server.start()
    assert StudyStore(database).get(study.id) == study


def test_a_server_that_goes_away_within_a_transaction_leaves_nothing_of_it(
    postgresql_server: PostgresqlServer, open_url: Callable[..., Database]
) -> None:
    database = open_url(postgresql_server.url())
    database.migrate()
    lease = insert(tables.leases).values(name="n", holder="h", expires_at=datetime.now(UTC))
    with pytest.raises(StoreUnavailableError, match="does not answer"), database.writing() as connection:  # noqa: PT012
        connection.execute(lease)
        postgresql_server.restart()
        connection.execute(lease)
    with database.reading() as connection:
        assert connection.execute(select(tables.leases)).all() == []


@pytest.mark.parametrize("url", ["", "not a url", "nosuchdatabase://host/name"])
def test_an_address_that_cannot_be_one_is_named(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match="SAMSTUDY_DATABASE_URL"):
        Database(url)


def test_sqlite_runs_in_wal_mode_with_foreign_keys(sqlite: Database) -> None:
    with sqlite.reading() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1


def test_a_reader_does_not_wait_for_a_writer(open_database: Callable[[], Database]) -> None:
    writer, reader = open_database(), open_database()
    lease = {"name": "n", "holder": "h", "expires_at": datetime.now(UTC)}
    with writer.writing() as writing:
        writing.execute(insert(tables.leases).values(**lease))
        with reader.reading() as connection:
            assert connection.execute(select(tables.leases)).all() == []
    with reader.reading() as connection:
        assert len(connection.execute(select(tables.leases)).all()) == 1


def test_a_reader_sees_one_state_while_others_write(open_database: Callable[[], Database]) -> None:
    writer, reader = open_database(), open_database()
    with reader.reading() as connection:
        before = connection.execute(select(tables.leases)).all()
        with writer.writing() as writing:
            writing.execute(insert(tables.leases).values(name="n", holder="h", expires_at=datetime.now(UTC)))
        assert connection.execute(select(tables.leases)).all() == before


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    lease = insert(tables.leases).values(name="n", holder="h", expires_at=datetime.now(UTC))
    with pytest.raises(IntegrityError), database.writing() as connection:  # noqa: PT012  # the second is refused
        connection.execute(lease)
        connection.execute(lease)
    with database.reading() as connection:
        assert connection.execute(select(tables.leases)).all() == []


def test_times_come_back_aware_and_in_utc(stores: Any) -> None:
    created_at = stores.create().created_at
    assert created_at.utcoffset().total_seconds() == 0
    assert abs((datetime.now(UTC) - created_at).total_seconds()) < 60


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(Exception, match="aware of its time zone"), database.writing() as connection:
        connection.execute(insert(tables.leases).values(name="n", holder="h", expires_at=naive))
