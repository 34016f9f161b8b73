"""A real file system that is soon full: a tmpfs of a few hundred kilobytes, for tests that run as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """The file system at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leaving_bytes: int = 0) -> None:
        """Takes all of its room, but for so many bytes."""
        with self._filler.open("ab", buffering=0) as file:
            while (room := self.free_bytes() - leaving_bytes) > 0:
                file.write(bytes(min(room, 65536)))

    def free(self) -> None:
        """Gives the room back."""
        self._filler.unlink()

    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@contextmanager
def small_disk(path: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """Mounts it at the path, and takes it away afterwards; skips the test where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "none", str(path)]
    try:
        mounted = subprocess.run(options, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], timeout=30, check=True)
