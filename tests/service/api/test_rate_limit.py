"""The moving window by itself; test_access.py has the limit in front of the routes."""

from __future__ import annotations

import random

import pytest

from service.api.rate_limit import MovingWindow


class Clock:
    """A clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_no_minute_has_more_than_the_limit_and_nobody_waits_without_need() -> None:
    clock, chance = Clock(), random.Random(0)
    window = MovingWindow(5, clock)
    let_in: list[float] = []
    for _ in range(2_000):
        clock.now += chance.expovariate(1 / 6)
        within_a_minute = [at for at in let_in if at > clock.now - 60]
        wait_s = window.wait_s("ada")
        if len(within_a_minute) < 5:
            assert wait_s == 0
            let_in.append(clock.now)
        else:
            assert wait_s == pytest.approx(within_a_minute[0] + 60 - clock.now)
    assert 500 < len(let_in) < 2_000


def test_who_was_refused_comes_in_when_told() -> None:
    clock = Clock()
    window = MovingWindow(1, clock)
    assert window.wait_s("ada") == 0
    clock.now += 20
    assert window.wait_s("ada") == pytest.approx(40)
    assert window.wait_s("bob") == 0
    clock.now += 40
    assert window.wait_s("ada") == 0


def test_askers_are_forgotten_after_a_minute_without_a_request() -> None:
    clock = Clock()
    window = MovingWindow(3, clock)
    for number in range(1_000):
        window.wait_s(f"address 2001:db8::{number:x}")
    clock.now += 30
    window.wait_s("ada")
    clock.now += 31
    window.wait_s("bob")
    assert len(window._let_in_at) == 2
    assert [window.wait_s("ada") for _ in range(3)][-1] == pytest.approx(29)
