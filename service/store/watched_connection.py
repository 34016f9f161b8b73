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

    patience_s: how long that is. busy_s: how long it may be at work instead, as long as it greets another connection.
    longest_statement_s: after which it gives a statement up by itself; None: never.
    """

    patience_s: float = 5.0
    busy_s: float = 0.0
    longest_statement_s: float | None = None

    def note_longest_statement(self) -> None:
        """Asks the server; what the URL says of it may differ from what was wanted."""
        query = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'"
        (milliseconds,) = self.execute(query).fetchone() or (0,)
        self.rollback()
        self.longest_statement_s = milliseconds / 1000 if milliseconds else None

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """As psycopg's own, which resumes the generator every 0.1 s too, with nothing ready."""
        return super().wait(self._watched(gen), *args, **options)

    def _watched(self, gen: PQGen[RV]) -> PQGen[RV]:
        try:
            wanted = next(gen)
            asked_at = heard_at = time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > self.patience_s:
                    silent_s = time.monotonic() - asked_at
                    if silent_s > self.busy_s or not self._server_answers():
                        self.close()
                        raise psycopg.OperationalError(f"the server has said nothing for {silent_s:.0f} s")
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
