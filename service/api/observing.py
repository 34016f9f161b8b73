"""Around every request: an id, its latency, a line in the log, and an answer where a defect would have left none."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.access import Principal
from service.api import problems
from service.api.access import METRICS, PRINCIPAL, PROBES
from service.api.metrics import Metrics, method_label

REQUEST_ID_HEADER = "X-Request-ID"

_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NO_ROUTE = "none"
_LONGEST_ID = 80  # what is longer is none, and is refused
_ROUTINE = (*PROBES, METRICS)

log = logging.getLogger(__name__)
access_log = logging.getLogger("service.api.access_log")


class Observation:
    """ASGI middleware: gives every request an id, measures it, and turns unexpected errors into problem documents.

    Every request is a line in the access log once its answer has ended: at the level INFO, those of probes at DEBUG.
    The line has the route's template and the ids in the path, but nothing else that the request said.
    """

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
        status: int | None = None

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                seconds = time.perf_counter() - started
                self._metrics.answered(scope["method"], _route(scope), message["status"], seconds)
            await send(message)

        with logs.about(request_id=request_id):
            try:
                await self._app(scope, receive, observed_send)
            except Exception:
                log.exception("%s %r failed", method_label(scope["method"]), scope["path"])
                if status is not None:
                    raise
                await problems.unexpected(request_id)(scope, receive, observed_send)
            finally:
                _log_access(scope, status, time.perf_counter() - started)


def _log_access(scope: Scope, status: int | None, seconds: float) -> None:
    """status: None where the client was gone before there was one."""
    route = _route(scope)
    level = logging.DEBUG if route.endswith(_ROUTINE) and status == 200 else logging.INFO
    if not access_log.isEnabledFor(level):
        return
    principal: Principal | None = scope.get(PRINCIPAL)
    method = method_label(scope["method"])
    fields = {
        "method": method,
        "route": route,
        "status": status,
        "duration_ms": round(1000 * seconds, 1),
        "owner": principal.owner if principal else None,
        "key_id": principal.key_id if principal else None,
        "client": (scope.get("client") or (None,))[0],
        **{name: value[:_LONGEST_ID] for name, value in scope.get("path_params", {}).items() if name.endswith("_id")},
    }
    access_log.log(level, "%s %s", method, route, extra=fields)


def _route(scope: Scope) -> str:
    """The template of the path, such as /api/v1/studies/{study_id}; "none" where no route matched.

    The route knows its path below the prefix that its router was included with, which has no parameters.
    """
    route: str | None = getattr(scope.get("route"), "path", None)
    if route is None:
        return _NO_ROUTE
    prefix: list[str] = scope["path"].split("/")[: scope["path"].count("/") - route.count("/") + 1]
    return "/".join(prefix) + route
