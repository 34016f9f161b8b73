"""A limit on the time that something takes, kept in the middle of it and not only after it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 0.25


class OutOfTimeError(BaseException):
    """The time is up. No Exception, like KeyboardInterrupt, lest code on the way take it for a failure of its own."""


@contextmanager
def time_limit(deadline: float | None) -> Iterator[None]:
    """Raises OutOfTimeError within once `time.monotonic()` has reached the deadline; None: there is none.

    In the main thread of a process it interrupts whatever Python code runs there, and a call into a library as soon as
    that returns; not an import, whose module would stay half made for all that comes later in the process. Elsewhere,
    where signals cannot be used, the deadline is looked at only on entering. The handler of SIGALRM and the timer that
    were there before are there again afterwards.
    """
    if deadline is None:
        yield
        return
    if time.monotonic() >= deadline:
        raise OutOfTimeError
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, _interrupt)
    began = time.monotonic()
    # Again and again, because an exception that comes up in a destructor or a callback of C is dropped there.
    delay_s, interval_s = signal.setitimer(signal.ITIMER_REAL, max(1e-6, deadline - began), _AGAIN_S)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # for certain, even if the alarm came a moment before it was taken back
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if delay_s:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, began + delay_s - time.monotonic()), interval_s)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    if not _imports(frame):  # else the next alarm comes later
        raise OutOfTimeError


def _imports(frame: FrameType | None) -> bool:
    """Whether one of the calls that are under way is an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
