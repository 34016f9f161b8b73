"""What a trial prints in its worker: taken from the process' own stdout and stderr, and kept in the attempt's log.

A worker outlives its trials, so the file descriptors are exchanged while a trial trains and given back after it. They
lead to memory, not to a pipe or a disk: nothing that prints can be held up or fail because of where its words go.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from service.trial_logs import TrialLog

MAX_BYTES = 10 * 1024 * 1024
"""What the log of one attempt may take."""

_PIECE_BYTES = 64 * 1024
_FREE_OF_OUTPUT = 1024 * 1024  # for the epochs' lines, once the training has printed too much
_FREE_OF_LINES = 64 * 1024  # for the attempt's end
_FLUSH_S = 1.0
_LAST_TRIES = 10  # to store the end of a log that the storage does not take; the worker's next trial runs meanwhile
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

logger = logging.getLogger(__name__)


class TrialOutput:
    """The log of one attempt while its worker writes it.

    A thread of its own stores what is new every `flush_s`; where the storage fails it tries again, and the training
    hears nothing of it. What is longer than MAX_BYTES is left out, and a line says so.

    open_log: makes the log, in that thread, since even this may wait for a storage that does not answer.
    """

    def __init__(
        self,
        open_log: Callable[[], TrialLog],
        *,
        flush_s: float = _FLUSH_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._open_log = open_log
        self._flush_s = flush_s
        self._clock = clock
        self._log: TrialLog | None = None
        self._captured = _Captured()
        self._lock = threading.Lock()
        self._piece_offset = 0
        self._piece = bytearray()  # the bytes from _piece_offset on
        self._stored_end = 0
        self._begins_line = True
        self._is_failing = False
        self._told: set[int] = set()
        self._closing = threading.Event()
        self._has_tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trial-output", daemon=True)
        self._thread.start()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Within, everything that this process prints goes into the log: Python, logging, and libraries in C."""
        with self._captured.redirected():
            yield

    def say(self, text: str, *, is_end: bool = False) -> None:
        """Adds a line of the service's own, with the time. is_end: it says how the attempt ended."""
        stamp = self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._captured.flush()
        with self._lock:
            self._take_captured()
            line = f"{stamp} samstudy: {text}\n".encode(errors="replace")
            if not self._begins_line:
                line = b"\n" + line
            self._append(line, keep_free=0 if is_end else _FREE_OF_LINES)

    def close(self, *, wait_s: float = 5.0) -> None:
        """Stores what is left and says that this was all; waits no longer than `wait_s` for a storage that is slow."""
        self._closing.set()
        self._has_tried.wait(wait_s)

    def _run(self) -> None:
        while not self._closing.wait(self._flush_s):
            self._flush(is_last=False)
        self._flush(is_last=True)
        self._captured.close()
        self._has_tried.set()
        for _ in range(_LAST_TRIES):
            if not self._is_failing:
                return
            time.sleep(self._flush_s)
            self._flush(is_last=True)

    def _flush(self, *, is_last: bool) -> None:
        with self._lock:
            self._take_captured()
        try:
            self._store(is_last=is_last)
            self._is_failing = False
        except Exception as error:  # noqa: BLE001  # whatever is wrong with the log, the training goes on
            if not self._is_failing:
                logger.warning("the storage does not take this log, which is tried again: %s", error)
            self._is_failing = True

    def _store(self, *, is_last: bool) -> None:
        """Writes the piece that has grown, and begins the next one where it has become large enough."""
        with self._lock:
            offset, content = self._piece_offset, bytes(self._piece)
        end = offset + len(content)
        if end > self._stored_end or is_last:
            if self._log is None:
                log = self._open_log()
                log.clear()
                self._log = log
            if end > self._stored_end:
                self._log.write(offset, content)
                self._stored_end = end
                if len(content) >= _PIECE_BYTES:
                    with self._lock:
                        self._piece_offset = end
                        del self._piece[: len(content)]
            if is_last:
                self._log.finish()

    def _take_captured(self) -> None:
        while block := self._captured.take():
            self._append(block, keep_free=_FREE_OF_OUTPUT)

    def _append(self, content: bytes, *, keep_free: int) -> None:
        room = MAX_BYTES - keep_free - self._piece_offset - len(self._piece)
        if len(content) <= room:
            self._piece += content
            self._begins_line = content.endswith(b"\n")
        elif keep_free not in self._told:
            self._told.add(keep_free)
            what = "that the training prints" if keep_free == _FREE_OF_OUTPUT else "to say"
            self._piece += content[: max(0, room - 200)]
            del self._piece[len(self._piece) - _half_a_character(self._piece) :]
            self._piece += f"\n[an attempt's log has {MAX_BYTES // 2**20} MiB: more {what} is left out]\n".encode()
            self._begins_line = True


def _half_a_character(text: bytes | bytearray) -> int:
    """How many bytes at the end are the beginning of a character in UTF-8, the rest of which is cut off."""
    for length in range(1, min(3, len(text)) + 1):
        first = text[-length]
        if first >= 0b11000000:
            whole = 2 if first < 0b11100000 else 3 if first < 0b11110000 else 4
            return length if length < whole else 0
        if first < 0b10000000:
            break
    return 0


class _Captured:
    """A file in memory that stdout and stderr lead to for a while, and from which is taken what was printed.

    Where the process cannot have one, everything goes where it went before.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._taken = 0
        self._streams: tuple[io.TextIOWrapper, io.TextIOWrapper] | None = None
        with suppress(OSError):
            self._file = os.memfd_create("trial-output")

    @contextmanager
    def redirected(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        _flush_everything()
        kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        python = (sys.stdout, sys.stderr)
        root, level = logging.getLogger(), logging.getLogger().level
        streams = (_stream_to(1), _stream_to(2))
        handler = logging.StreamHandler(streams[1])
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        try:
            for descriptor, _ in kept:
                os.dup2(self._file, descriptor)
            sys.stdout, sys.stderr = self._streams = streams
            root.addHandler(handler)
            root.setLevel(min(level, logging.INFO) or logging.INFO)
            yield
        finally:
            _flush_everything()
            root.removeHandler(handler)
            root.setLevel(level)
            self._streams = None
            sys.stdout, sys.stderr = python
            for descriptor, copy in kept:
                os.dup2(copy, descriptor)
                os.close(copy)

    def flush(self) -> None:
        """Brings what Python and C still hold back into the file."""
        if self._streams is not None:
            _flush_everything()

    def take(self) -> bytes:
        """What was printed since the last time, up to a megabyte; its memory is given back."""
        if self._file is None:
            return b""
        block = os.pread(self._file, 2**20, self._taken)
        if block:
            self._taken += len(block)
            with suppress(AttributeError):  # where the C library cannot do it, only memory is lost
                _LIBC.fallocate(self._file, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(self._taken))
        return block

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


_LIBC = ctypes.CDLL(None, use_errno=True)


def _flush_everything() -> None:
    """Python's streams and those of C, which hold text back where nobody sits in front of them."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, None, or somebody else's
            stream.flush()
    _LIBC.fflush(None)


def _stream_to(descriptor: int) -> io.TextIOWrapper:
    """A stream of Python's to a descriptor, wherever that leads: some loggers keep the stream that they once saw."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
