"""What the controller's process does again and again."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

from service.controlling import repeat
from service.errors import StoreUnavailableError


def test_an_action_that_fails_is_done_again(wait_until: Callable[..., None]) -> None:
    stopping, calls = Event(), []

    def action() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise (StoreUnavailableError("down") if len(calls) == 1 else RuntimeError("a defect"))

    thread = Thread(target=repeat, args=(action, stopping, 0.001))
    thread.start()
    wait_until(lambda: len(calls) >= 5)
    stopping.set()
    thread.join(5)
    assert not thread.is_alive()


def test_an_action_hears_how_long_its_process_stood_still(wait_until: Callable[..., None]) -> None:
    stopping, seconds, heard = Event(), iter([0.0, 0.25, 10.0, 40.25]), list[float]()

    def hear(stood_s: float) -> None:
        heard.append(stood_s)
        if len(heard) == 2:
            stopping.set()

    repeat(lambda: None, stopping, 0.25, stood_still=hear, clock=lambda: next(seconds))
    assert heard == [0.0, 30.0]
