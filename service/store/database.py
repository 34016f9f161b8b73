"""One database: its engine, its transactions, its clock and its migrations."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from service.errors import StoreUnavailableError
from service.store.sqlite_file import SqliteFile

_BUSY_TIMEOUT_S = 15
MAX_CONNECTIONS = 8  # of one process; they are kept, because it takes longer to connect than to ask
_ANSWER_S = 5.0
_LONGEST_WRITE_S = 600.0  # one statement of an API's; the deletion of a very large study takes minutes
_LIBPQ_OPTIONS = {
    "connect_timeout": 5,  # seconds, the server's greeting included
    "keepalives_idle": 10,  # a peer that is gone is noticed after 10 + 3 · 5 s without a word,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # and after 15 s where something sent is not acknowledged
}
"""So that a server that went away without a word is an error and not a wait without end."""
_SERVER_OPTIONS = {
    "idle_in_transaction_session_timeout": 15_000,  # milliseconds, in which a process says nothing amid a transaction
    "tcp_keepalives_idle": 10,  # its machine that is gone, as with a power failure, is noticed as a server is
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""So that the locks of a process that froze or went away without a word are free soon: everybody waits for them."""
_MIGRATION_LOCK = 0x5A75D1  # any number that is the same in every process
_UNKNOWN_TABLE_OR_COLUMN = ("42P01", "42703")  # PostgreSQL's SQLSTATE
_REFUSED = ("25006", "42501")  # read-only; no privilege for it


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Database:
    """The study store's database behind one URL.

    SQLite runs in WAL mode, and every write transaction takes the write lock at its start (BEGIN IMMEDIATE), so that
    several processes wait for each other instead of failing half way. PostgreSQL's own clock dates everything there,
    because drivers on several nodes do not share one; `clock` does for SQLite, which is one machine.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] = _utc_now,
        statement_timeout_s: float | None = None,
        answer_s: float = _ANSWER_S,
    ) -> None:
        """statement_timeout_s: after which PostgreSQL gives up a statement that reads, or to wait for a lock that a
        writer needs; None: never. What writes may take longer, such as the deletion of a large study.

        answer_s: the time that PostgreSQL has to say that it is there, and to give up a statement in; one that has
        stopped saying anything is unavailable then. Without a statement_timeout_s it is waited for.
        """
        self._statement_timeout_s = statement_timeout_s
        try:
            parsed = make_url(url)
            if "@" in (parsed.host or ""):  # which is a part of the password, and would be quoted as a host's name
                raise ArgumentError("an unescaped @")
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            connect_args = (
                {"timeout": _BUSY_TIMEOUT_S} if self.is_sqlite else _libpq_arguments(parsed, statement_timeout_s)
            )
            self._engine: Engine = create_engine(
                parsed,
                poolclass=QueuePool,
                pool_size=MAX_CONNECTIONS,
                max_overflow=0,
                pool_pre_ping=not self.is_sqlite,
                connect_args=connect_args,
                json_deserializer=from_json,  # two to five times as fast as json.loads
                hide_parameters=True,  # of a statement that fails: secrets of webhooks are among them
            )
        except (ArgumentError, ValueError):  # which quotes what it takes for a port
            raise StoreUnavailableError(
                "SAMSTUDY_DATABASE_URL is not a SQLAlchemy URL; an @ in its password must be written %40"
            ) from None
        except ImportError as error:
            raise StoreUnavailableError(
                f"the driver of {parsed.drivername} is not installed ({error.name}); the extra `postgres` has psycopg"
            ) from error
        if statement_timeout_s is not None and parsed.get_driver_name() == "psycopg":
            _watch_server(self._engine, statement_timeout_s, answer_s)
        self._clock = clock
        self._writer: Engine = self._engine.execution_options(writes=True)
        self._asker: Engine = self._engine
        self._reader: Engine = self._engine
        if not self.is_sqlite:  # whose readers see one state anyway
            self._asker = self._engine.execution_options(isolation_level="AUTOCOMMIT")
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ")
        if self.is_sqlite:
            event.listen(self._engine, "connect", _set_sqlite_pragmas)
            if parsed.database and not parsed.database.startswith((":", "file:")):
                _make_folder(Path(parsed.database).parent)
                _watch_file(self._engine, SqliteFile(Path(parsed.database)))
            event.listen(self._engine, "begin", _begin_sqlite)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one consistent state. Raises StoreUnavailableError."""
        with _translated_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def asking(self) -> Iterator[Connection]:
        """For one statement that reads, which sees one state by itself: half as many ways to PostgreSQL and back.

        Raises StoreUnavailableError.
        """
        with _translated_errors(), self._asker.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is kept whole or not at all. Raises StoreUnavailableError."""
        with _translated_errors(), self._writer.begin() as connection:
            if not self.is_sqlite and self._statement_timeout_s is not None:
                milliseconds = round(1000 * self._statement_timeout_s)
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {milliseconds}")
            yield connection

    def now(self, connection: Connection) -> datetime:
        """The store's time."""
        if self.is_sqlite:
            return self._clock()
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)  # it comes in the time zone of the server

    def migrate(self) -> None:
        """Brings the schema to the newest revision; a database that is there already stays as it is."""
        with self.migrating() as connection:
            upgrade(connection)

    def let_idle(self, connection: Connection) -> None:
        """Lets the transaction wait for a slow disk between two statements, as long as that takes."""
        if not self.is_sqlite:
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Like `writing`; two processes that migrate at once go one after the other."""
        with self.writing() as connection:
            if not self.is_sqlite:  # where every transaction that writes is alone
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield connection

    def check_schema(self) -> None:
        """Raises StoreUnavailableError where the database does not answer or needs `samstudy migrate`."""
        with self.reading() as connection:
            found = current_revision(connection)
        expected = known_revisions()[-1]
        _check_known(found)
        if found != expected:
            raise StoreUnavailableError(
                f"the store's schema is at revision {found}, this version needs {expected}: run `samstudy migrate`"
            )

    def check_writable(self) -> None:
        """Raises StoreUnavailableError where nothing can be written: a full disk, a read-only file or server."""
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")

    def dispose(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Brings the schema up to this revision, within the connection's transaction. Raises StoreUnavailableError."""
    _check_known(current_revision(connection))
    config = _alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def current_revision(connection: Connection) -> str | None:
    """The schema's revision; None for a database without one."""
    return MigrationContext.configure(connection).get_current_revision()


def known_revisions() -> list[str]:
    """Every revision that this version can bring up to its own, which is the last."""
    scripts = ScriptDirectory.from_config(_alembic_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def _check_known(revision: str | None) -> None:
    known = known_revisions()
    if revision is not None and revision not in known:
        raise StoreUnavailableError(
            f"the store's schema is at revision {revision}, which a newer version has made: this one knows {known[-1]}"
        )


def _libpq_arguments(url: URL, statement_timeout_s: float | None) -> dict[str, Any]:
    """What psycopg hands to libpq; what the URL or libpq's own environment says wins."""
    if not url.get_driver_name().startswith("psycopg"):
        return {}
    arguments: dict[str, Any] = {name: value for name, value in _LIBPQ_OPTIONS.items() if name not in url.query}
    if "PGCONNECT_TIMEOUT" in os.environ:
        arguments.pop("connect_timeout", None)
    given = url.query.get("options", os.environ.get("PGOPTIONS", ""))  # the last one of an option counts
    ours = dict(_SERVER_OPTIONS)
    if statement_timeout_s is not None:
        ours["statement_timeout"] = round(1000 * statement_timeout_s)
    said = [f"-c {name}={value}" for name, value in ours.items()]
    arguments["options"] = " ".join([*said, *([given] if isinstance(given, str) else given)]).strip()
    return arguments


def _watch_server(engine: Engine, statement_timeout_s: float, answer_s: float) -> None:
    """Has every wait for PostgreSQL end that it does not answer: a ping soon, a transaction's statement later."""
    from service.store.watched_connection import WatchedConnection  # psycopg is an extra

    def note_unused(connection: Any, *_: object) -> None:
        if connection is not None:  # it was not closed meanwhile
            connection.patience_s, connection.busy_s = answer_s, 0.0

    @event.listens_for(engine, "connect")
    def note_connected(connection: Any, _record: object) -> None:
        note_unused(connection)
        connection.note_longest_statement()

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: Sequence[Any], arguments: dict[str, Any]) -> WatchedConnection:
        return WatchedConnection.connect(*args, **arguments)

    @event.listens_for(engine, "begin")
    def note_used(connection: Connection) -> None:
        watched: Any = connection.connection.dbapi_connection
        longest_s = watched.longest_statement_s
        if longest_s is None or connection.get_execution_options().get("writes"):
            watched.patience_s, watched.busy_s = statement_timeout_s + answer_s, _LONGEST_WRITE_S
        else:
            watched.patience_s, watched.busy_s = longest_s + answer_s, 0.0

    event.listen(engine, "checkin", note_unused)


def _watch_file(engine: Engine, file: SqliteFile) -> None:
    """Lets nothing begin, and no connection be made, once the path leads to another file."""

    @event.listens_for(engine, "do_connect")
    def check_before_connecting(*_: object) -> None:
        file.check()
        file.make()

    @event.listens_for(engine, "connect")
    def note_opened(*_: object) -> None:
        file.note_opened()

    @event.listens_for(engine, "begin")
    def check_before_beginning(_connection: Connection) -> None:
        file.check()


def sqlite_file(url: str) -> Path | None:
    """The file of a store on SQLite; None for another database, or where it is in memory or named by a URI."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    name = parsed.database or ":memory:"
    is_file = parsed.get_backend_name() == "sqlite" and not name.startswith((":", "file:"))
    return Path(name) if is_file else None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"the folder of the study store cannot be made: {error}") from error


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turns 'the database does not answer' into a StoreUnavailableError; defects of ours pass through."""
    try:
        yield
    except PoolTimeoutError as error:
        raise StoreUnavailableError(f"the study store has no connection left: {error}") from error
    except DBAPIError as error:
        if type(error) is DatabaseError:  # SQLite's word for a file that is damaged or none of its own
            raise StoreUnavailableError(f"the study store cannot be read: {error.orig}") from error
        sqlstate = getattr(error.orig, "sqlstate", "")  # None where psycopg itself refuses, before a server is asked
        no_option = type(error) is ProgrammingError and sqlstate is None and error.statement is None  # of the URL
        if error.connection_invalidated or no_option or isinstance(error, (OperationalError, InterfaceError)):
            raise StoreUnavailableError(f"the study store does not answer: {error.orig}") from error
        if sqlstate in _REFUSED:  # an OperationalError on SQLite
            raise StoreUnavailableError(f"the study store takes nothing: {error.orig}") from error
        if sqlstate in _UNKNOWN_TABLE_OR_COLUMN:  # an OperationalError on SQLite
            raise StoreUnavailableError(f"the study store needs `samstudy migrate`: {error.orig}") from error
        raise


def _set_sqlite_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    cursor = connection.cursor()
    _enter_wal_mode(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _enter_wal_mode(cursor: sqlite3.Cursor) -> None:
    """Waits for others that open the same new file: here SQLite itself refuses at once where it would deadlock."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
