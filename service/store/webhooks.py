"""Webhooks as their owners make, see and delete them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, true

from service.errors import TooManyWebhooksError, WebhookNotFoundError
from service.store import records, tables
from service.store.database import Database
from service.study import StudyState
from service.webhook import MAX_PER_OWNER, Delivery, DeliveryState, Webhook

_SECRET_BYTES = 32


class WebhookStore:
    """Webhooks of one owner, or of everybody.

    scope: the owner whose webhooks there are, any other's being WebhookNotFoundError; None: every webhook.
    """

    def __init__(self, database: Database, scope: str | None = None) -> None:
        self._database = database
        self._scope = scope

    def create(self, owner: str, url: str, states: Sequence[StudyState] = ()) -> tuple[Webhook, str]:
        """A new webhook and its signing secret, which is not shown again. Raises TooManyWebhooksError."""
        table = tables.webhooks
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
        with self._database.writing() as connection:
            mine = table.c.owner == owner
            # Two that are made at once wait for each other here, where there are any: so the number stays exact.
            connection.execute(select(table.c.id).where(mine).order_by(table.c.id).with_for_update(key_share=True))
            _check_room(connection, owner)
            webhook_id = secrets.token_hex(6)
            connection.execute(
                insert(table).values(
                    id=webhook_id,
                    owner=owner,
                    url=url,
                    secret=secret,
                    states=list(dict.fromkeys(states)),
                    created_at=self._database.now(connection),
                )
            )
            return self._webhook(connection, webhook_id), secret

    def check_room(self, owner: str) -> None:
        """Raises TooManyWebhooksError where the owner has as many as one may have."""
        with self._database.reading() as connection:
            _check_room(connection, owner)

    def webhooks(self) -> list[Webhook]:
        """In the order in which they were made."""
        table = tables.webhooks
        query = records.selected(table, Webhook).where(self._in_scope())
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.created_at, table.c.id))
            return [records.as_record(Webhook, row) for row in rows]

    def get(self, webhook_id: str) -> Webhook:
        """Raises WebhookNotFoundError."""
        with self._database.reading() as connection:
            return self._webhook(connection, webhook_id)

    def deliveries(self, webhook_id: str, *, limit: int) -> list[Delivery]:
        """What was sent or is to be, the newest first. Raises WebhookNotFoundError."""
        table = tables.webhook_deliveries
        query = select(table).where(table.c.webhook_id == webhook_id).order_by(table.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            self._webhook(connection, webhook_id)
            return [
                Delivery(
                    message_id=row.payload["id"],
                    study_id=row.study_id,
                    study_state=row.payload["data"]["state"],
                    state=DeliveryState.DELIVERED
                    if row.delivered_at is not None
                    else DeliveryState.GIVEN_UP
                    if row.next_attempt_at is None
                    else DeliveryState.PENDING,
                    attempts=row.attempts,
                    error=row.error,
                    created_at=row.created_at,
                    next_attempt_at=row.next_attempt_at,
                    delivered_at=row.delivered_at,
                )
                for row in connection.execute(query)
            ]

    def delete(self, webhook_id: str) -> None:
        """Deletes it with what was not sent yet. Raises WebhookNotFoundError."""
        with self._database.writing() as connection:
            self._webhook(connection, webhook_id)
            connection.execute(delete(tables.webhooks).where(tables.webhooks.c.id == webhook_id))

    def _in_scope(self) -> ColumnElement[bool]:
        return true() if self._scope is None else tables.webhooks.c.owner == self._scope

    def _webhook(self, connection: Connection, webhook_id: str) -> Webhook:
        table = tables.webhooks
        query = records.selected(table, Webhook).where(table.c.id == webhook_id, self._in_scope())
        row = connection.execute(query).one_or_none()
        if row is None:
            raise WebhookNotFoundError(webhook_id)
        return records.as_record(Webhook, row)


def _check_room(connection: Connection, owner: str) -> None:
    table = tables.webhooks
    count = connection.execute(select(func.count()).select_from(table).where(table.c.owner == owner)).scalar_one()
    if count >= MAX_PER_OWNER:
        raise TooManyWebhooksError(f"{owner!r} has {count} webhooks; delete one before making another")
