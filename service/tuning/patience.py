"""Waiting for a store that does not answer: what the driver asks of it is asked again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, stop_never, wait_fixed

from service.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

_RETRY_S = 0.5

Answer = TypeVar("Answer")


def patiently(ask: Callable[[], Answer], *, patience_s: float | None = None) -> Answer:
    """What the store answers, once it does.

    patience_s: how long it has; None: for ever. Raises StoreUnavailableError after that, and any other error at once.
    """
    asking = Retrying(
        retry=retry_if_exception_type(StoreUnavailableError),
        stop=stop_never if patience_s is None else stop_after_delay(patience_s),
        wait=wait_fixed(_RETRY_S),
        before_sleep=_say_why,
        reraise=True,
    )
    return asking(ask)


def _say_why(state: RetryCallState) -> None:
    if state.outcome is not None:
        logger.warning("waiting for the store: %s", state.outcome.exception())
