"""Commands that bring the whole study store into a file, and from there into another store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.store.backup import Contents
    from service.store.database import Database


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(backup)
    app.command()(restore)


def backup(file: Annotated[Path, typer.Argument(metavar="FILE", help="Must not be there yet.")]) -> None:
    """Write the whole study store into one file, while the service runs.

    The file fits SQLite and PostgreSQL alike. Keep it like a password: it has the secrets of the webhooks and the
    hashes of the API keys. Checkpoints, logs and what is in MLflow are not in it.
    """
    from service.errors import StoreUnavailableError
    from service.settings import settings
    from service.store.backup import write_backup
    from service.store.database import sqlite_file

    store = sqlite_file(settings().store_url)
    if store is not None and not store.exists():
        raise StoreUnavailableError(f"{store} is not there: SAMSTUDY_HOME and SAMSTUDY_DATABASE_URL say where it is")
    with _database() as database:
        contents = write_backup(database, file)
    size = file.stat().st_size
    typer.echo(f"{file}: {_shown(contents)}, {size / 1024**2:,.1f} MiB; nobody else may read it")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `samstudy backup` wrote.")],
    check: Annotated[bool, typer.Option("--check", help="Only look whether the file is whole.")] = False,
) -> None:
    """Fill an empty study store with a backup; stop the service first.

    The backup may come from the other kind of database and from an earlier version. Studies that were running go on
    from their last checkpoints once the service is up.
    """
    from service.store.backup import check_backup, restore_backup

    if check:
        typer.echo(f"{file} is whole: {_shown(check_backup(file))}")
        return
    with _database() as database:
        contents = restore_backup(database, file)
    typer.echo(f"restored {_shown(contents)}; start the service, and `samstudy doctor` looks it over")


def _shown(contents: Contents) -> str:
    rows = ", ".join(f"{contents.rows[name]:,} {name}" for name in ("studies", "trials", "results"))
    return f"{rows} of {contents.created_at:%Y-%m-%d %H:%M} UTC, schema {contents.revision}"


@contextmanager
def _database() -> Iterator[Database]:
    from service.settings import settings
    from service.store.database import Database

    database = Database(settings().store_url)
    try:
        yield database
    finally:
        database.dispose()
