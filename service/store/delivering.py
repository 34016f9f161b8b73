"""The outbox as its sender empties it: message by message of each webhook, in order, at least once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from service.store import tables
from service.store.database import Database
from service.webhook import LONGEST_WAIT_S


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A webhook whose next message can be sent now."""

    webhook_id: str
    owner: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that was taken to be sent. attempts: this one included."""

    delivery_id: int
    webhook_id: str
    url: str
    secret: str = field(repr=False)
    payload: dict[str, Any]
    attempts: int


class DeliveringStore:
    """The outbox. Of a webhook only the oldest message that has not ended can be taken, so its order is kept.

    An attempt is counted before it is made: a sender that dies in between, or cannot record how it went, makes the
    message wait for `lease_s`, and it is sent again with the same id.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self) -> list[DueWebhook]:
        """Webhooks with something to send, those first that have failed least."""
        deliveries, webhooks = tables.webhook_deliveries, tables.webhooks
        oldest = (
            select(func.min(deliveries.c.id).label("id")).where(_open()).group_by(deliveries.c.webhook_id).subquery()
        )
        with self._database.reading() as connection:
            now = self._database.now(connection)
            rows = connection.execute(
                select(webhooks.c.id, webhooks.c.owner)
                .select_from(deliveries)
                .join(oldest, oldest.c.id == deliveries.c.id)
                .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
                .where(_is_due(now))
                .order_by(deliveries.c.attempts, deliveries.c.next_attempt_at, deliveries.c.id)
            )
            return [DueWebhook(row.id, row.owner) for row in rows]

    def take(self, webhook_id: str, *, lease_s: float, max_attempts: int, max_age_s: float) -> Outgoing | None:
        """The webhook's next message, where it is due; None where not, or where the webhook is gone.

        Messages are given up here that are older than `max_age_s` or have had their attempts.
        """
        table = tables.webhook_deliveries
        mine = (table.c.webhook_id == webhook_id) & _open()
        with self._database.writing() as connection:
            now = self._database.now(connection)
            connection.execute(
                update(table)
                .where(mine, table.c.created_at < now - timedelta(seconds=max_age_s))
                .values(next_attempt_at=None, error=func.coalesce(table.c.error, "too old to be sent"))
            )
            connection.execute(
                update(table)
                .where(mine, table.c.attempts >= max_attempts, _is_due(now))
                .values(next_attempt_at=None, error=func.coalesce(table.c.error, "how it ended was not recorded"))
            )
            head = connection.execute(
                select(table, tables.webhooks.c.url, tables.webhooks.c.secret, _is_due(now).label("is_due"))
                .join(tables.webhooks, tables.webhooks.c.id == table.c.webhook_id)
                .where(mine)
                .order_by(table.c.id)
                .limit(1)
                .with_for_update(of=table)
            ).one_or_none()
            if head is None or not head.is_due:
                return None
            outgoing = Outgoing(head.id, webhook_id, head.url, head.secret, head.payload, head.attempts + 1)
            connection.execute(
                update(table)
                .where(table.c.id == head.id)
                .values(attempts=outgoing.attempts, next_attempt_at=now + timedelta(seconds=lease_s))
            )
            return outgoing

    def delivered(self, outgoing: Outgoing) -> None:
        """Its receiver has it."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            _record(connection, outgoing, delivered_at=now, next_attempt_at=None, error=None)

    def failed(self, outgoing: Outgoing, error: str, *, retry_in_s: float | None) -> None:
        """Its receiver may not have it; it is sent again after `retry_in_s` seconds, or given up where that is None."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            again_at = None if retry_in_s is None else now + timedelta(seconds=retry_in_s)
            _record(connection, outgoing, next_attempt_at=again_at, error=error)

    def prune(self, *, older_than_s: float) -> None:
        """Deletes the deliveries that have ended and were made longer ago than this."""
        table = tables.webhook_deliveries
        with self._database.writing() as connection:
            before = self._database.now(connection) - timedelta(seconds=older_than_s)
            connection.execute(delete(table).where(table.c.next_attempt_at.is_(None), table.c.created_at < before))


def _open() -> ColumnElement[bool]:
    """Neither delivered nor given up, in the words of the index ix_webhook_deliveries_open."""
    return tables.webhook_deliveries.c.next_attempt_at.is_not(None)


def _is_due(now: datetime) -> ColumnElement[bool]:
    """Whether an open delivery can be tried: one that never was at once, wherever the store's clock has gone since."""
    table = tables.webhook_deliveries
    latest = now + timedelta(seconds=LONGEST_WAIT_S)
    return or_(table.c.attempts == 0, table.c.next_attempt_at <= now, table.c.next_attempt_at > latest)


def _record(connection: Connection, outgoing: Outgoing, **values: Any) -> None:
    """Only where nobody has taken the message since: the id of a deleted delivery may be another's by now."""
    table = tables.webhook_deliveries
    connection.execute(
        update(table)
        .where(
            table.c.id == outgoing.delivery_id,
            table.c.webhook_id == outgoing.webhook_id,
            table.c.attempts == outgoing.attempts,
            _open(),
        )
        .values(**values)
    )
