"""A connection to PostgreSQL that does not wait without end for a server that stands still.

libpq's own timeouts notice a peer that is gone. A frozen server (SIGSTOP, a paused container, storage that hangs) is
there still: its kernel acknowledges whatever is sent, and its statement_timeout stands still with it.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen


class WatchedConnection(psycopg.Connection[Any]):
    """Closed, with an OperationalError, once the server has said nothing for too long to what it was asked.

    patience_s: how long that is. may_be_busy: whether it may also be at work for longer; it is then asked, by another
    connection, whether it is there.
    """

    patience_s: float = 5.0
    may_be_busy = False

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """As psycopg's own, which resumes the generator every 0.1 s too, with nothing ready."""
        return super().wait(self._watched(gen), *args, **options)

    def _watched(self, gen: PQGen[RV]) -> PQGen[RV]:
        try:
            wanted = next(gen)
            heard_at = time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > self.patience_s:
                    if not (self.may_be_busy and self._server_answers()):
                        self.close()
                        raise psycopg.OperationalError(f"the server has said nothing for {self.patience_s:g} s")
                    heard_at = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result

    def _server_answers(self) -> bool:
        """Whatever it says: a server that takes no more connections is not frozen."""
        try:
            psycopg.connect(self.info.dsn, password=self.info.password).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.OperationalError:
            return True
        return True
