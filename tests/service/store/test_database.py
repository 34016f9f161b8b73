from __future__ import annotations

import multiprocessing
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from service.errors import StoreUnavailableError
from service.logs import redacted
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


def test_a_file_on_sqlite_and_its_folder_are_their_owners(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    database = Database(f"sqlite:///{folder / 'samstudy.db'}")
    database.migrate()
    with database.writing():
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    database.dispose()
    assert modes == dict.fromkeys(("samstudy.db", "samstudy.db-wal", "samstudy.db-shm"), 0o600)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_migrating_again_changes_nothing(stores: Any) -> None:
    study = stores.create()
    stores.database.migrate()
    stores.database.check_schema()
    assert stores.studies.get(study.id) == study


def test_a_statement_that_fails_tells_nothing_of_its_values(database: Database) -> None:
    statement = text("INSERT INTO webhooks (id, secret) VALUES (:id, :secret)")
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    with pytest.raises(IntegrityError) as failed, database.writing() as connection:
        connection.execute(statement, {"id": "1", "secret": secret})
    assert "hidden" in str(failed.value)
    assert secret not in redacted(str(failed.value))  # PostgreSQL quotes the row itself


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


def test_a_server_that_says_nothing_is_unavailable_after_a_while() -> None:
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as server:
        database = Database(f"postgresql+psycopg://nobody@127.0.0.1:{server.getsockname()[1]}/none?connect_timeout=2")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="does not answer"), database.reading():
            pass
        assert time.monotonic() - started < 10


def test_a_server_that_went_away_is_noticed(postgresql_server: PostgresqlServer) -> None:
    database = Database(postgresql_server.url())
    with database.reading() as connection:
        parameters = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
    database.dispose()
    assert {name: int(parameters[name]) for name in ("connect_timeout", "tcp_user_timeout", "keepalives_idle")} == {
        "connect_timeout": 5,
        "tcp_user_timeout": 15_000,
        "keepalives_idle": 10,
    }


def test_what_the_url_says_of_a_connection_wins(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.url() + "?connect_timeout=9&options=-c%20statement_timeout%3D7s%20-c%20geqo%3Doff"
    database = Database(url, statement_timeout_s=30)
    with database.reading() as connection:
        parameters = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("statement_timeout", "geqo")]
    database.dispose()
    assert (parameters["connect_timeout"], shown) == ("9", ["7s", "off"])


def test_what_the_environment_says_of_a_connection_counts_too(
    postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=elsewhere")
    database = Database(postgresql_server.url(), statement_timeout_s=7)
    with database.reading() as connection:
        names = ("search_path", "statement_timeout")
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    database.dispose()
    assert shown == ["elsewhere", "7s"]


def test_a_statement_that_reads_ends_in_time_and_one_that_writes_may_take_longer(
    postgresql_server: PostgresqlServer,
) -> None:
    database = Database(postgresql_server.url(), statement_timeout_s=0.2)
    nap = text("SELECT pg_sleep(0.5)")
    with pytest.raises(StoreUnavailableError, match="statement timeout"), database.reading() as connection:
        connection.execute(nap)
    for longer in (database.writing, database.migrating):
        with longer() as connection:
            connection.execute(nap)
    patient = Database(postgresql_server.url())
    with patient.reading() as connection:
        connection.execute(nap)
    for opened in (database, patient):
        opened.dispose()


def test_a_writer_does_not_wait_for_a_lock_without_end(postgresql_server: PostgresqlServer) -> None:
    first = Database(postgresql_server.url())
    first.migrate()
    second = Database(postgresql_server.url(), statement_timeout_s=0.2)
    lock = text("LOCK TABLE leases")
    with first.writing() as holder:
        holder.execute(lock)
        with pytest.raises(StoreUnavailableError, match="lock timeout"), second.writing() as connection:
            connection.execute(lock)
    for opened in (first, second):
        opened.dispose()


@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_nothing_is_written_into_a_file_that_is_not_the_stores_any_more(
    open_sqlite: Callable[..., Database], tmp_path: Path, what: str
) -> None:
    database = open_sqlite()
    studies = StudyStore(database)
    studies.create(NewStudy("s", "", {}, {"name": "s"}, "ada", "digest"))
    path = tmp_path / "store.db"
    kept = tmp_path / "kept.db"
    shutil.copy(path, kept)
    path.rename(tmp_path / "moved.db") if what == "moved" else path.unlink()
    if what == "replaced":
        shutil.copy(kept, path)
    with pytest.raises(StoreUnavailableError, match="moved away or replaced"), database.reading():
        pass
    with pytest.raises(StoreUnavailableError, match="moved away or replaced"):
        studies.create(NewStudy("s", "", {}, {"name": "s"}, "ada", "digest"))
    assert path.exists() == (what == "replaced")


def test_no_new_connection_opens_another_file(open_sqlite: Callable[..., Database], tmp_path: Path) -> None:
    database = open_sqlite()
    path = tmp_path / "store.db"
    with database.reading():
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StoreUnavailableError, match="moved away or replaced"), database.reading():
            pass
    assert not path.exists()


@pytest.mark.parametrize("url", ["", "not a url", "nosuchdatabase://host/name"])
def test_an_address_that_cannot_be_one_is_named(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match="SAMSTUDY_DATABASE_URL"):
        Database(url)


def test_sqlite_runs_in_wal_mode_with_foreign_keys(sqlite: Database) -> None:
    with sqlite.reading() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL: a commit waits for the disk


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


@pytest.mark.parametrize("damage", ["no database", "malformed"])
def test_a_damaged_file_is_no_defect_of_ours(damage: str, migrated_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "samstudy.db"
    content = migrated_store.read_bytes()
    file.write_bytes(b"\x93" * 8192 if damage == "no database" else content[:4096] + b"\x93" * (len(content) - 4096))
    database = Database(f"sqlite:///{file}")
    with pytest.raises(StoreUnavailableError, match=r"the study store cannot be read: .*(not a database|malformed)"):
        database.check_schema()
    database.dispose()


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:geheim@127.0.0.1:1/db?conect_timeout=10"])
def test_an_option_that_there_is_not_is_said_without_the_password(url: str) -> None:
    database = Database(url)
    with pytest.raises(StoreUnavailableError, match="conect_timeout") as caught:
        database.check_schema()
    assert "geheim" not in str(caught.value)
    database.dispose()


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(Exception, match="aware of its time zone"), database.writing() as connection:
        connection.execute(insert(tables.leases).values(name="n", holder="h", expires_at=naive))


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:s3@cret@db/x", "postgresql+psycopg://u:s3@c:ret@db/x"])
def test_a_password_that_is_not_escaped_is_said_so_and_not_quoted(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match="must be written %40") as caught:
        Database(url)
    assert "s3" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_the_locks_of_a_process_that_says_no_more_amid_a_transaction_are_free_soon(
    postgresql_server: PostgresqlServer,
) -> None:
    """A frozen one; else everybody who needs the row would wait for it, the next controller among them."""
    hasty = f"{postgresql_server.url()}?options=-c%20idle_in_transaction_session_timeout%3D1s"
    with closing_databases(postgresql_server.url(), hasty) as (database, frozen):
        with database.reading() as connection:
            shown = [
                connection.execute(text(f"SHOW {name}")).scalar_one()
                for name in ("idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_user_timeout")
            ]
        assert shown == ["15s", "10", "15000"]

        others = []

        def hold() -> None:
            with frozen.writing() as connection:
                connection.execute(text("LOCK TABLE alembic_version IN EXCLUSIVE MODE"))
                database.check_writable()  # which waits for 5 s
                others.append("could write")

        database.migrate()
        with pytest.raises(StoreUnavailableError):
            hold()
        assert others == ["could write"]


def test_a_backup_may_wait_for_its_disk_amid_its_transaction(postgresql_server: PostgresqlServer) -> None:
    hasty = f"{postgresql_server.url()}?options=-c%20idle_in_transaction_session_timeout%3D200ms"
    with closing_databases(hasty) as (database,), database.reading() as connection:
        database.let_idle(connection)
        time.sleep(0.6)
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


@contextmanager
def closing_databases(*urls: str) -> Iterator[list[Database]]:
    databases = [Database(url) for url in urls]
    yield databases
    for database in databases:
        database.dispose()
