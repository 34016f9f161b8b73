"""Whether this process can do its work: what `/readyz` answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.api.asking import Question
from service.errors import StoreUnavailableError
from service.store.database import Database

KNOWN_S = 1.0
"""How long an answer is good for: probes need no key, so they must not be a way to keep the store busy."""
PATIENCE_S = 3.0
"""How long a probe waits for the store, which may have taken the connection and say nothing."""


class Readiness:
    """Asks the store itself, and remembers its answer for a moment."""

    def __init__(
        self,
        database: Database,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._patience_s = patience_s
        self._question = Question(self._what_is_wrong, good_for_s=KNOWN_S, patience_s=patience_s, clock=clock)

    async def check(self) -> None:
        """Raises StoreUnavailableError, which says what is wrong."""
        try:
            wrong = await self._question.answer_later()
        except TimeoutError:
            wrong = f"the study store does not answer within {self._patience_s:g} s"
        if wrong is not None:
            raise StoreUnavailableError(wrong)

    def _what_is_wrong(self) -> str | None:
        try:
            self._database.check_schema()
            self._database.check_writable()
        except StoreUnavailableError as error:
            return error.detail
        return None
