"""How large a request's body may be, whether its route reads it or not, and how long it may take to come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.api.places import Places
from service.api.rate_limit import asker_of
from service.api.requests import MAX_BODY_BYTES
from service.errors import BodyTooLargeError, BodyTooSlowError, SamstudyError, TooManyRequestsError

BODY_S = 30.0
"""How long a body may take from the moment at which it is read."""

_EACH = 50
_MAX_DIGITS = 20


class BodyLimit:
    """ASGI middleware: a body is whole, in time and not too large, or its route never begins.

    What has come of a body is held in memory, so that of those that are on their way one caller has so many at most.
    """

    def __init__(self, app: ASGIApp, *, within_s: float = BODY_S, each: int = _EACH) -> None:
        """each: bodies of one caller that are on their way at a time."""
        self._app = app
        self._within_s = within_s
        self._each = each
        self._places = Places(each=each)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        try:
            if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > MAX_BODY_BYTES):
                raise _too_large()
            if length.strip("0") or "transfer-encoding" in headers:  # of the latter nobody knows the length
                with self._one_more(scope):
                    messages = await self._whole_body(receive)
                if messages[-1]["type"] == "http.disconnect":  # and nobody reads an answer
                    return
                receive = _first(messages, then=receive)
        except SamstudyError as error:
            await problems.answer(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    @contextmanager
    def _one_more(self, scope: Scope) -> Iterator[None]:
        asker = asker_of(scope)
        if not self._places.take(asker):
            raise TooManyRequestsError(
                f"at most {self._each} bodies at a time may be on their way with one key, or from one address without "
                "keys: send the rest of one of them first"
            )
        try:
            yield
        finally:
            self._places.leave(asker)

    async def _whole_body(self, receive: Receive) -> list[Message]:
        """The messages that carry the body, or as much of it as came, and that the client hung up."""
        messages: list[Message] = []
        size_bytes = 0
        try:
            async with asyncio.timeout(self._within_s):
                while not messages or messages[-1].get("more_body", False):
                    message = await receive()
                    messages.append(message)
                    size_bytes += len(message.get("body", b""))
                    if size_bytes > MAX_BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            raise BodyTooSlowError(
                f"the body must be there within {self._within_s:g} s, and {size_bytes:,} bytes of it were"
            ) from None
        return messages


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"the body must be at most {MAX_BODY_BYTES:,} bytes")


def _first(messages: list[Message], *, then: Receive) -> Receive:
    """Receives these messages again, and then what follows."""
    left = iter(messages)

    async def receive() -> Message:
        message = next(left, None)
        return await then() if message is None else message

    return receive
