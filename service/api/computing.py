"""Answers that take seconds of a core: one at a time, beside the requests' threads, and each computed once."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from service.api.asking import ask_for
from service.api.places import Places
from service.errors import TooManyRequestsError

Answer = TypeVar("Answer")

_EACH, _WAITING = 2, 8
_REMEMBERED = 128


class ComputingBusyError(TooManyRequestsError):
    """As many answers as may be are being computed; sent with Retry-After."""

    retry_after_s = 5


class Computing:
    """Computes one answer after the other, at most two of an owner and a few in all, and remembers the last ones.

    Who asks for what is being computed waits for the same answer. Threads of requests do not wait, nor does the event
    loop.
    """

    def __init__(self, *, waiting: int = _WAITING, remembered: int = _REMEMBERED) -> None:
        """waiting: answers that are being computed or wait for that, of all owners."""
        self._places = Places(each=_EACH, of_all=waiting)
        self._remembered = remembered
        self._answers: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._asked_for: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def answer(self, question: Hashable, owner: str, compute: Callable[[], Answer]) -> Answer:
        """What `compute` returns, or has returned to the same question.

        question: all that the answer depends on. Raises ComputingBusyError, and what `compute` raises.
        """
        found = self._answers.get(question)
        if found is None or (found.done() and found.exception() is not None):
            found = self._ask(question, owner, compute)
        self._answers.move_to_end(question)
        return cast(Answer, await asyncio.shield(asyncio.wrap_future(found)))

    def _ask(self, question: Hashable, owner: str, compute: Callable[[], Answer]) -> Future[Answer]:
        if not self._places.take(owner):
            raise ComputingBusyError(
                f"{_EACH} answers are being computed for {owner!r} already, or as many as may be for all: try again "
                f"in {ComputingBusyError.retry_after_s} s"
            )
        try:
            self._start()
        except RuntimeError:  # the machine has no thread left
            self._places.leave(owner)
            raise
        asked: Future[Answer] = Future()
        asked.set_running_or_notify_cancel()  # who gives up waiting cancels it for nobody else
        asked.add_done_callback(lambda _: self._places.leave(owner))
        self._answers[question] = asked
        self._asked_for.put((asked, compute))
        for old in [key for key, answer in self._answers.items() if answer.done()][: -self._remembered or None]:
            del self._answers[old]
        return asked

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="computing", daemon=True)  # the process ends without it
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            asked, compute = self._asked_for.get()
            ask_for(asked, compute)
