"""Whether this process can do its work: what `/readyz` answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from service.errors import StoreUnavailableError
from service.store.database import Database

KNOWN_S = 1.0
"""How long an answer is good for: probes need no key, so they must not be a way to keep the store busy."""


class Readiness:
    """Asks the store itself, and remembers its answer for a moment."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._asking = threading.Lock()
        self._known_until = float("-inf")
        self._wrong: str | None = None

    def check(self) -> None:
        """Raises StoreUnavailableError, which says what is wrong."""
        with self._asking:
            if self._clock() >= self._known_until:
                self._wrong = self._what_is_wrong()
                self._known_until = self._clock() + KNOWN_S
            if self._wrong is not None:
                raise StoreUnavailableError(self._wrong)

    def _what_is_wrong(self) -> str | None:
        try:
            self._database.check_schema()
            self._database.check_writable()
        except StoreUnavailableError as error:
            return error.detail
        return None
