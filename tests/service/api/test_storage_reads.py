"""Reads of a storage that takes its time, or says nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from service.api.storage_reads import EACH, StorageReader, StorageReads


def test_what_the_storage_says_is_passed_on() -> None:
    def refused() -> None:
        raise TimeoutError(110, "the NFS server does not answer")

    reads = StorageReads(patience_s=5)
    with pytest.raises(TimeoutError, match="NFS"):
        asyncio.run(reads.read("ada", refused))
    assert asyncio.run(reads.read("ada", lambda: "found")) == "found"


def test_patience_is_for_each_read_of_many() -> None:
    """A search through a long log may take long, as long as the storage answers."""

    def slowly() -> Iterator[int]:
        for number in range(4):
            time.sleep(0.2)
            yield number

    async def read() -> list[int]:
        return [part async for part in StorageReader(StorageReads(patience_s=0.6), "ada").each(slowly())]

    assert asyncio.run(read()) == [0, 1, 2, 3]


def test_a_read_counts_until_the_storage_has_answered() -> None:
    answers = threading.Event()
    reads = StorageReads(patience_s=0.1)

    async def read_all() -> list[BaseException | bool]:
        return await asyncio.gather(
            *(reads.read("ada", lambda: answers.wait(30)) for _ in range(EACH + 1)), return_exceptions=True
        )

    said = sorted(map(str, asyncio.run(read_all())))
    assert said == [
        *EACH * ["the storage has not answered within 0.1 s"],
        "the storage is busy with other reads, or does not answer them",
    ]
    assert asyncio.run(reads.read("bob", lambda: "found")) == "found", "others have places of their own"
    answers.set()
    assert asyncio.run(StorageReads(patience_s=5).read("ada", lambda: "found")) == "found"
