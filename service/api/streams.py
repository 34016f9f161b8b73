"""Answers that go on: how many a caller may have open, how long its access lasts, and how they break off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

from service.api.access import ACCESS, Access
from service.api.places import Places
from service.api.rate_limit import asker_of
from service.errors import SamstudyError, TooManyRequestsError

log = logging.getLogger(__name__)


class BrokenOffError(Exception):
    """There is more, and this answer does not have it."""


class BreakingOffResponse(StreamingResponse):
    """An answer that is not brought to its proper end where it broke off, so that nobody takes it for the whole."""

    read_within_s: float | None = None
    """How long its reader may take no more of it; None: for ever."""

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self.read_within_s):
                    await send(message)
            except TimeoutError:
                raise BrokenOffError(f"its reader has taken nothing for {self.read_within_s:g} s") from None

        try:
            await super().stream_response(send_in_time)
        except BrokenOffError as error:
            log.warning("an answer breaks off: %s", error)


async def while_allowed(chunks: Iterator[bytes], access: Access, limiter: CapacityLimiter) -> AsyncIterator[bytes]:
    """The chunks, until the caller's access ends: then raises BrokenOffError.

    limiter: of the threads that make them.
    """
    while True:
        try:
            chunk = await anyio.to_thread.run_sync(next, chunks, None, limiter=limiter)
            await access.check()
        except SamstudyError as error:
            raise BrokenOffError(str(error)) from error
        if chunk is None:
            return
        yield chunk


class OpenStreams:
    """The event streams and followed logs of one API process, each of which looks at the store all the time."""

    def __init__(self, max_each: int) -> None:
        """max_each: of one caller; 0: any number."""
        self._max_each = max_each
        self._places = Places(each=max_each)

    @contextmanager
    def one_more(self, asker: str) -> Iterator[None]:
        """Raises TooManyRequestsError where the caller has as many open as one may have."""
        if not self._places.take(asker):
            raise TooManyRequestsError(
                f"at most {self._max_each} event streams and followed logs may be open at a time with one key, or from "
                "one address without keys: end one of them first (SAMSTUDY_MAX_STREAMS is the limit)"
            )
        try:
            yield
        finally:
            self._places.leave(asker)


Follow = Annotated[bool, Query(description="stay until the attempt has ended and all of it was sent")]


def _one_more(request: Request) -> AbstractContextManager[None]:
    open_streams: OpenStreams = request.app.state.open_streams
    return open_streams.one_more(asker_of(request.scope))


async def _place(request: Request) -> AsyncIterator[None]:
    """Held until the answer has ended, or its reader is gone."""
    with _one_more(request):
        yield


async def _place_of_follower(request: Request, follow: Follow = False) -> AsyncIterator[None]:
    if not follow:
        yield
        return
    with _one_more(request):
        yield


async def _access(request: Request) -> Access:
    access: Access = request.scope[ACCESS]
    return access


TheAccess = Annotated[Access, Depends(_access)]
APlace = Depends(_place)
APlaceOfFollower = Depends(_place_of_follower)
