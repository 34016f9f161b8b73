"""Commands about webhooks: create, list, delete, deliveries."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.study import StudyState

if TYPE_CHECKING:
    from service.client import Client

WebhookArgument = Annotated[str, typer.Argument(metavar="ID", help="A webhook's id.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    webhooks = typer.Typer(no_args_is_help=True, help="Webhooks: addresses that are told when studies change.")
    webhooks.command()(create)
    webhooks.command("list")(list_webhooks)
    webhooks.command()(delete)
    webhooks.command()(deliveries)
    app.add_typer(webhooks, name="webhooks")


def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are POSTed.")],
    state: Annotated[
        list[StudyState] | None, typer.Option(help="Tell of these states only; can be repeated. By default of all.")
    ] = None,
) -> None:
    """Make a webhook and show its signing secret, this once.

    The secret alone stands on stdout, so that it can be piped into a file or a secret store.
    """
    with _client() as client:
        webhook = client.create_webhook(url, states=state or ())
    print(
        f"webhook {webhook.id}; its messages are signed as Standard Webhooks has it, with this secret:", file=sys.stderr
    )
    typer.echo(webhook.secret)


def list_webhooks() -> None:
    """List your webhooks, without their secrets."""
    from rich.text import Text

    from service.cli.rendering import console, plain_table, shown_time

    with _client() as client:
        found = client.webhooks()
    if not found:
        typer.echo("no webhooks; `samstudy webhooks create URL` makes one")
        return
    table = plain_table("id", "url", "states", "owner", "created", ids=["id"])
    for webhook in found:
        url = Text(webhook.url, overflow="fold")
        states = " ".join(webhook.states) or "all"
        table.add_row(webhook.id, url, states, webhook.owner, shown_time(webhook.created_at))
    console().print(table)


def delete(webhook_id: WebhookArgument) -> None:
    """Delete a webhook, with what was not sent to it yet."""
    with _client() as client:
        client.delete_webhook(webhook_id)
    typer.echo(f"webhook {webhook_id} is deleted")


def deliveries(webhook_id: WebhookArgument) -> None:
    """Show what was sent to a webhook of late, and what went wrong."""
    from rich.text import Text

    from service.cli.rendering import console, plain_table, shown_time

    with _client() as client:
        webhook = client.webhook(webhook_id)
    if not webhook.deliveries:
        typer.echo("nothing was to be sent to it yet")
        return
    table = plain_table("study", "its state", "told at", "delivery", "attempts", "error", "next attempt", ids=["study"])
    for delivery in webhook.deliveries:
        next_at = shown_time(delivery.next_attempt_at, seconds=True)
        told_at = shown_time(delivery.created_at, seconds=True)
        error = Text(delivery.error or "", overflow="fold")
        table.add_row(
            delivery.study_id, delivery.study_state, told_at, delivery.state, str(delivery.attempts), error, next_at
        )
    console().print(table)


def _client() -> Client:
    from service.client import Client

    return Client(patience_s=1.0)
