"""Around every request: an id, its latency, and an answer where a defect of ours would have left none."""

from __future__ import annotations

import logging
import re
import secrets
import time

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.errors import StoreUnavailableError
from service.store.studies import StudyStore
from service.study import StudyState

REQUEST_ID_HEADER = "X-Request-ID"

_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NO_ROUTE = "none"

log = logging.getLogger(__name__)


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "samstudy_http_request_duration_seconds",
            "Time until an answer begins",
            ["method", "route", "status"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        )
        self._studies = Gauge("samstudy_studies", "Studies by state", ["state"], registry=self._registry)
        self._store_up = Gauge("samstudy_store_up", "1 where the study store answers", registry=self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answer; route: the template, so that ids make no series of their own."""
        self._latency.labels(method, route, str(status)).observe(seconds)

    def exposition(self, studies: StudyStore) -> bytes:
        """Everything in Prometheus' text format. A store that is down is a metric, not an error."""
        try:
            counts = studies.counts_by_state()
        except StoreUnavailableError:
            self._store_up.set(0)
        else:
            self._store_up.set(1)
            for state in StudyState:
                self._studies.labels(state.value).set(counts.get(state, 0))
        return generate_latest(self._registry)


class Observation:
    """ASGI middleware: gives every request an id, measures it, and turns unexpected errors into problem documents."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _ACCEPTED_REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope["request_id"] = request_id
        started = time.perf_counter()
        begun = False

        async def observed_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                seconds = time.perf_counter() - started
                self._metrics.answered(scope["method"], _route(scope), message["status"], seconds)
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception:
            log.exception("%s %s failed (request id %s)", scope["method"], scope["path"], request_id)
            if begun:
                raise
            await problems.unexpected(request_id)(scope, receive, observed_send)


def _route(scope: Scope) -> str:
    """The template of the path, such as /api/v1/studies/{study_id}; "none" where no route matched.

    The route knows its path below the prefix that its router was included with, which has no parameters.
    """
    route: str | None = getattr(scope.get("route"), "path", None)
    if route is None:
        return _NO_ROUTE
    prefix: list[str] = scope["path"].split("/")[: scope["path"].count("/") - route.count("/") + 1]
    return "/".join(prefix) + route
