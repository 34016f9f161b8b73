"""One heap for all threads: without it, each keeps what it once took."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_HEAPS = """
import ctypes, sys, threading
from service.memory import use_one_heap

if sys.argv[1] == "one":
    use_one_heap()
held = []
start = threading.Barrier(8)

def allocate():
    start.wait()
    held.append([bytes(1_000) for _ in range(1_000)])  # too large for Python's own allocator

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="needs glibc")
def test_threads_share_one_heap_only_when_told_to() -> None:
    heaps = {
        told: subprocess.run(
            [sys.executable, "-c", _HEAPS, told], capture_output=True, text=True, check=True, timeout=60
        ).stdout.count("<heap nr=")
        for told in ("one", "none")
    }
    assert heaps["one"] == 1
    assert heaps["none"] > 1
