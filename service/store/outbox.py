"""The outbox of the webhooks: what is to be sent is recorded in the transaction of the event that it tells."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from service.store import tables
from service.webhook import STUDY_STATE

_MAX_ERROR = 2_000  # characters of a study's error


def put_into_outbox(connection: Connection, study_id: str, data: Mapping[str, Any], *, at: datetime) -> None:
    """Records a message for each webhook of the study's owner that wants its new state, `data["state"]`.

    The webhooks are locked against their deletion meanwhile: a message needs one.
    """
    studies, webhooks = tables.studies, tables.webhooks
    study = connection.execute(select(studies.c.name, studies.c.owner).where(studies.c.id == study_id)).one()
    wanting = connection.execute(
        select(webhooks.c.id, webhooks.c.states)
        .where(webhooks.c.owner == study.owner)
        .order_by(webhooks.c.id)
        .with_for_update(read=True, key_share=True)
    ).all()
    recipients = [webhook.id for webhook in wanting if not webhook.states or data["state"] in webhook.states]
    if not recipients:
        return
    error = data.get("error")
    payload = {
        "type": STUDY_STATE,
        "id": f"msg_{secrets.token_hex(16)}",
        "created_at": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "id": study_id,
            "name": study.name,
            "owner": study.owner,
            "state": data["state"],
            "reason": data.get("reason"),
            "error": error and error[-_MAX_ERROR:],
        },
    }
    connection.execute(
        insert(tables.webhook_deliveries),
        [
            {
                "webhook_id": webhook_id,
                "study_id": study_id,
                "payload": payload,
                "created_at": at,
                "attempts": 0,
                "next_attempt_at": at,
            }
            for webhook_id in recipients
        ],
    )
