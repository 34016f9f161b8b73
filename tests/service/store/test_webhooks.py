"""Webhooks in the store, the outbox that events fill, and how a sender empties it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from service.errors import InvalidTransitionError, TooManyWebhooksError, WebhookNotFoundError
from service.store import records, tables
from service.store.database import Database
from service.store.delivering import DeliveringStore, DueWebhook, Outgoing
from service.store.webhooks import WebhookStore
from service.study import Reason, StudyState
from service.webhook import MAX_PER_OWNER, DeliveryState, Webhook

if TYPE_CHECKING:
    from tests.service.store.conftest import Clock, Stores

URL = "https://example.org/hook"


@pytest.fixture
def webhooks(database: Database) -> WebhookStore:
    return WebhookStore(database)


@pytest.fixture
def delivering(database: Database) -> DeliveringStore:
    return DeliveringStore(database)


def take(store: DeliveringStore, webhook: Webhook, *, max_attempts: int = 20) -> Outgoing | None:
    return store.take(webhook.id, lease_s=60, max_attempts=max_attempts, max_age_s=3_600)


def taken(store: DeliveringStore, webhook: Webhook) -> Outgoing:
    outgoing = take(store, webhook)
    assert outgoing is not None
    return outgoing


def told(webhooks: WebhookStore, webhook: Webhook) -> list[StudyState]:
    """The states in the webhook's outbox, the oldest first."""
    return [delivery.study_state for delivery in reversed(webhooks.deliveries(webhook.id, limit=100))]


def test_a_webhook_is_read_back_without_its_secret(webhooks: WebhookStore) -> None:
    webhook, secret = webhooks.create("ada", URL, [StudyState.FAILED, StudyState.SUCCEEDED, StudyState.FAILED])
    assert webhooks.webhooks() == [webhook]
    assert webhooks.get(webhook.id) == webhook
    assert (webhook.owner, webhook.url, webhook.states) == ("ada", URL, ["FAILED", "SUCCEEDED"])
    assert secret.startswith("whsec_")
    assert secret not in webhook.model_dump_json()


def test_every_secret_and_id_is_another(webhooks: WebhookStore) -> None:
    made = [webhooks.create("ada", URL) for _ in range(5)]
    assert len({secret for _, secret in made}) == len({webhook.id for webhook, _ in made}) == 5


def test_another_owners_webhook_is_not_there(webhooks: WebhookStore, database: Database) -> None:
    webhook, _ = webhooks.create("ada", URL)
    bob = WebhookStore(database, "bob")
    for ask in (bob.get, bob.delete, lambda webhook_id: bob.deliveries(webhook_id, limit=5)):
        with pytest.raises(WebhookNotFoundError):
            ask(webhook.id)
    assert bob.webhooks() == []
    assert WebhookStore(database, "ada").webhooks() == [webhook]


def test_an_owner_has_a_limited_number(webhooks: WebhookStore) -> None:
    made = [webhooks.create("ada", URL)[0] for _ in range(MAX_PER_OWNER)]
    with pytest.raises(TooManyWebhooksError):
        webhooks.create("ada", URL)
    webhooks.create("bob", URL)
    webhooks.delete(made[0].id)
    webhooks.create("ada", URL)


def test_the_number_is_exact_although_several_are_made_at_once(open_database: Callable[[], Database]) -> None:
    for _ in range(MAX_PER_OWNER - 2):
        WebhookStore(open_database()).create("ada", URL)
    start = threading.Barrier(6)

    def create(database: Database) -> None:
        start.wait(10)
        with suppress(TooManyWebhooksError):
            WebhookStore(database).create("ada", URL)

    threads = [threading.Thread(target=create, args=(open_database(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(WebhookStore(open_database()).webhooks()) == MAX_PER_OWNER


def test_every_state_of_a_study_is_in_the_outbox_from_its_creation_on(stores: Stores, webhooks: WebhookStore) -> None:
    webhook, _ = webhooks.create("ada", URL)
    study = stores.create()
    driver = stores.drive(study)
    stores.succeed(driver, stores.begin(driver))
    stores.finish(driver)
    assert told(webhooks, webhook) == ["QUEUED", "RUNNING", "SUCCEEDED"]
    delivery = webhooks.deliveries(webhook.id, limit=1)[0]
    assert (delivery.study_id, delivery.state, delivery.attempts) == (study.id, DeliveryState.PENDING, 0)


def test_a_webhook_is_told_only_the_states_that_it_wants(stores: Stores, webhooks: WebhookStore) -> None:
    webhook, _ = webhooks.create("ada", URL, [StudyState.CANCELLED])
    stores.lifecycle.cancel(stores.create().id)
    assert told(webhooks, webhook) == ["CANCELLED"]


def test_a_webhook_is_told_only_of_its_owners_studies(stores: Stores, webhooks: WebhookStore) -> None:
    webhook, _ = webhooks.create("ada", URL)
    stores.create(owner="bob")
    assert told(webhooks, webhook) == []


def test_a_message_tells_the_state_and_neither_spec_nor_secret(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore
) -> None:
    webhook, secret = webhooks.create("ada", URL, [StudyState.FAILED])
    study = stores.create(name="λ and ρ", labels={"team": "vision"})
    driver = stores.drive(study)
    known = driver.snapshot().known
    driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, error="no\x00 luck", known=known)
    payload = taken(delivering, webhook).payload
    assert payload["type"] == "study.state"
    assert payload["id"].startswith("msg_")
    assert payload["created_at"].endswith("Z")
    assert payload["data"] == {
        "id": study.id,
        "name": "λ and ρ",
        "owner": "ada",
        "state": "FAILED",
        "reason": "TOO_MANY_FAILURES",
        "error": "no\ufffd luck",
    }
    assert secret not in json.dumps(payload)


def test_what_is_rolled_back_is_not_told(stores: Stores, webhooks: WebhookStore, database: Database) -> None:
    webhook, _ = webhooks.create("ada", URL)
    study = stores.create()

    def cut_off() -> None:
        with database.writing() as connection:
            row, now = records.locked_study(connection, study.id), database.now(connection)
            records.set_study_state(connection, row, StudyState.CANCELLED, at=now)
            raise InvalidTransitionError("the process ends here")

    with pytest.raises(InvalidTransitionError):
        cut_off()
    assert told(webhooks, webhook) == ["QUEUED"]


def test_the_messages_of_a_deleted_webhook_are_gone_and_its_owners_studies_go_on(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore, database: Database
) -> None:
    webhook, _ = webhooks.create("ada", URL)
    study = stores.create()
    outgoing = taken(delivering, webhook)
    webhooks.delete(webhook.id)
    delivering.delivered(outgoing)
    stores.lifecycle.cancel(study.id)
    with database.reading() as connection:
        assert connection.execute(select(tables.webhook_deliveries)).all() == []


def test_a_webhook_that_is_deleted_at_this_moment_fails_no_transition(
    open_database: Callable[[], Database], stores: Stores
) -> None:
    """The study's transaction and the deletion overlap, whichever is first."""
    rounds = []

    def create_and_delete(database: Database) -> None:
        for number in range(30):
            store = WebhookStore(database)
            store.delete(store.create("ada", URL)[0].id)
            rounds.append(number)

    thread = threading.Thread(target=create_and_delete, args=(open_database(),))
    thread.start()
    while thread.is_alive():
        stores.lifecycle.cancel(stores.create().id)
    thread.join(20)
    assert len(rounds) == 30


def test_the_messages_of_a_deleted_study_are_still_sent(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore
) -> None:
    webhook, _ = webhooks.create("ada", URL, [StudyState.CANCELLED])
    study = stores.create()
    stores.lifecycle.cancel(study.id)
    stores.lifecycle.delete(study.id, delete_runs=True)
    assert taken(delivering, webhook).payload["data"]["id"] == study.id


def test_of_a_webhook_one_message_is_under_way_at_a_time_in_order(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore
) -> None:
    webhook, secret = webhooks.create("ada", URL)
    stores.lifecycle.cancel(stores.create().id)
    assert delivering.due() == [DueWebhook(webhook.id, "ada")]
    first = taken(delivering, webhook)
    assert (first.url, first.secret, first.attempts, first.payload["data"]["state"]) == (URL, secret, 1, "QUEUED")
    assert secret not in repr(first)
    assert delivering.due() == []
    assert take(delivering, webhook) is None
    delivering.delivered(first)
    assert delivering.due() == [DueWebhook(webhook.id, "ada")]
    second = taken(delivering, webhook)
    assert second.payload["data"]["state"] == "CANCELLED"
    delivering.delivered(second)
    assert delivering.due() == []
    states = {(delivery.state, delivery.attempts) for delivery in webhooks.deliveries(webhook.id, limit=5)}
    assert states == {(DeliveryState.DELIVERED, 1)}


def test_a_failed_message_keeps_its_place_and_its_id(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore
) -> None:
    webhook, _ = webhooks.create("ada", URL)
    stores.lifecycle.cancel(stores.create().id)
    first = taken(delivering, webhook)
    delivering.failed(first, "HTTP 500", retry_in_s=60)
    assert take(delivering, webhook) is None
    pending = webhooks.deliveries(webhook.id, limit=5)[-1]
    assert (pending.state, pending.error, pending.attempts) == (DeliveryState.PENDING, "HTTP 500", 1)


def test_a_failed_message_is_taken_again_once_its_time_has_come(timed_stores: Stores, clock: Clock) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    webhook, _ = webhooks.create("ada", URL)
    timed_stores.create()
    first = taken(delivering, webhook)
    delivering.failed(first, "HTTP 500", retry_in_s=8)
    clock.advance(7.9)
    assert take(delivering, webhook) is None
    clock.advance(0.2)
    again = taken(delivering, webhook)
    assert (again.payload["id"], again.attempts) == (first.payload["id"], 2)


@pytest.mark.parametrize("tried", [False, True])
def test_a_clock_that_was_set_back_holds_no_message_up(timed_stores: Stores, clock: Clock, tried: bool) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    webhook, _ = webhooks.create("ada", URL)
    timed_stores.create()
    if tried:
        delivering.failed(taken(delivering, webhook), "refused", retry_in_s=60)
        assert delivering.due() == []
    clock.now -= timedelta(days=1)
    assert [due.webhook_id for due in delivering.due()] == [webhook.id]
    assert taken(delivering, webhook).attempts == 1 + tried


def test_a_message_whose_sender_died_is_taken_again_after_the_lease(timed_stores: Stores, clock: Clock) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    webhook, _ = webhooks.create("ada", URL)
    timed_stores.create()
    lost = taken(delivering, webhook)
    clock.advance(61)
    again = taken(delivering, webhook)
    assert (again.payload, again.attempts) == (lost.payload, 2)
    delivering.failed(lost, "a late word of the dead sender", retry_in_s=None)
    assert webhooks.deliveries(webhook.id, limit=1)[0].error is None
    delivering.delivered(again)
    assert webhooks.deliveries(webhook.id, limit=1)[0].state is DeliveryState.DELIVERED


def test_a_message_that_is_given_up_makes_room_for_the_next(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore
) -> None:
    webhook, _ = webhooks.create("ada", URL)
    stores.lifecycle.cancel(stores.create().id)
    delivering.failed(taken(delivering, webhook), "HTTP 500", retry_in_s=None)
    assert taken(delivering, webhook).payload["data"]["state"] == "CANCELLED"
    given_up = webhooks.deliveries(webhook.id, limit=5)[-1]
    assert (given_up.state, given_up.error, given_up.next_attempt_at) == (DeliveryState.GIVEN_UP, "HTTP 500", None)


def test_a_message_whose_last_attempt_was_not_recorded_is_given_up(timed_stores: Stores, clock: Clock) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    webhook, _ = webhooks.create("ada", URL)
    timed_stores.create()
    assert take(delivering, webhook, max_attempts=1)
    assert take(delivering, webhook, max_attempts=1) is None
    assert webhooks.deliveries(webhook.id, limit=1)[0].state is DeliveryState.PENDING
    clock.advance(61)
    assert take(delivering, webhook, max_attempts=1) is None
    assert webhooks.deliveries(webhook.id, limit=1)[0].state is DeliveryState.GIVEN_UP


def test_what_has_waited_too_long_is_not_sent_any_more(timed_stores: Stores, clock: Clock) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    webhook, _ = webhooks.create("ada", URL)
    timed_stores.create()
    clock.advance(3_601)
    timed_stores.create(name="fresh")
    assert taken(delivering, webhook).payload["data"]["name"] == "fresh"
    assert [delivery.state for delivery in webhooks.deliveries(webhook.id, limit=5)] == ["PENDING", "GIVEN_UP"]


def test_webhooks_that_have_failed_least_come_first(timed_stores: Stores, clock: Clock) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    failing, well = webhooks.create("ada", URL)[0], webhooks.create("ada", URL)[0]
    timed_stores.create()
    delivering.failed(taken(delivering, failing), "HTTP 500", retry_in_s=1)
    clock.advance(2)
    assert [due.webhook_id for due in delivering.due()] == [well.id, failing.id]


def test_old_deliveries_that_have_ended_are_pruned(timed_stores: Stores, clock: Clock) -> None:
    delivering, webhooks = DeliveringStore(timed_stores.database), WebhookStore(timed_stores.database)
    webhook, _ = webhooks.create("ada", URL)
    timed_stores.lifecycle.cancel(timed_stores.create().id)
    delivering.delivered(taken(delivering, webhook))
    clock.advance(1_000)
    delivering.prune(older_than_s=1_001)
    assert told(webhooks, webhook) == ["QUEUED", "CANCELLED"]
    delivering.prune(older_than_s=999)
    assert told(webhooks, webhook) == ["CANCELLED"]  # it is still to be sent


def test_the_report_of_a_deleted_delivery_does_not_touch_the_one_that_has_its_number_now(
    stores: Stores, webhooks: WebhookStore, delivering: DeliveringStore
) -> None:
    gone, _ = webhooks.create("ada", URL)
    stores.create()
    outgoing = taken(delivering, gone)
    webhooks.delete(gone.id)
    webhook, _ = webhooks.create("ada", URL)
    stores.create()
    assert take(delivering, webhook)
    delivering.delivered(outgoing)
    assert webhooks.deliveries(webhook.id, limit=1)[0].state is DeliveryState.PENDING
