"""Bodies that are long on their way: for how long, and how many of one caller."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service.api.body_limit import BodyLimit


class Sender:
    """A client that has sent a part of its body, and sends the rest once it is told to, or never."""

    def __init__(self, body: bytes, *, chunked: bool = False) -> None:
        self.rest = asyncio.Event()
        self._pieces = [body[:3], body[3:]]
        length = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", str(len(body)).encode())
        self.scope = {"type": "http", "headers": [length], "client": ("192.0.2.1", 1)}
        self.answer: list[Any] = []

    async def receive(self) -> Any:
        if len(self._pieces) == 1:
            await self.rest.wait()
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces)}

    async def send(self, message: Any) -> None:
        self.answer.append(message)

    def problem(self) -> tuple[int, str]:
        start, body = self.answer
        return start["status"], json.loads(body["body"])["detail"]


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    more, content = True, b""
    while more:
        message = await receive()
        content, more = content + message["body"], message["more_body"]
    await send(content)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_does_not_come_is_not_waited_for(chunked: bool) -> None:
    async def sent() -> None:
        sender = Sender(b"never whole", chunked=chunked)
        await BodyLimit(echo, within_s=0.05)(sender.scope, sender.receive, sender.send)
        assert sender.problem() == (408, "the body must be there within 0.05 s, and 3 bytes of it were")

    asyncio.run(sent())


@pytest.mark.parametrize("chunked", [False, True])
def test_no_route_begins_with_half_a_body(chunked: bool) -> None:
    async def sent() -> None:
        sender = Sender(b"never whole", chunked=chunked)

        async def receive() -> Any:
            return await sender.receive() if len(sender._pieces) == 2 else {"type": "http.disconnect"}

        await BodyLimit(echo)(sender.scope, receive, sender.send)
        assert sender.answer == []

    asyncio.run(sent())


def test_one_caller_has_so_many_bodies_on_their_way_at_most() -> None:
    async def sent() -> None:
        limit = BodyLimit(echo, each=2)
        slow, other, refused = [Sender(b"the whole") for _ in range(2)], Sender(b"another"), Sender(b"refused")
        under_way = [asyncio.create_task(limit(one.scope, one.receive, one.send)) for one in slow]
        await asyncio.sleep(0)
        await limit(refused.scope, refused.receive, refused.send)
        status, detail = refused.problem()
        assert (status, detail.startswith("at most 2 bodies at a time")) == (429, True)
        other.rest.set()
        await limit({**other.scope, "client": ("192.0.2.2", 1)}, other.receive, other.send)
        for one in slow:
            one.rest.set()
        await asyncio.gather(*under_way)
        assert [one.answer for one in (*slow, other)] == [[b"the whole"], [b"the whole"], [b"another"]]
        again = Sender(b"again")
        again.rest.set()
        await limit(again.scope, again.receive, again.send)
        assert again.answer == [b"again"]

    asyncio.run(sent())
