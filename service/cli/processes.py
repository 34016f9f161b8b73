"""Commands that start something here: the whole service, one of its processes, one training run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from service.errors import SamstudyError
from service.settings import settings

if TYPE_CHECKING:
    from service.addresses import Addresses

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(up)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(
        train
    )
    app.command()(migrate)
    app.command()(api)
    app.command()(controller)


def up() -> None:
    """Start the whole service on this machine; Ctrl-C stops it."""
    from service.embedded import run_embedded

    raise typer.Exit(run_embedded(settings(), on_ready=_print_addresses, log=typer.echo))


def train(context: typer.Context) -> None:
    """Run one training, without the service.

    For example: samstudy train dataset=digits lambda=0.5 rho=0.1
    """
    from trainers.__main__ import main

    raise typer.Exit(main(context.args, program="samstudy train"))


def migrate() -> None:
    """Bring the store's schema to this version's."""
    from service.store.database import Database

    database = Database(settings().store_url)
    try:
        database.migrate()
    finally:
        database.dispose()
    typer.echo("the study store is up to date")


def api() -> None:
    """Serve the REST API: a process of production.

    `samstudy up` starts one by itself.
    """
    with _long_lived():
        from service.api.app import serve  # whose libraries start threads as they are imported

        serve(settings())


def controller() -> None:
    """Run the controller: a process of production.

    `samstudy up` starts one by itself.
    """
    with _long_lived():
        from service.controlling import run_controller

        run_controller(settings())


@contextmanager
def _long_lived() -> Iterator[None]:
    """The process logs as its settings say; an error that it ends with is a line of the log like all others."""
    from service import logs
    from service.memory import use_one_heap

    use_one_heap()
    logs.configure(settings().log_format, settings().log_level)
    try:
        yield
    except SamstudyError as error:
        log.critical("%s", error.detail)
        raise typer.Exit(1) from error


def _print_addresses(addresses: Addresses) -> None:
    typer.echo("samstudy is up; Ctrl-C stops it")
    typer.echo(f"  API     {addresses.api_url}  (documentation: {addresses.api_url.rstrip('/')}/docs)")
    typer.echo(f"  MLflow  {addresses.mlflow_url}")
    typer.echo(f"  Ray     {addresses.ray_url}")
    typer.echo(f"  data    {addresses.home}")
    typer.echo("next: samstudy submit FILE --watch")
