"""The memory of a process that stays up for months."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # of glibc's malloc.h


def use_one_heap() -> None:
    """Lets all threads of the process allocate from one heap; to be called before there are any.

    glibc gives each thread a heap of its own, up to eight for each core, and a heap keeps what its largest answer took:
    under load the API grew by 100 MiB in five minutes, all of it free memory. The threads hardly wait for each other,
    because only one of them runs Python. Where there is no glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def keep_what_is_there() -> None:
    """Leaves everything that there is now out of the garbage collections to come.

    To be called once all is imported and built. A collection that looks at all of it stops the API, with whatever it
    is answering, for 100 ms on a slow core.
    """
    gc.collect()
    gc.freeze()
