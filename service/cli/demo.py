"""`samstudy demo FILE`: the whole way of one study on this machine, from nothing to its table."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from service.study import StudyState


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command()(demo)


def demo(
    file: Annotated[Path, typer.Argument(help="the study spec, YAML or JSON", exists=True, dir_okay=False)],
    keep: Annotated[bool, typer.Option("--keep", help="stay up afterwards, for browsing, until Ctrl-C")] = False,
) -> None:
    """Start the service, run the study of FILE through it, print its table; with --keep stay up."""
    from service.cli import rendering
    from service.cli.serving import service_of_home, wait_for_export
    from service.cli.watching import watch_study
    from service.client import Client
    from service.spec import load_spec

    spec = load_spec(file)
    console = rendering.console()
    stopping = threading.Event()
    with service_of_home(console, stopping) as (addresses, watch):
        with Client(addresses.api_url) as client:
            study = watch_study(client, client.submit(spec).id, console)
            wait_for_export(client, study.id)
        if not keep:
            console.print(f"all of it stays in {addresses.home}: `samstudy up` (make up) serves it again")
        else:
            console.print("\nthe service stays up; Ctrl-C stops it")
            with suppress(KeyboardInterrupt):
                while not stopping.wait(0.2):
                    watch()
    raise typer.Exit(0 if study.state is StudyState.SUCCEEDED else 1)
