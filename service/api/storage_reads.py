"""Reads of the storage: in threads of their own, and nobody waits long for a storage that says nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from service.api.asking import ask_for
from service.api.places import Places
from service.api.rate_limit import asker_of

EACH, OF_ALL = 8, 32
PATIENCE_S = 10.0
_LOOK_S = 0.05

Found = TypeVar("Found")


class StorageReads:
    """At most OF_ALL reads in the process, and EACH of a caller. The requests' threads take no part in them.

    A read counts until the storage has answered, which nothing can cut short, also where nobody waits any more.
    """

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._places = Places(each=EACH, of_all=OF_ALL)

    async def read(self, asker: str, ask: Callable[[], Found]) -> Found:
        """What `ask` answers. Raises what it raises, and OSError where it has not answered in time."""
        deadline = time.monotonic() + self._patience_s
        while not self._places.take(asker):
            if time.monotonic() >= deadline:
                raise OSError("the storage is busy with other reads, or does not answer them")
            await asyncio.sleep(_LOOK_S)
        answer: Future[Found] = Future()
        answer.set_running_or_notify_cancel()  # who gives up waiting cancels nothing

        def run() -> None:
            try:
                ask_for(answer, ask)
            finally:
                self._places.leave(asker)

        try:
            # A daemon: a process that ends does not wait for the storage.
            threading.Thread(target=run, name="storage", daemon=True).start()
        except RuntimeError:  # the machine has no thread left
            self._places.leave(asker)
            raise
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if answer.done():  # the storage's own
                raise
            raise OSError(f"the storage has not answered within {self._patience_s:g} s") from None


class StorageReader:
    """The reads of one caller."""

    def __init__(self, reads: StorageReads, asker: str) -> None:
        self._reads = reads
        self._asker = asker

    async def read(self, ask: Callable[[], Found]) -> Found:
        """What `ask` answers. Raises what it raises, and OSError where it has not answered in time."""
        return await self._reads.read(self._asker, ask)

    async def each(self, parts: Iterator[Found]) -> AsyncIterator[Found]:
        """The parts, none of them None, each made by one read. Raises what making them raises, and OSError."""
        while (part := await self.read(lambda: next(parts, None))) is not None:
            yield part


async def _reader(request: Request) -> StorageReader:
    return StorageReader(request.app.state.storage_reads, asker_of(request.scope))


TheStorage = Annotated[StorageReader, Depends(_reader)]
