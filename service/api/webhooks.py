"""Webhooks: made, listed, looked into, deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.concurrency import run_in_threadpool

from service.answers import CreatedWebhook, WebhookDetail, WebhookList
from service.api.lookups import Lookups
from service.api.problems import documented
from service.api.requests import NO_NUL, JsonBody, ThePrincipal, TheSettings, read_as
from service.errors import (
    BodyTooLargeError,
    FieldProblem,
    InvalidRequestError,
    MalformedBodyError,
    TooManyRequestsError,
    TooManyWebhooksError,
    UnsupportedMediaTypeError,
    WebhookNotFoundError,
)
from service.receivers import RefusedReceiverError, parse_receiver
from service.store.webhooks import WebhookStore
from service.webhook import NewWebhook

SHOWN_DELIVERIES = 50

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


async def _webhooks(request: Request, principal: ThePrincipal) -> WebhookStore:
    return WebhookStore(request.app.state.database, principal.scope)


Webhooks = Annotated[WebhookStore, Depends(_webhooks)]


async def _checked_webhook(
    request: Request, body: JsonBody, principal: ThePrincipal, webhooks: Webhooks, settings: TheSettings
) -> NewWebhook:
    """What the body says, with a receiver that may be one. Its name is looked up where there is room for it alone."""
    new = read_as(NewWebhook, body)
    await run_in_threadpool(webhooks.check_room, principal.owner)  # once more as it is made
    lookups: Lookups = request.app.state.lookups
    try:
        receiver = parse_receiver(new.url)
        await lookups.check(receiver, principal.owner, allow_private=settings.allow_private_webhooks)
    except RefusedReceiverError as error:
        raise InvalidRequestError(f"url: {error}", problems=[FieldProblem("url", str(error))]) from error
    except OSError:
        pass  # a name that does not resolve yet is looked up again, and checked, before every attempt
    return new


CheckedWebhook = Annotated[NewWebhook, Depends(_checked_webhook)]
WebhookId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]
_BODY = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewWebhook"}}}}


@router.post(
    "",
    status_code=201,
    responses=documented(
        MalformedBodyError,
        TooManyWebhooksError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        InvalidRequestError,
        TooManyRequestsError,
    ),
    openapi_extra={"requestBody": _BODY},
)
def create_webhook(new: CheckedWebhook, principal: ThePrincipal, webhooks: Webhooks) -> CreatedWebhook:
    """Makes a webhook, which is told when a study of its owner enters one of its states.

    Its secret is in this answer and nowhere else.
    """
    webhook, secret = webhooks.create(principal.owner, new.url, new.states)
    return CreatedWebhook(**dict(webhook), secret=secret)


@router.get("")
def list_webhooks(webhooks: Webhooks) -> WebhookList:
    """The webhooks of whoever asks, without their secrets."""
    return WebhookList(webhooks=webhooks.webhooks())


@router.get("/{webhook_id}", responses=documented(WebhookNotFoundError, InvalidRequestError))
def read_webhook(webhook_id: WebhookId, webhooks: Webhooks) -> WebhookDetail:
    """A webhook with its latest deliveries."""
    webhook = webhooks.get(webhook_id)
    return WebhookDetail(**dict(webhook), deliveries=webhooks.deliveries(webhook_id, limit=SHOWN_DELIVERIES))


@router.delete("/{webhook_id}", status_code=204, responses=documented(WebhookNotFoundError, InvalidRequestError))
def delete_webhook(webhook_id: WebhookId, webhooks: Webhooks) -> None:
    """Deletes a webhook; what was not sent to it yet is not sent any more."""
    webhooks.delete(webhook_id)
