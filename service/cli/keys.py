"""Commands about API keys. They act on the study store itself, so that the first key can be made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from service.access import Role

if TYPE_CHECKING:
    from service.store.keys import KeyStore


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    keys = typer.Typer(no_args_is_help=True, help="API keys: who may ask the service. They act on the store itself.")
    keys.command()(create)
    keys.command("list")(list_keys)
    keys.command()(revoke)
    app.add_typer(keys, name="keys")


def create(
    owner: Annotated[str, typer.Option(metavar="NAME", help="Whose studies the key opens.")],
    role: Annotated[
        Role, typer.Option(help="admin: everything; user: its owner's studies; viewer: reads its owner's studies.")
    ],
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for, in your own words.")] = "",
) -> None:
    """Make a key and show it, this once.

    The key alone stands on stdout, so that it can be piped into a file or a secret store.
    """
    from pydantic import ValidationError

    from service.access import NewKey
    from service.errors import InvalidRequestError
    from service.spec_reading import problems_of

    given = {"owner": owner, "role": role, "name": name}
    try:
        new = NewKey.model_validate(given)
    except ValidationError as error:
        raise InvalidRequestError("the key is not valid", problems=problems_of(error, given)) from error
    with _key_store() as keys:
        key, token = keys.create(new)
    said = f"key {key.id} of {key.owner}, role {key.role}, shown this once (`samstudy keys revoke {key.id}` ends it)."
    print(f"{said}\nUse it as SAMSTUDY_API_KEY, or send it as `Authorization: Bearer <key>`:", file=sys.stderr)
    typer.echo(token.text)


def list_keys() -> None:
    """List the keys, the newest first, without their secrets."""
    from service.cli.rendering import console, plain_table, shown_time

    with _key_store() as keys:
        found = keys.all()
    if not found:
        typer.echo("no keys; `samstudy keys create --owner NAME --role admin` makes one")
        return
    table = plain_table("id", "owner", "role", "name", "created", "last used", "revoked", ids=["id"])
    for key in found:
        times = (shown_time(at) or "–" for at in (key.created_at, key.last_used_at, key.revoked_at))
        table.add_row(key.id, key.owner, key.role, key.name, *times)
    console().print(table)


def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="A key's id.")]) -> None:
    """Make a key open nothing from now on."""
    with _key_store() as keys:
        keys.revoke(key_id)
        last = not keys.any_valid()
    typer.echo(f"key {key_id} is revoked")
    if last:
        print(
            "there is no valid key left, and the API is closed to everybody: `samstudy keys create` makes another",
            file=sys.stderr,
        )


@contextmanager
def _key_store() -> Iterator[KeyStore]:
    from service.cli.examining_store import missing_file
    from service.errors import StoreUnavailableError
    from service.settings import settings
    from service.store.database import Database
    from service.store.keys import KeyStore

    if missing := missing_file(settings()):  # to look would make it
        raise StoreUnavailableError(f"{missing} is not there yet: samstudy up, or samstudy migrate, makes it")
    database = Database(settings().store_url)
    try:
        database.check_schema()
        yield KeyStore(database)
    finally:
        database.dispose()
