"""The whole store in one file, whatever the database: written while the service runs, read into an empty store.

The file is gzip over lines of JSON: a header, for each table its name and columns and then a line for each row, and a
footer with the number of rows of each table and the SHA-256 of every line before. It has the revision of the schema, so
that a later version can read it: the schema is built as it was then, filled, and brought up to date.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, DateTime, MetaData, Table, case, func, insert, select, text, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.types import String

from service.errors import BackupDamagedError, RestoreRefusedError, StoreUnavailableError
from service.store import tables
from service.store.database import Database, current_revision, known_revisions, upgrade
from service.study import DRIVEN_STATES, TrialState

FORMAT = 1

JUMP = 1_000
"""How far the numbers of drivers and of versions go ahead at a restore whose clock is behind them."""

_NUMBERS_SINCE = datetime(2026, 1, 1, tzinfo=UTC)

_KIND = "samstudy backup"
_BATCH = 1_000
_REVISION = "alembic_version"
_LEASES = "leases"  # no data: a lease holds for as long as its holder renews it, and no longer
_TABLES = {"studies", "trials", "results"}
_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup has: the schema's revision, when it was made, and the number of rows of each table."""

    revision: str
    created_at: datetime
    rows: dict[str, int]


def write_backup(database: Database, path: Path) -> Contents:
    """Writes the store as it is at this moment; others go on reading and writing.

    The file appears whole or not at all, and only its owner may read it: it has the webhooks' secrets and the hashes of
    the keys. Raises StoreUnavailableError, FileExistsError, OSError.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already, and a backup replaces nothing")
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # which nobody else may read
    try:
        with os.fdopen(handle, "wb") as file:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6) as packed:
                contents = _write(database, packed)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).rename(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    _sync(path.parent)
    return contents


def check_backup(path: Path) -> Contents:
    """Reads the whole file. Raises BackupDamagedError where it is not exactly what was written, OSError."""
    rows: dict[str, int] = {}
    table = ""
    with _opened(path) as lines:
        header = next(lines)
        for line in lines:
            if isinstance(line, list):
                rows[table] += 1
            elif "table" in line:
                table = line["table"]
                rows[table] = 0
            elif line["rows"] != rows:
                raise BackupDamagedError(f"it has other rows than it says: {rows} and not {line['rows']}")
            elif lacking := _TABLES - rows.keys():
                raise BackupDamagedError(f"it lacks {', '.join(sorted(lacking))}, which every store has")
        return Contents(header["revision"], datetime.fromisoformat(header["created_at"]), rows)


def restore_backup(database: Database, path: Path) -> Contents:
    """Fills an empty store with what a backup has, all of it or nothing, and brings the schema to this version's.

    Studies that had a driver have lost it, so that the controller starts the next one. Drivers of the store that is
    gone, should some still run, are refused: the numbers of drivers go far ahead. So do versions, that no ETag of it
    fits. Readers of events hear of it, whatever they have seen. Raises BackupDamagedError,
    RestoreRefusedError, StoreUnavailableError, OSError.
    """
    contents = check_backup(path)
    if contents.revision not in known_revisions():
        raise RestoreRefusedError(
            f"{path} has the schema {contents.revision}, which a newer version has made: restore it with that version"
        )
    with database.migrating() as connection:
        database.let_idle(connection)
        _check_empty(connection, database.now(connection))
        _reflected(connection, but=(), also=(_REVISION,)).drop_all(connection)
        upgrade(connection, contents.revision)
        _fill(connection, path, is_sqlite=database.is_sqlite)
        upgrade(connection)
        now = database.now(connection)
        _let_go(connection, now)
        _tell_readers(connection, contents, now)
        if not database.is_sqlite:  # which counts on from the largest number by itself
            _count_on(connection)
    return contents


def _write(database: Database, file: gzip.GzipFile) -> Contents:
    digest = hashlib.sha256()

    def write(line: object) -> None:
        written = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        digest.update(written)
        file.write(written)

    with database.reading() as connection:
        database.let_idle(connection)
        revision = current_revision(connection)
        if revision not in known_revisions():
            raise StoreUnavailableError(
                f"the store's schema is at revision {revision}, of which this version knows nothing: there is nothing "
                "that it could back up"
            )
        created_at = database.now(connection).astimezone(UTC)
        header = {"kind": _KIND, "format": FORMAT, "revision": revision, "created_at": created_at.isoformat()}
        write(header)
        rows: dict[str, int] = {}
        for table in _reflected(connection).sorted_tables:
            write({"table": table.name, "columns": [column.name for column in table.columns]})
            rows[table.name] = 0
            query = select(table).order_by(*table.primary_key).execution_options(yield_per=_BATCH)
            for row in connection.execute(query):
                write([_plain(value) for value in row])
                rows[table.name] += 1
    write({"rows": rows, "sha256": digest.hexdigest()})
    return Contents(revision, created_at, rows)


def _plain(value: Any) -> Any:
    """A value as JSON has it, in Python's dialect, which knows NaN and Infinity; a time in UTC."""
    if isinstance(value, datetime):
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware.isoformat()
    return value


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[Any]]:
    """The lines of a backup up to its footer, the header first. Whatever is wrong with them is a BackupDamagedError."""
    try:
        with gzip.open(path, "rb") as file:
            yield _lines(file)
    except BackupDamagedError as error:
        raise BackupDamagedError(f"{path} is damaged: {error.detail}") from error
    except _DAMAGE as error:
        raise BackupDamagedError(f"{path} is damaged, or no backup: {error or type(error).__name__}") from error


def _lines(file: gzip.GzipFile) -> Iterator[Any]:
    digest = hashlib.sha256()
    for number, written in enumerate(file):
        line = json.loads(written)
        if number == 0 and (line["kind"], line["format"]) != (_KIND, FORMAT):
            raise BackupDamagedError(f"its format is {line['format']!r} of {line['kind']!r}, not {FORMAT} of {_KIND!r}")
        if isinstance(line, dict) and "sha256" in line:
            if line["sha256"] != digest.hexdigest():
                raise BackupDamagedError("its checksum is not that of its content")
            if file.read(1):
                raise BackupDamagedError("it goes on after its end")
            yield line
            return
        digest.update(written)
        yield line
    raise BackupDamagedError("it is cut off")


def _check_empty(connection: Connection, now: datetime) -> None:
    """Raises RestoreRefusedError where there is something in the store, or a controller works on it."""
    for table in _reflected(connection, but=()).sorted_tables:
        query = select(func.count()).select_from(table)
        if table.name == _LEASES:
            query = query.where(table.c.expires_at > now)
        count = connection.execute(query).scalar_one()
        if count and table.name == _LEASES:
            raise RestoreRefusedError("a controller works on this store: stop the service first")
        if count:
            raise RestoreRefusedError(f"the store is not empty ({table.name}: {count:,}): restore into a new database")


def _fill(connection: Connection, path: Path, *, is_sqlite: bool) -> None:
    known = _reflected(connection).tables
    columns: dict[str, Callable[[Any], Any]] = {}
    table: Table | None = None
    batch: list[dict[str, Any]] = []

    def insert_batch() -> None:
        if table is None or not batch:
            return
        try:
            connection.execute(insert(table), batch)
        except (DataError, IntegrityError) as error:
            raise RestoreRefusedError(f"the database does not take these {table.name}: {error.orig}") from error
        batch.clear()

    with _opened(path) as lines:
        next(lines)
        for line in lines:
            if isinstance(line, list):
                pairs = zip(columns.items(), line, strict=True)
                batch.append({name: None if value is None else read(value) for (name, read), value in pairs})
                if len(batch) == _BATCH:
                    insert_batch()
                continue
            insert_batch()
            if "table" in line:
                table = known[line["table"]]
                columns = {name: _reader(table.c[name].type, is_sqlite=is_sqlite) for name in line["columns"]}


def _reader(kind: Any, *, is_sqlite: bool) -> Callable[[Any], Any]:
    """What makes of a plain value one that a column of this type takes; NULL aside."""
    if isinstance(kind, DateTime):
        return _naive_time if is_sqlite else datetime.fromisoformat
    if isinstance(kind, String) and not is_sqlite:
        return tables.storable_text
    return lambda value: value


def _naive_time(value: str) -> datetime:
    return datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)


def _count_on(connection: Connection) -> None:
    """Lets PostgreSQL's sequences go on after the largest number that is in use."""
    for table in _reflected(connection).sorted_tables:
        for column in table.primary_key:
            names = {"table": table.name, "column": column.name}
            sequence = connection.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), names).scalar_one()
            if sequence is not None:
                largest = connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one()
                connection.execute(select(func.setval(sequence, largest + 1, False)))


def _let_go(connection: Connection, now: datetime) -> None:
    """Nobody holds a study: drivers are overdue. The next ones, and the next versions, have numbers that none has had.

    Every study counts as behind in MLflow, which may show what came after the backup, and so does every trial that may
    have gone on since: their exporter looks.
    """
    table = tables.studies
    successes = (TrialState.SUCCEEDED, TrialState.EARLY_STOPPED)
    connection.execute(
        update(table).where(table.c.state.in_(DRIVEN_STATES)).values(lease_expires_at=now - timedelta(seconds=1))
    )
    ahead = {name: _ahead(table.c[name], now) for name in ("driver_attempt", "version")}
    connection.execute(update(table).values(revision=table.c.revision + 1, **ahead))
    trials = tables.trials
    connection.execute(update(trials).where(trials.c.state.not_in(successes)).values(revision=trials.c.revision + 1))


def _ahead(number: ColumnElement[int], now: datetime) -> ColumnElement[int]:
    """A number that the row has not had since the backup, however often that or another one is restored.

    These are seconds since 2026: past all that were given out, for a row that counts less than one a second. Where the
    clock is behind the number, it goes ahead by JUMP.
    """
    seconds = int((now - _NUMBERS_SINCE).total_seconds())
    return case((number >= seconds, number + JUMP), else_=seconds)


def _tell_readers(connection: Connection, contents: Contents, now: datetime) -> None:
    """Records with each study that it was restored; ids of events go on from there.

    The store that is gone may have given out more ids than the backup has, and its readers ask for what came after the
    last one that they saw. So ids begin again at the milliseconds since 1970: past all that were given out, for a store
    that records fewer than 1,000 events a second, however often one and the same backup is restored.
    """
    studies, events = tables.studies, tables.events
    largest = connection.execute(select(func.coalesce(func.max(events.c.id), 0))).scalar_one()
    first_id = max(largest + 1, int(now.timestamp() * 1000))
    data = {"backup_of": contents.created_at.isoformat()}
    study_ids = connection.execute(select(studies.c.id).order_by(studies.c.created_at)).scalars()
    rows = [
        {"id": event_id, "study_id": study_id, "kind": "study.restored", "data": data, "at": now}
        for event_id, study_id in enumerate(study_ids, first_id)
    ]
    if rows:
        connection.execute(insert(events), rows)


def _reflected(connection: Connection, *, but: Collection[str] = (_LEASES,), also: Collection[str] = ()) -> MetaData:
    """The study store's tables as they are in the database, in whatever revision; other tables there are not ours."""
    ours = ({*tables.metadata.tables} - {*but}) | {*also}
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: name in ours)
    return metadata


def _sync(folder: Path) -> None:
    """The file's name is on disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
