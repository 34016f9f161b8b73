"""Reading a stream of server-sent events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class ServerMessage(NamedTuple):
    """One server-sent event."""

    name: str
    data: str


def server_messages(chunks: Iterable[bytes]) -> Iterator[ServerMessage | None]:
    """The server-sent events in a stream of bytes; None for a sign of life that says nothing.

    Lines end at LF (or CRLF) and nowhere else: what an event quotes may hold any other character that Python's
    splitlines would break at. An event that the stream breaks off in is left out.
    """
    buffer = b""
    fields: dict[str, str] = {}
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            if text:
                field, _, value = text.partition(":")
                value = value.removeprefix(" ")
                fields[field] = f"{fields[field]}\n{value}" if field == "data" and "data" in fields else value
            else:
                told = "data" in fields
                yield ServerMessage(fields.get("event", "message"), fields["data"]) if told else None
                fields = {}
