"""A PostgreSQL server of the tests' own, and databases on it."""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Self, TextIO

import psutil
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from service.errors import StoreUnavailableError
from service.store import tables
from service.store.database import Database
from tests.ports import free_port

_ACCOUNT = "postgres"  # what the server runs as where the tests run as root, which it refuses
_USER = "samstudy"
_FOLDER = "samstudy-postgresql-"
_START_S = 60.0
_STOP_S = 30.0

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # the kernel has what was committed, which is enough for a killed process
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",  # in the folder, so that a killed server leaves nothing in /dev/shm
    "timezone": "Asia/Kathmandu",  # UTC+05:45: a time that is not converted shows
}

# Columns, constraints and the migrations' revision.
_SCHEMA = """
SELECT concat_ws('|',
    (SELECT string_agg(concat_ws(' ', attrelid, attname, atttypid, attnotnull), ',' ORDER BY attrelid, attnum)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace),
    (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace),
    (SELECT string_agg(version_num, ',') FROM alembic_version))
"""


class PostgresqlMissingError(Exception):
    """No server can be started here; the message says what is missing."""


class PostgresqlServer:
    """One server on a free loopback port, with its data in a temporary folder.

    Its address and what was committed stay through `stop`, `kill` and `restart`; `close`, or the end of a `with`,
    removes the folder. The kernel ends the server with the thread that started it, so that it does not outlive pytest,
    however that ends: start and restart it in a thread that lives as long as it should. Where the tests run as root, it
    runs as `postgres`.

    settings: of postgresql.conf, over those of the tests: {"fsync": "on", "full_page_writes": "on"} for a measurement.
    Raises PostgresqlMissingError.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._programs = _find_programs()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._port = free_port()
        self._password = secrets.token_hex(16)
        self._folder: Path | None = None
        self._lock: TextIO | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy URL of a database; whether it exists is another matter."""
        return f"postgresql+psycopg://{_USER}:{self._password}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Returns once the server answers."""
        if self._folder is None:
            _remove_leftovers()
            self._folder = Path(tempfile.mkdtemp(prefix=_FOLDER))  # other users cannot look into pytest's own folders
            self._lock = (self._folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._make_cluster(self._folder)
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-p", str(self._port)]
        command += [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        log_file = self._folder / "postgresql.log"
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                _as_the_server(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C reaches pytest alone
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"PostgreSQL did not start:\n{log_file.read_text()[-4_000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the server in order; whoever is connected loses the connection."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL for all of the server's processes at once, as when its machine goes away."""
        if self._process is None:
            return
        if self._process.poll() is None:
            postmaster = psutil.Process(self._process.pid)
            postmaster.suspend()  # it starts no other process meanwhile
            family = [postmaster, *postmaster.children(recursive=True)]
            for process in family:
                process.kill()
            deadline = time.monotonic() + _STOP_S
            while any(_lives(process) for process in family) and time.monotonic() < deadline:
                time.sleep(0.005)
        self._process.wait(_STOP_S)
        self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP for all of the server's processes while the block runs: connections stay, and nobody says a word."""
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        postmaster.suspend()  # it starts no other process meanwhile
        family = [postmaster, *postmaster.children(recursive=True)]
        try:
            for process in family[1:]:
                with suppress(psutil.NoSuchProcess):  # it was about to end
                    process.suspend()
            yield
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def close(self) -> None:
        """Ends the server, and removes its data."""
        self._end(signal.SIGQUIT)
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def _make_cluster(self, folder: Path) -> None:
        """An empty server's data."""
        password_file = folder / "password"
        password_file.write_text(self._password)
        if os.getuid() == 0:
            for path in (folder, password_file):
                shutil.chown(path, _ACCOUNT, pwd.getpwnam(_ACCOUNT).pw_gid)
        command = [str(self._programs / "initdb"), "--pgdata", str(folder / "data"), "--username", _USER, "--no-sync"]
        command += ["--auth", "scram-sha-256", "--pwfile", str(password_file), "--encoding", "UTF8", "--locale", "C"]
        # Text is sorted as production's server does it, and not by code points, as SQLite does it.
        command += ["--locale-provider", "icu", "--icu-locale", "en-US"]
        done = subprocess.run(
            _as_the_server(command), capture_output=True, text=True, env=_environment(), cwd=folder, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        engine = create_engine(self.url(), poolclass=NullPool, connect_args={"connect_timeout": 5})
        try:
            engine.connect().close()
        except OperationalError:
            return False
        return True


class Databases:
    """Databases on one server; `close` drops what is left of them.

    url: of a database of that server, with a user who may create others.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine = create_engine(self._url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._left: list[str] = []

    def create(self) -> str:
        """URL of a new database."""
        name = f"samstudy_test_{secrets.token_hex(8)}"
        self._execute(f"CREATE DATABASE {name}")
        self._left.append(self._url.set(database=name).render_as_string(hide_password=False))
        return self._left[-1]

    def drop(self, url: str) -> None:
        """Whoever is connected to it loses the connection."""
        self._execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")
        self._left.remove(url)

    def close(self) -> None:
        for url in tuple(self._left):
            self.drop(url)
        self._engine.dispose()

    def _execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(statement)


class EmptyStores:
    """One study store after the other, each with its schema and nothing in it.

    It is the same database every time, its rows deleted: 2 ms, where a copy of a template takes 50. After somebody who
    changed the schema, or is still in the middle of a transaction, it is another database.
    """

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self._url = ""
        self._store: Database | None = None
        self._schema = ""

    def next(self) -> str:
        """Its URL; the one before is gone."""
        if self._store is not None and not self._empty(self._store):
            self.close()
            self._databases.drop(self._url)
        if self._store is None:
            self._url = self._databases.create()
            self._store = Database(self._url)
            self._store.migrate()
            with self._store.reading() as connection:
                self._schema = connection.exec_driver_sql(_SCHEMA).scalar_one()
        return self._url

    def close(self) -> None:
        """Closes the connection."""
        if self._store is not None:
            self._store.dispose()
            self._store = None

    def _empty(self, store: Database) -> bool:
        """Whether the store is as it was when it was new, its rows being gone now."""
        try:
            with store.writing() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
                if connection.exec_driver_sql(_SCHEMA).scalar_one() != self._schema:
                    return False
                for table in reversed(tables.metadata.sorted_tables):
                    connection.execute(table.delete())
                connection.exec_driver_sql("SELECT setval(seqrelid, 1, false) FROM pg_sequence")
        except (DBAPIError, StoreUnavailableError):
            return False
        return True


def _find_programs() -> Path:
    """The folder of initdb and postgres: of the newest of Debian's versions, else on the PATH."""
    if find_spec("psycopg") is None:
        raise PostgresqlMissingError("psycopg is not installed: the extra `postgres` has it")
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    folder = max(folders, key=lambda path: int(path.parent.name), default=None)
    if folder is None and (initdb := shutil.which("initdb")) is not None:
        folder = Path(initdb).resolve().parent
    if folder is None:
        raise PostgresqlMissingError("PostgreSQL is not installed: Debian's package `postgresql` has it")
    if os.getuid() == 0 and not any(user.pw_name == _ACCOUNT for user in pwd.getpwall()):
        raise PostgresqlMissingError(f"PostgreSQL refuses to run as root, and there is no user `{_ACCOUNT}`")
    if shutil.which("setpriv") is None:
        raise PostgresqlMissingError("setpriv is not installed: util-linux has it")
    return folder


def _remove_leftovers() -> None:
    """The folders of a pytest that was killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        try:
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _as_the_server(command: list[str]) -> list[str]:
    account = ["--reuid", _ACCOUNT, "--regid", _ACCOUNT, "--init-groups"] if os.getuid() == 0 else []
    return ["setpriv", "--pdeathsig", "QUIT", *account, "--", *command]


def _environment() -> dict[str, str]:
    """Without the settings that PostgreSQL's programs read there, such as PGDATA."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


def _lives(process: psutil.Process) -> bool:
    """One that only waits to be reaped has let go of everything."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
