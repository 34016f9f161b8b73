"""Who still waits for an answer when the process has to end is told so: uvicorn would say "Internal Server Error"."""

from __future__ import annotations

import asyncio
import threading

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.errors import StoppingError


class Farewell:
    """ASGI middleware: what uvicorn cancels at the end of its patience ends with an answer, or without the rest of one,
    and without a traceback in the log.

    What the request has asked for may come to be or not, as when the process is killed.
    """

    def __init__(self, app: ASGIApp, stopping: threading.Event) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def observed_send(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            if not is_answered:
                error = StoppingError("the service was stopped before the answer was there: ask again when it is back")
                await problems.answer(error, scope)(scope, receive, send)
