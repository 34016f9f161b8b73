"""Stores as released versions have left them: `released/REVISION.json`, filled by the very code of that release.

Each has studies in every state, with trials, attempts, results and events. A file is never changed: with a new release
that has a new revision comes a new file.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, DateTime, Integer, MetaData, func, insert, select

_FOLDER = Path(__file__).parent / "released"

REVISIONS = sorted(path.stem for path in _FOLDER.glob("*.json"))

Contents = dict[str, dict[Any, dict[str, Any]]]
"""By table and primary key: the values by column, times aware and in UTC."""


def fill(connection: Connection, revision: str) -> None:
    """Fills a database whose schema is at this revision as its release had it."""
    found = _reflected(connection)
    for name, frozen in _release(revision)["tables"].items():
        table = found.tables[name]
        kinds = {column.name: column.type._type_affinity for column in table.columns}
        rows = [dict(zip(frozen["columns"], row, strict=True)) for row in frozen["rows"]]
        for row in rows:
            for column in row:
                if kinds[column] is DateTime and row[column] is not None:
                    row[column] = datetime.fromisoformat(row[column])
        connection.execute(insert(table), rows)
        if connection.dialect.name == "postgresql" and "id" in table.c and kinds["id"] is Integer:
            sequence = select(func.pg_get_serial_sequence(name, "id")).scalar_subquery()
            connection.execute(select(func.setval(sequence, select(func.max(table.c.id)).scalar_subquery())))


def contents(connection: Connection) -> Contents:
    """Everything in the database, in whatever revision it is."""
    found: Contents = {}
    for table in _reflected(connection).sorted_tables:
        keys = [column.name for column in table.primary_key]
        found[table.name] = {}
        for row in connection.execute(select(table)).mappings():
            values = {name: _in_utc(value) for name, value in row.items()}
            found[table.name][tuple(values[key] for key in keys)] = values
    return found


def without(found: Contents, *names: str) -> Contents:
    """The contents without these tables."""
    return {table: rows for table, rows in found.items() if table not in names}


def only_columns_of(found: Contents, earlier: Contents) -> Contents:
    """The contents, cut down to the tables and columns that these earlier contents have."""
    return {
        table: {
            key: {name: value for name, value in row.items() if name in next(iter(earlier[table].values()))}
            for key, row in rows.items()
        }
        for table, rows in found.items()
        if table in earlier
    }


@cache
def _release(revision: str) -> dict[str, Any]:
    release: dict[str, Any] = json.loads((_FOLDER / f"{revision}.json").read_text())
    return release


def _reflected(connection: Connection) -> MetaData:
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: name != "alembic_version")
    return metadata


def _in_utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
