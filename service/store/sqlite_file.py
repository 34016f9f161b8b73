"""The file of a store on SQLite: the one that was opened, as opposed to whatever has its path later."""

from __future__ import annotations

import os
from pathlib import Path

from service.errors import StoreUnavailableError


class SqliteFile:
    """Tells whether a path still leads to the file that was opened there first.

    SQLite goes on with a file that was moved away or deleted, and makes an empty one for the next connection. What is
    written into either is lost to everybody who opens the path later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._opened: tuple[int, int] | None = None

    def make(self) -> None:
        """Makes the file where there is none, for its owner alone: it holds secrets. -wal and -shm get its mode.

        Raises StoreUnavailableError where it cannot be made.
        """
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise StoreUnavailableError(f"the study store's file cannot be made: {error}") from error

    def note_opened(self) -> None:
        """To be called after a connection was made; the first one counts."""
        if self._opened is None:
            self._opened = self._identity()

    def check(self) -> None:
        """Raises StoreUnavailableError where the path leads to another file by now, or to none."""
        if self._opened is not None and self._identity() != self._opened:
            raise StoreUnavailableError(
                f"the study store's file {self._path} was moved away or replaced while it was open: put it back, or "
                "start this process again"
            )

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode; None where nothing can be seen there."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
