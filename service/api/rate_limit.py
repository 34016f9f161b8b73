"""How often one key, or one address where no key is needed, may ask: counted by each API process for itself."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import Principal
from service.api import problems
from service.api.access import PRINCIPAL
from service.errors import TooManyRequestsError

_MINUTE_S = 60.0


class RateLimit:
    """ASGI middleware behind the authentication: what needs no key, such as probes, is not counted."""

    def __init__(self, app: ASGIApp, requests_per_minute: int) -> None:
        """requests_per_minute: above 0."""
        self._app = app
        self._window = MovingWindow(requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get(PRINCIPAL)
        wait_s = self._window.wait_s(asker_of(scope)) if principal else 0.0
        if not wait_s:
            await self._app(scope, receive, send)
            return
        seconds = max(1, math.ceil(wait_s))
        error = TooManyRequestsError(
            f"more than {self._window.most:,} requests within a minute: try again in {seconds} s "
            "(SAMSTUDY_REQUESTS_PER_MINUTE is the limit)"
        )
        headers = {"Retry-After": str(seconds)}
        await problems.answer(error, scope, headers)(scope, receive, send)


class MovingWindow:
    """Lets each asker in so many times within any minute; who is refused is not counted. For the event loop's thread.

    Why not the library `limits`: its memory starts a thread for nearly every request, and the event loop, with all
    that it serves, waits until that thread has had its turn among those that answer.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """most: within a minute, above 0."""
        self.most = most
        self._clock = clock
        self._let_in_at: dict[str, deque[float]] = {}
        self._tidy_at = clock() + _MINUTE_S

    def wait_s(self, asker: str) -> float:
        """Seconds until this asker may come in; 0: it has come in just now."""
        now = self._clock()
        if now >= self._tidy_at:
            self._tidy(now)
        times = self._let_in_at.setdefault(asker, deque())
        while times and times[0] <= now - _MINUTE_S:
            times.popleft()
        if len(times) >= self.most:
            return times[0] + _MINUTE_S - now
        times.append(now)
        return 0.0

    def _tidy(self, now: float) -> None:
        """Forgets who has not been let in for a minute."""
        self._let_in_at = {
            asker: times for asker, times in self._let_in_at.items() if times and times[-1] > now - _MINUTE_S
        }
        self._tidy_at = now + _MINUTE_S


def asker_of(scope: Scope) -> str:
    """Who is counted: a key, or an address where no key is needed."""
    principal: Principal | None = scope.get(PRINCIPAL)
    if principal is not None and principal.key_id is not None:
        return f"key {principal.key_id}"
    return f"address {(scope.get('client') or ('',))[0]}"
