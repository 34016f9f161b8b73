"""Standard Webhooks 1.0 (https://www.standardwebhooks.com): how a receiver knows who sent a message, and when."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

SECRET_PREFIX = "whsec_"  # noqa: S105 – how a secret begins, not one


def signed_headers(secret: str, *, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The headers `webhook-id`, `webhook-timestamp` and `webhook-signature` of a message.

    The signature is v1, HMAC-SHA256 over id.timestamp.body with the bytes that the secret holds in base64 after
    `whsec_`. timestamp_s: Unix time of this attempt. Raises ValueError for what is no secret.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"a webhook's secret must begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook's secret must be base64") from None
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{signature}",
    }
