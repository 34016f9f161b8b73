"""How large a request's body may be, whether its route reads it or not."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.api.problems import BodyTooLargeError
from service.api.requests import MAX_BODY_BYTES

_MAX_DIGITS = 20


class BodyLimit:
    """ASGI middleware: no route begins its work before it is known that the body is not too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        try:
            if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > MAX_BODY_BYTES):
                raise _too_large()
            if "transfer-encoding" in headers:  # whose length nobody knows before its end
                receive = _first(await _whole_body(receive), then=receive)
        except BodyTooLargeError as error:
            await problems.answer(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"the body must be at most {MAX_BODY_BYTES:,} bytes")


async def _whole_body(receive: Receive) -> list[Message]:
    """The messages that carry the body, or as much of it as came before the client hung up."""
    messages: list[Message] = []
    size_bytes = 0
    while not messages or messages[-1].get("more_body", False):
        message = await receive()
        messages.append(message)
        size_bytes += len(message.get("body", b""))
        if size_bytes > MAX_BODY_BYTES:
            raise _too_large()
    return messages


def _first(messages: list[Message], *, then: Receive) -> Receive:
    """Receives these messages again, and then what follows."""
    left = iter(messages)

    async def receive() -> Message:
        message = next(left, None)
        return await then() if message is None else message

    return receive
