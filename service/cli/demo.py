"""`samstudy demo FILE`: the whole way of one study on this machine, from nothing to its table."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import ServiceUnavailableError
from service.settings import settings
from service.study import StudyState

if TYPE_CHECKING:
    from rich.console import Console

    from service.addresses import Addresses
    from service.client import Client

_EXPORT_DEADLINE_S = 60.0


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command()(demo)


def demo(
    file: Annotated[Path, typer.Argument(help="the study spec, YAML or JSON", exists=True, dir_okay=False)],
    keep: Annotated[bool, typer.Option("--keep", help="stay up afterwards, for browsing, until Ctrl-C")] = False,
) -> None:
    """Start the service, run the study of FILE through it, print its table; with --keep stay up."""
    from service.cli import rendering
    from service.cli.watching import watch_study
    from service.client import Client
    from service.spec import load_spec

    spec = load_spec(file)
    console = rendering.console()
    stopping = threading.Event()
    with _service(console, stopping) as (addresses, watch):
        with Client(addresses.api_url) as client:
            study = watch_study(client, client.submit(spec).id, console)
            _wait_for_export(client, study.id)
        if not keep:
            console.print(f"all of it stays in {addresses.home}: `samstudy up` (make up) serves it again")
        else:
            console.print("\nthe service stays up; Ctrl-C stops it")
            with suppress(KeyboardInterrupt):
                while not stopping.wait(0.2):
                    watch()
    raise typer.Exit(0 if study.state is StudyState.SUCCEEDED else 1)


@contextmanager
def _service(console: Console, stopping: threading.Event) -> Iterator[tuple[Addresses, Callable[[], None]]]:
    """The service of this home: the one that runs, or one of our own until the block ends."""
    from service.addresses import running_addresses

    running = running_addresses(settings().home)
    if running:
        console.print(f"using the service that runs at {running.api_url}")
        yield running, lambda: None
        return
    from service.embedded import embedded_service

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    started = time.monotonic()
    with ExitStack() as running_service:
        with console.status("starting the API, the controller, MLflow and Ray on this machine …"):
            service = embedded_service(settings(), log=console.print, stopping=stopping)
            addresses, watch = running_service.enter_context(service)
        console.print(f"up after {time.monotonic() - started:.0f} s")
        yield addresses, watch
        console.print("stopping the service …")


def _wait_for_export(client: Client, study_id: str) -> None:
    """MLflow follows the store by a second or so; raises ServiceUnavailableError where it does not."""
    deadline = time.monotonic() + _EXPORT_DEADLINE_S
    while not client.study(study_id).is_exported:
        if time.monotonic() > deadline:
            raise ServiceUnavailableError(f"MLflow has not everything of study {study_id}; see the controller's log")
        time.sleep(0.2)
