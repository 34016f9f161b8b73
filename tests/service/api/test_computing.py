"""Answers that take seconds: none is computed twice, and nobody fills the queue."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from service.api.computing import Computing, ComputingBusyError


class Slow:
    """Computations that go on once they are let go."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.begun: list[str] = []
        self.at_once = self.most_at_once = 0

    def of(self, name: str) -> Callable[[], str]:
        def compute() -> str:
            self.begun.append(name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            assert self.goes_on.wait(10)
            self.at_once -= 1
            return name.upper()

        return compute


def test_one_after_the_other_and_the_same_question_once() -> None:
    async def asked() -> None:
        computing, slow = Computing(), Slow()
        names = ["a", "b", "a", "c", "b"]
        answers = [
            asyncio.create_task(computing.answer(name, owner, slow.of(name)))
            for name, owner in zip(names, ["ada", "bob", "bob", "cyd", "ada"], strict=True)
        ]
        await asyncio.sleep(0.1)
        slow.goes_on.set()
        assert await asyncio.gather(*answers) == ["A", "B", "A", "C", "B"]
        assert (slow.begun, slow.most_at_once) == (["a", "b", "c"], 1)
        assert await computing.answer("a", "ada", slow.of("a")) == "A"
        assert slow.begun == ["a", "b", "c"]

    asyncio.run(asked())


def test_nobody_fills_the_queue() -> None:
    async def asked() -> None:
        computing, slow = Computing(waiting=3), Slow()
        first = [asyncio.create_task(computing.answer(n, "mallory", slow.of(str(n)))) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ComputingBusyError, match="2 answers are being computed for 'mallory' already"):
            await computing.answer(2, "mallory", slow.of("2"))
        other = asyncio.create_task(computing.answer(3, "ada", slow.of("3")))
        await asyncio.sleep(0)
        with pytest.raises(ComputingBusyError, match="as many as may be for all"):
            await computing.answer(4, "bob", slow.of("4"))
        slow.goes_on.set()
        await asyncio.gather(*first, other)
        assert await computing.answer(2, "mallory", slow.of("2")) == "2"

    asyncio.run(asked())


def test_who_goes_away_ends_nothing_for_the_others() -> None:
    async def asked() -> None:
        computing, slow = Computing(), Slow()
        gone, stays = (asyncio.create_task(computing.answer("a", "ada", slow.of("a"))) for _ in range(2))
        await asyncio.sleep(0.05)
        gone.cancel()
        slow.goes_on.set()
        assert await stays == "A"
        assert slow.begun == ["a"]

    asyncio.run(asked())


def test_a_process_ends_without_what_is_being_computed() -> None:
    program = (
        "import asyncio, time; from service.api.computing import Computing; computing = Computing();"
        "asyncio.run(asyncio.wait_for(computing.answer(1, 'ada', lambda: time.sleep(60)), 0.1))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert "TimeoutError" in ended.stderr


def test_a_failure_is_told_and_not_remembered() -> None:
    async def asked() -> None:
        computing = Computing()

        def fails() -> str:
            raise ArithmeticError("no")

        with pytest.raises(ArithmeticError):
            await computing.answer("a", "ada", fails)
        assert await computing.answer("a", "ada", lambda: "yes") == "yes"

    asyncio.run(asked())


def test_the_last_ones_are_remembered_and_no_more() -> None:
    async def asked() -> None:
        computing, begun = Computing(remembered=2), list[int]()

        def of(n: int) -> Callable[[], int]:
            def compute() -> int:
                begun.append(n)
                return n

            return compute

        for n in (1, 2, 1, 3, 4, 1, 2):
            assert await computing.answer(n, "ada", of(n)) == n
        assert begun == [1, 2, 3, 4, 2]

    asyncio.run(asked())
