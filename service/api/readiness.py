"""Whether this process can do its work: what `/readyz` answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from service.api.asking import Question
from service.errors import StoreUnavailableError
from service.store.database import Database

logger = logging.getLogger(__name__)

KNOWN_S = 1.0
"""How long an answer is good for: probes need no key, so they must not be a way to keep the store busy."""
PATIENCE_S = 3.0
"""How long a probe waits for the store, which may have taken the connection and say nothing."""


class Readiness:
    """Asks the store itself, and remembers its answer for a moment.

    explains: whether a probe, which needs no key, is told what is wrong, in words that may be the database's own and
    name its address; else the log alone says it.
    """

    def __init__(
        self,
        database: Database,
        *,
        explains: bool = True,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._explains = explains
        self._logged: str | None = None
        self._patience_s = patience_s
        self._question = Question(self._what_is_wrong, good_for_s=KNOWN_S, patience_s=patience_s, clock=clock)

    async def check(self) -> None:
        """Raises StoreUnavailableError, which says what is wrong."""
        try:
            wrong = await self._question.answer_later()
        except TimeoutError:
            wrong = f"the study store does not answer within {self._patience_s:g} s"
        is_news, self._logged = wrong != self._logged, wrong
        if wrong is None:
            return
        if self._explains:
            raise StoreUnavailableError(wrong)
        if is_news:
            logger.warning("not ready: %s", wrong)
        raise StoreUnavailableError("the study store is not ready: the log of this process says why")

    def _what_is_wrong(self) -> str | None:
        try:
            self._database.check_schema()
            self._database.check_writable()
        except StoreUnavailableError as error:
            return error.detail
        return None
