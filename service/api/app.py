"""The application and the process that serves it."""

from __future__ import annotations

import ipaddress
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from service.api import configurations, events, health, openapi, problems, search_spaces, studies, trials
from service.api.observing import Metrics, Observation
from service.errors import SamstudyError
from service.settings import Settings
from service.store.database import Database

PREFIX = "/api/v1"

_GRACE_S = 3


class RefusedToStartError(SamstudyError):
    """The API would be open to people whom nobody let in."""

    code = "refused_to_start"
    title = "The API does not start like this"


def create_app(database: Database, settings: Settings) -> FastAPI:
    """The application over one study store."""
    app = FastAPI(
        title="samstudy",
        version="1",
        redirect_slashes=False,
        description="Hyperparameter studies of sharpness-aware training. Errors are `application/problem+json`.",
    )
    app.state.database = database
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.stopping = threading.Event()
    app.add_middleware(Observation, metrics=app.state.metrics)
    problems.install(app)
    for module in (studies, configurations, trials, events, search_spaces):
        app.include_router(module.router, prefix=PREFIX)
    app.include_router(health.router)
    app.include_router(health.router, prefix=PREFIX, include_in_schema=False)  # behind a proxy of the prefix alone
    app.add_api_route("/", _to_the_documentation, include_in_schema=False)
    openapi.install(app)
    return app


def serve(settings: Settings) -> None:
    """Serves the API until SIGINT or SIGTERM.

    Raises RefusedToStartError for an address that others can reach, unless the settings allow open access.
    """
    if not settings.allow_open_access:
        check_address(settings.host)
    database = Database(settings.store_url)
    app = create_app(database, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    try:
        Server(config, app.state.stopping).run()
    finally:
        database.dispose()


def check_address(host: str) -> None:
    """Raises RefusedToStartError unless only this machine can reach the address."""
    if host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise RefusedToStartError(
        f"SAMSTUDY_HOST is {host!r}, which other machines can reach, and there are no keys yet to keep anybody out: "
        "bind 127.0.0.1, or set SAMSTUDY_ALLOW_OPEN_ACCESS=true where something in front takes care of access"
    )


class Server(uvicorn.Server):
    """A uvicorn server that tells endless answers to end when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)


def _to_the_documentation() -> RedirectResponse:
    return RedirectResponse("/docs")
