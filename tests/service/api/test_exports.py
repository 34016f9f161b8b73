"""Tables to take away: they take nobody else's threads, and end with their reader's access."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CapacityLimiter
from starlette.testclient import TestClient

from service.api import exports
from service.api.access import Access
from service.api.streams import BreakingOffResponse, BrokenOffError, while_allowed
from service.errors import SamstudyError, StudyNotFoundError

if TYPE_CHECKING:
    from tests.service.conftest import Life


def test_exports_under_way_leave_the_other_requests_their_threads(
    api: TestClient, life: Life, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    study, goes_on, begun = life.create(), threading.Event(), threading.Event()
    write = exports.write_parquet

    def slow(*table: Any) -> None:
        begun.set()
        assert goes_on.wait(10)
        write(*table)

    monkeypatch.setattr(exports, "write_parquet", slow)
    path = f"studies/{study.id}/export?format=parquet"
    with ThreadPoolExecutor() as pool:
        under_way = [pool.submit(api.get, path) for _ in range(2)]
        assert begun.wait(10)
        wait_until(lambda: api.app.state.exports._places._held.total() == 2)
        refused = api.get(path)
        assert (refused.json()["code"], refused.headers["Retry-After"]) == ("too_many_requests", "5")
        assert (
            "at most 2 exports at a time, checkpoints among them, are answered to one key" in refused.json()["detail"]
        )
        assert api.get("studies").status_code == 200
        goes_on.set()
        assert [answer.result(10).status_code for answer in under_way] == [200, 200]
    assert api.get(path).status_code == 200


def test_not_more_than_a_few_are_answered_to_all() -> None:
    under_way = exports.Exports()
    held = [under_way.one_more(f"key {number // 2}") for number in range(6)]
    for place in held:
        place.__enter__()
    with pytest.raises(exports.ExportsBusyError, match="6 to all"), under_way.one_more("key 9"):
        pass
    held[0].__exit__(None, None, None)
    with under_way.one_more("key 9"):
        pass


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def _read(chunks: Iterator[bytes], access: Access, into: list[bytes]) -> None:
    async for chunk in while_allowed(chunks, access, CapacityLimiter(1)):
        into.append(chunk)


def test_an_answer_that_goes_on_ends_with_its_readers_key() -> None:
    clock, lasts, read = Clock(), True, list[bytes]()

    def chunks() -> Iterator[bytes]:
        nonlocal lasts
        yield b"first"
        clock.now_s += 2
        yield b"second"
        lasts = False
        yield b"within the second for which the key is known"
        clock.now_s += 2
        yield b"nothing of this"

    with pytest.raises(BrokenOffError, match="the access has ended"):
        asyncio.run(_read(chunks(), Access(lambda: lasts, clock), read))
    assert len(read) == 3


def test_a_reader_that_takes_nothing_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    class Answer(BreakingOffResponse):
        read_within_s = 0.05

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body") == b"second":
            await asyncio.sleep(30)

    answer = Answer(while_allowed(iter([b"first", b"second", b"third"]), Access(lambda: True), CapacityLimiter(1)))
    asyncio.run(answer.stream_response(send))
    assert [message.get("body") for message in sent[1:]] == [b"first", b"second"]
    assert "its reader has taken nothing for 0.05 s" in caplog.text


def test_an_answer_breaks_off_where_what_it_tells_of_is_gone() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"first"
        raise StudyNotFoundError("there is no study 'gone'")

    read: list[bytes] = []
    with pytest.raises(BrokenOffError, match="no study 'gone'") as broken:
        asyncio.run(_read(chunks(), Access(lambda: True), read))
    assert isinstance(broken.value.__cause__, SamstudyError)
    assert read == [b"first"]
