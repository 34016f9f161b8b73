"""The application and the process that serves it."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from service.addresses import is_loopback
from service.api import (
    checkpoints,
    configurations,
    documentation,
    events,
    exports,
    findings,
    health,
    keys,
    lifecycle,
    logs,
    openapi,
    problems,
    search_spaces,
    studies,
    trials,
    webhooks,
)
from service.api.access import Authentication, Lock, allowed_names, open_paths
from service.api.body_limit import BodyLimit
from service.api.computing import Computing
from service.api.farewell import Farewell
from service.api.lookups import Lookups
from service.api.metrics import Metrics
from service.api.observing import Observation
from service.api.parameters import KnownParameters
from service.api.problems import documented
from service.api.rate_limit import RateLimit
from service.api.readiness import Readiness
from service.api.storage_reads import StorageReads
from service.api.streams import OpenStreams
from service.errors import InvalidRequestError, SamstudyError, StoreUnavailableError
from service.memory import keep_what_is_there
from service.settings import Settings
from service.store.database import MAX_CONNECTIONS, Database
from service.store.keys import KeyStore
from service.store.watching import WatchingStore

PREFIX = "/api/v1"

_IDLE_S = 75  # longer than proxies and balancers keep a connection: else they send to one that is just being closed
_GRACE_S = 3
_STATEMENT_S = 30.0  # longer than any answer should take


def _routes() -> list[BaseRoute]:
    """Every path of the API under its prefix. Made once in a process: each is compiled when it is first asked for."""
    router = APIRouter()
    for module in (
        studies,
        lifecycle,
        checkpoints,
        configurations,
        trials,
        logs,
        events,
        findings,
        exports,
        search_spaces,
        keys,
        webhooks,
    ):
        router.include_router(
            module.router, prefix=PREFIX, dependencies=[KnownParameters], responses=documented(InvalidRequestError)
        )
    router.include_router(health.router)
    router.include_router(health.router, prefix=PREFIX, include_in_schema=False)  # behind a proxy of the prefix alone
    return router.routes


_ROUTES = _routes()


class RefusedToStartError(SamstudyError):
    """There is nowhere to listen, or the API would be open to people whom nobody let in."""

    code = "refused_to_start"
    title = "The API does not start like this"


def create_app(database: Database, settings: Settings) -> FastAPI:
    """The application over one study store."""
    app = FastAPI(
        title="samstudy",
        version="1",
        docs_url=None,  # FastAPI's own pages need a CDN
        redoc_url=None,
        redirect_slashes=False,
        routes=[*_ROUTES],
        lifespan=_with_a_thread_for_each_connection,
        description="Hyperparameter studies of sharpness-aware training. Errors are `application/problem+json`.",
    )
    app.state.database = database
    app.state.settings = settings
    app.state.metrics = Metrics(WatchingStore(database))
    app.state.tells_of_the_store = is_loopback(settings.host)
    app.state.readiness = Readiness(database)
    app.state.open_streams = OpenStreams(settings.max_streams)
    app.state.lookups = Lookups()
    app.state.computing = Computing()
    app.state.exports = exports.Exports()
    app.state.storage_reads = StorageReads()
    app.state.stopping = threading.Event()
    app.add_middleware(BodyLimit)  # the innermost: who may not come in is told so first
    if settings.requests_per_minute:
        app.add_middleware(RateLimit, requests_per_minute=settings.requests_per_minute)
    local, key_store = is_loopback(settings.host), KeyStore(database)
    app.add_middleware(
        Authentication,
        keys=key_store,
        lock=Lock(key_store, opens=local or settings.allow_open_access),
        open_paths=open_paths(PREFIX, metrics=local),
        allowed_hosts=allowed_names(settings.allowed_hosts),
    )
    app.add_middleware(Farewell, stopping=app.state.stopping)
    app.add_middleware(Observation, metrics=app.state.metrics)  # the last one added is the outermost
    problems.install(app)
    documentation.install(app)
    openapi.install(app)
    return app


@asynccontextmanager
async def _with_a_thread_for_each_connection(_app: FastAPI) -> AsyncIterator[None]:
    """More threads would only wait for a connection, each with memory of its own."""
    current_default_thread_limiter().total_tokens = MAX_CONNECTIONS
    yield


def serve(settings: Settings) -> None:
    """Serves the API until SIGINT or SIGTERM.

    Raises RefusedToStartError for what is no address, and for one that others can reach while there is no key, unless
    the settings allow open access.
    """
    check_host(settings.host)
    database = Database(settings.store_url, statement_timeout_s=_STATEMENT_S)
    try:
        check_keys(settings, KeyStore(database))
        server = server_of(create_app(database, settings), settings)
        keep_what_is_there()
        server.run()
    finally:
        database.dispose()


def server_of(app: FastAPI, settings: Settings) -> Server:
    """The server of an application of `create_app`; it does not run yet."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # its lines are lines of the process' own log
        log_level="warning",
        access_log=False,
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),  # uvicorn would believe whoever is on this machine
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=_IDLE_S,
    )
    return Server(config, app.state.stopping)


def check_host(host: str) -> None:
    """Raises RefusedToStartError where it is no address and no name that has one."""
    try:
        socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise RefusedToStartError(
            f"SAMSTUDY_HOST must be an address or a name of this machine, got {host!r}: {error}"
        ) from None


def check_keys(settings: Settings, key_store: KeyStore) -> None:
    """Raises RefusedToStartError where other machines reach the API and no key keeps anybody out."""
    if is_loopback(settings.host) or settings.allow_open_access:
        return
    try:
        if key_store.any_valid():
            return
        lack = "there is no valid key to let anybody in: `samstudy keys create` makes one"
    except StoreUnavailableError as error:
        lack = f"whether there is a key cannot be told ({error.detail})"
    raise RefusedToStartError(
        f"SAMSTUDY_HOST is {settings.host!r}, which other machines can reach, and {lack}. Or bind 127.0.0.1, or set "
        "SAMSTUDY_ALLOW_OPEN_ACCESS=true where something in front takes care of access"
    )


class Server(uvicorn.Server):
    """A uvicorn server that tells endless answers to end when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)
