"""Names of receivers looked up while their webhooks are made: few at a time, and beside the requests' threads."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from service.api.places import Places
from service.errors import TooManyRequestsError
from service.receivers import Receiver, Resolver, checked_addresses, resolve

AT_ONCE = 2
TIMEOUT_S = 3.0
_LOOK_S = 0.1


class LookupsBusyError(TooManyRequestsError):
    """As many names as may be are being looked up; sent with Retry-After."""

    retry_after_s = 5


class Lookups:
    """At most AT_ONCE lookups in the process, and one of an owner, so that nobody keeps all others waiting.

    A lookup counts until its name server has answered, which nothing can cut short, also where nobody waits any more.
    """

    def __init__(self, resolver: Resolver = resolve, *, timeout_s: float = TIMEOUT_S) -> None:
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._places = Places(each=1, of_all=AT_ONCE)
        self._waiting = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lookup")

    async def check(self, receiver: Receiver, owner: str, *, allow_private: bool) -> None:
        """Raises RefusedReceiverError, LookupsBusyError, and OSError where the name did not resolve in time."""
        await self._take_place(owner)

        def resolver(host: str, port: int) -> list[str]:
            try:
                return self._resolver(host, port)
            finally:
                self._places.leave(owner)

        checked = partial(
            checked_addresses, receiver, allow_private=allow_private, timeout_s=self._timeout_s, resolver=resolver
        )
        try:
            await asyncio.get_running_loop().run_in_executor(self._waiting, checked)
        except RuntimeError:  # the machine has no thread left, so that nobody was asked
            self._places.leave(owner)
            raise

    async def _take_place(self, owner: str) -> None:
        """Waits for one in no thread, and no longer than for a lookup."""
        deadline = time.monotonic() + self._timeout_s
        while not self._places.take(owner):
            if time.monotonic() >= deadline:
                raise LookupsBusyError(
                    f"{AT_ONCE} receivers' names are being looked up already, or one for {owner!r}: try again in "
                    f"{LookupsBusyError.retry_after_s} s"
                )
            await asyncio.sleep(_LOOK_S)
