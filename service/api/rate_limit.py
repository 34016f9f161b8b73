"""How often one key, or one address where no key is needed, may ask: counted by each API process for itself."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import Principal
from service.api import problems
from service.api.access import PRINCIPAL
from service.errors import TooManyRequestsError


class RateLimit:
    """ASGI middleware behind the authentication: what needs no key, such as probes, is not counted."""

    def __init__(self, app: ASGIApp, requests_per_minute: int) -> None:
        """requests_per_minute: above 0."""
        self._app = app
        self._limit = RateLimitItemPerMinute(requests_per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get(PRINCIPAL)
        if principal is None or self._limiter.hit(self._limit, asker := asker_of(principal, scope)):
            await self._app(scope, receive, send)
            return
        wait_s = max(1, math.ceil(self._limiter.get_window_stats(self._limit, asker).reset_time - time.time()))
        error = TooManyRequestsError(
            f"more than {self._limit.amount:,} requests within a minute: try again in {wait_s} s "
            "(SAMSTUDY_REQUESTS_PER_MINUTE is the limit)"
        )
        headers = {"Retry-After": str(wait_s)}
        await problems.answer(error, scope.get("request_id"), headers)(scope, receive, send)


def asker_of(principal: Principal, scope: Scope) -> str:
    """Who is counted: a key, or an address where no key is needed."""
    if principal.key_id is not None:
        return f"key {principal.key_id}"
    return f"address {(scope.get('client') or ('',))[0]}"
