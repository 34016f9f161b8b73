"""Reading a trial's log over HTTP: a connection that breaks is taken up again where it broke."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import httpx

from service.errors import ServiceUnavailableError, StoppingError, StorageUnavailableError, StoreUnavailableError

LOG_ATTEMPT_HEADER = "Samstudy-Attempt"
"""Which attempt of the trial a log is of."""
LOG_OFFSET_HEADER = "Samstudy-Log-Offset"
"""Where in that attempt's log, in bytes, the answer begins."""

_RECONNECT_S = 60.0


def log_text(
    open_log: Callable[[Mapping[str, str]], AbstractContextManager[httpx.Response]],
    *,
    attempt: int | None,
    tail: int | None,
    follow: bool,
    patience_s: float,
) -> Iterator[str]:
    """A log piece by piece as text, without a gap or a duplicate.

    open_log: asks for the log with these query parameters; raises ServiceUnavailableError where the answer breaks off.
    patience_s: how long the service may be away before its first answer; later on it is a minute.
    """
    parameters = {"follow": str(follow).lower()}
    parameters |= {name: str(value) for name, value in (("attempt", attempt), ("tail", tail)) if value is not None}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    away_since: float | None = None
    while True:
        try:
            with open_log(parameters) as answer:
                patience_s, away_since = _RECONNECT_S, None
                known = int(answer.headers[LOG_OFFSET_HEADER])
                parameters["attempt"] = answer.headers[LOG_ATTEMPT_HEADER]
                parameters["after"] = str(known)
                parameters.pop("tail", None)
                for block in answer.iter_bytes():
                    known += len(block)
                    parameters["after"] = str(known)
                    yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
            return
        except (ServiceUnavailableError, StoppingError, StorageUnavailableError, StoreUnavailableError):
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if now - away_since > patience_s:
                raise
        time.sleep(min(2.0, 0.1 + (now - away_since) / 4))
