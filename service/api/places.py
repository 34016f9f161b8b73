"""What a caller may have a limited number of at a time, such as open streams."""

from __future__ import annotations

import threading
from collections import Counter


class Places:
    """Who holds how many places. For any number of threads."""

    def __init__(self, *, each: int, of_all: int | None = None) -> None:
        """each: that one may hold, 0 being any number; of_all: that all together may, None being any number."""
        self._each = each
        self._of_all = of_all
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, who: str) -> bool:
        """Whether there was a place, which is held now until `leave`."""
        with self._lock:
            full = self._of_all is not None and self._held.total() >= self._of_all
            if full or (self._each and self._held[who] >= self._each):
                return False
            self._held[who] += 1
            return True

    def leave(self, who: str) -> None:
        """Gives back one place of theirs."""
        with self._lock:
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]
