"""The service that a command works with: the one that runs, or one of its own for as long as the command takes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from service.errors import ServiceUnavailableError
from service.settings import settings

if TYPE_CHECKING:
    from rich.console import Console

    from service.addresses import Addresses
    from service.client import Client

_EXPORT_DEADLINE_S = 60.0


@contextmanager
def service_of_home(console: Console, stopping: threading.Event) -> Iterator[tuple[Addresses, Callable[[], None]]]:
    """The service of this home: the one that runs, or one of our own until the block ends.

    Beside its addresses comes a function that starts again what has ended of a service of our own.
    """
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


def wait_for_export(client: Client, study_id: str) -> None:
    """MLflow follows the store by a second or so; raises ServiceUnavailableError where it does not."""
    deadline = time.monotonic() + _EXPORT_DEADLINE_S
    while not client.study(study_id).is_exported:
        if time.monotonic() > deadline:
            raise ServiceUnavailableError(f"MLflow has not everything of study {study_id}; see the controller's log")
        time.sleep(0.2)
