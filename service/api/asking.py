"""Questions to something that may say nothing: one thread asks at a time, and nobody waits for it without end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Asked(Generic[Answer]):
    """answer: of which there is none yet while it is being asked. deadline: of time.monotonic()."""

    deadline: float
    answer: Future[Answer] = field(default_factory=Future)

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


def ask_for(answer: Future[Answer], ask: Callable[[], Answer]) -> None:
    """Asks in this thread; who waits for the answer has it, or what asking raises."""
    try:
        found = ask()
    except Exception as error:  # noqa: BLE001 – it is raised where the answer is waited for
        answer.set_exception(error)
    else:
        answer.set_result(found)


class Question(Generic[Answer]):
    """A question that many have, asked anew once its answer is too old.

    All wait for the same answer, until `patience_s` after it was asked for; who comes later is told at once that there
    is none. It is asked in a thread of its own, so that what never answers costs that one thread and no other.
    """

    def __init__(
        self,
        ask: Callable[[], Answer],
        *,
        good_for_s: float,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: by which an answer gets old."""
        self._ask = ask
        self._good_for_s = good_for_s
        self._patience_s = patience_s
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: _Asked[Answer] | None = None
        self._good_until = float("-inf")

    def answer(self) -> Answer:
        """Waits in this thread. Raises TimeoutError, and what the question raises."""
        asked = self._current()
        return asked.answer.result(asked.left_s)

    async def answer_later(self) -> Answer:
        """Waits in no thread. Raises TimeoutError, and what the question raises."""
        asked = self._current()
        if asked.answer.done():  # the event loop would hear of it only later
            return asked.answer.result()
        return await asyncio.wait_for(asyncio.wrap_future(asked.answer), asked.left_s)

    def _current(self) -> _Asked[Answer]:
        with self._lock:
            asked = self._asked
            if asked is None or (asked.answer.done() and self._clock() >= self._good_until):
                asked = self._asked = _Asked(time.monotonic() + self._patience_s)
                asked.answer.set_running_or_notify_cancel()  # who gives up waiting cancels it for nobody else
                thread = threading.Thread(target=self._run, args=(asked.answer,), name="asking", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the machine has no thread left at the moment
                    asked.answer.set_exception(error)
            return asked

    def _run(self, answer: Future[Answer]) -> None:
        def ask() -> Answer:
            found = self._ask()
            self._good_until = self._clock() + self._good_for_s
            return found

        ask_for(answer, ask)
