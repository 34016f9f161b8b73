"""The sender against real receivers and a real store: in order, at least once, whoever dies or does not answer."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import pytest

from service.notifying.sender import Sender, SenderOptions
from service.store.database import Database
from service.store.delivering import DeliveringStore
from service.store.studies import NewStudy
from service.store.webhooks import WebhookStore
from service.study import StudyState
from service.webhook import MAX_AGE_S, MAX_ATTEMPTS, Delivery, DeliveryState, StudyStateMessage, retry_delay_s
from tests.service.notifying.receiver import Receiver

if TYPE_CHECKING:
    from service.settings import Settings
    from tests.service.conftest import Life

WaitUntil = Callable[..., None]


class Sending:
    """Senders over the test's store, which try again soon; stopped at the test's end."""

    def __init__(self, database: Database) -> None:
        self.webhooks = WebhookStore(database)
        self.store = DeliveringStore(database)
        self._stopping = threading.Event()
        self._senders: list[Sender] = []

    def sender(self, *, delay_s: float = 0.0, **options: Any) -> Sender:
        chosen = SenderOptions(**{"allow_private": True, "timeout_s": 5, "lease_s": 6, **options})
        self._senders.append(
            Sender(
                self.store,
                study_url=lambda study_id: f"https://sam.example/studies/{study_id}",
                options=chosen,
                delay_s=lambda _attempts: delay_s,
            )
        )
        return self._senders[-1]

    def send(self, sender: Sender) -> None:
        sender.send_due(self._stopping.is_set)

    def deliveries(self, webhook_id: str) -> list[Delivery]:
        return list(reversed(self.webhooks.deliveries(webhook_id, limit=100)))

    def close(self) -> None:
        self._stopping.set()
        assert all(sender.wait(10) for sender in self._senders)


@pytest.fixture
def sending(database: Database) -> Iterator[Sending]:
    sending = Sending(database)
    yield sending
    sending.close()


@pytest.fixture
def keep_sending(sending: Sending, wait_until: WaitUntil) -> Callable[[Sender, Callable[[], bool]], None]:
    """Lets a sender work until something has come true."""

    def keep(sender: Sender, condition: Callable[[], bool]) -> None:
        def met() -> bool:
            sending.send(sender)
            return condition()

        wait_until(met, 20)

    return keep


def all_ended(sending: Sending, webhook_id: str) -> bool:
    return all(delivery.state is not DeliveryState.PENDING for delivery in sending.deliveries(webhook_id))


def test_a_receiver_is_told_of_a_study_in_order_by_signed_messages(
    sending: Sending, receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, secret = sending.webhooks.create("local", f"{receiver.url}/hook")
    study = life.finished({(0.5, 0.1): (0.9,)}, name="λ")
    keep_sending(sending.sender(), lambda: all_ended(sending, webhook.id))
    assert [message.data["state"] for message in receiver.messages] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert all(message.is_signed_with(secret) for message in receiver.messages)
    assert not any(message.is_signed_with("whsec_AAAA") for message in receiver.messages)
    assert len({message.id for message in receiver.messages}) == 3
    for message in receiver.messages:
        StudyStateMessage.model_validate_json(message.body)
    last = receiver.messages[-1]
    assert last.data == {
        "id": study.id,
        "name": "λ",
        "owner": "local",
        "state": "SUCCEEDED",
        "reason": "SPACE_EXHAUSTED",
        "error": None,
        "url": f"https://sam.example/studies/{study.id}",
    }
    assert abs(int(last.headers["webhook-timestamp"]) - time.time()) < 60
    assert {delivery.attempts for delivery in sending.deliveries(webhook.id)} == {1}


@pytest.mark.parametrize("status", [500, 503, 404, 410, 429, 301, 307])
def test_any_answer_but_success_is_tried_again_with_the_same_id_before_anything_later(
    status: int, sending: Sending, receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, secret = sending.webhooks.create("local", receiver.url, [StudyState.QUEUED, StudyState.RUNNING])
    life.start(life.create())
    receiver.answers = lambda _request: status if len(receiver.messages) <= 2 else 200
    keep_sending(sending.sender(), lambda: all_ended(sending, webhook.id))
    assert [message.data["state"] for message in receiver.messages] == ["QUEUED", "QUEUED", "QUEUED", "RUNNING"]
    assert len({message.id for message in receiver.messages}) == 2
    assert all(message.is_signed_with(secret) for message in receiver.messages)
    assert [delivery.attempts for delivery in sending.deliveries(webhook.id)] == [3, 1]


def test_what_went_wrong_is_to_be_seen_until_it_is_delivered(
    sending: Sending, receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, _ = sending.webhooks.create("local", receiver.url)
    life.create()
    receiver.answers = lambda _request: 500
    sender = sending.sender()
    keep_sending(sender, lambda: sending.deliveries(webhook.id)[0].error is not None)
    failing = sending.deliveries(webhook.id)[0]
    assert (failing.state, failing.error) == (DeliveryState.PENDING, "it answered with the HTTP status 500")
    receiver.answers = lambda _request: 200
    keep_sending(sender, lambda: all_ended(sending, webhook.id))
    delivered = sending.deliveries(webhook.id)[0]
    assert (delivered.state, delivered.error) == (DeliveryState.DELIVERED, None)
    assert delivered.delivered_at is not None


def test_a_receiver_that_is_not_there_is_told_once_it_is(
    sending: Sending, unused_port: int, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, _ = sending.webhooks.create("local", f"http://127.0.0.1:{unused_port}/")
    life.create()
    sender = sending.sender()
    keep_sending(sender, lambda: sending.deliveries(webhook.id)[0].attempts >= 3)
    delivery = sending.deliveries(webhook.id)[0]
    assert delivery.state is DeliveryState.PENDING
    assert "refused" in (delivery.error or "")


def test_a_receiver_that_does_not_answer_in_time_is_tried_again(
    sending: Sending, receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, _ = sending.webhooks.create("local", receiver.url)
    life.create()
    released = threading.Event()

    def late(_request: BaseHTTPRequestHandler) -> int:
        if len(receiver.messages) == 1:
            released.wait(10)
        return 200

    receiver.answers = late
    keep_sending(sending.sender(timeout_s=0.3), lambda: all_ended(sending, webhook.id))
    released.set()
    assert {message.id for message in receiver.messages} == {sending.deliveries(webhook.id)[0].message_id}
    assert len(receiver.messages) >= 2  # the second answer may be late too


def test_a_receiver_that_hangs_delays_no_other(
    sending: Sending,
    receiver: Receiver,
    other_receiver: Receiver,
    life: Life,
    keep_sending: Callable[..., None],
) -> None:
    hanging, _ = sending.webhooks.create("local", receiver.url)
    webhook, _ = sending.webhooks.create("local", other_receiver.url)
    released = threading.Event()
    receiver.answers = lambda _request: 200 if released.wait(20) else 500
    life.finished({(0.5, 0.1): (0.9,)})
    sender = sending.sender(timeout_s=20, lease_s=30)
    keep_sending(sender, lambda: all_ended(sending, webhook.id) and bool(receiver.messages))
    assert len(other_receiver.messages) == 3
    assert len(receiver.messages) == 1
    assert sending.deliveries(hanging.id)[0].state is DeliveryState.PENDING
    released.set()
    keep_sending(sender, lambda: all_ended(sending, hanging.id))


def test_the_hanging_receivers_of_one_owner_leave_room_for_another_owners(
    sending: Sending, receiver: Receiver, other_receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    released = threading.Event()
    receiver.answers = lambda _request: 200 if released.wait(20) else 500
    mallory = [sending.webhooks.create("local", receiver.url)[0] for _ in range(6)]
    life.create()
    sender = sending.sender(timeout_s=20, lease_s=30, at_once=3, at_once_per_owner=2)
    keep_sending(sender, lambda: len(receiver.messages) == 2)
    ada, _ = sending.webhooks.create("ada", other_receiver.url)
    life.studies.create(NewStudy("s", "", {}, {}, "ada", "digest"))
    keep_sending(sender, lambda: all_ended(sending, ada.id))
    assert len(receiver.messages) == 2
    released.set()
    keep_sending(sender, lambda: all(all_ended(sending, webhook.id) for webhook in mallory))


def test_a_message_is_given_up_after_its_attempts_and_the_next_is_sent(
    sending: Sending, receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, _ = sending.webhooks.create("local", receiver.url, [StudyState.QUEUED, StudyState.RUNNING])
    life.start(life.create())
    receiver.answers = lambda _request: 500 if len(receiver.messages) <= 3 else 200
    keep_sending(sending.sender(max_attempts=3), lambda: all_ended(sending, webhook.id))
    assert [(delivery.state, delivery.attempts) for delivery in sending.deliveries(webhook.id)] == [
        (DeliveryState.GIVEN_UP, 3),
        (DeliveryState.DELIVERED, 1),
    ]


def test_a_deleted_webhook_is_sent_nothing_more(
    sending: Sending, receiver: Receiver, life: Life, wait_until: WaitUntil
) -> None:
    webhook, _ = sending.webhooks.create("local", receiver.url)
    life.finished({(0.5, 0.1): (0.9,)})

    def delete(_request: BaseHTTPRequestHandler) -> int:
        sending.webhooks.delete(webhook.id)
        return 200

    receiver.answers = delete
    sender = sending.sender()
    sending.send(sender)
    wait_until(lambda: sender.wait(1))
    sending.send(sender)
    assert sender.wait(5)
    assert len(receiver.messages) == 1


def test_a_sender_that_must_stop_sends_nothing(sending: Sending, receiver: Receiver, life: Life) -> None:
    sending.webhooks.create("local", receiver.url)
    life.create()
    sender = sending.sender()
    sender.send_due(lambda: True)
    assert sender.wait(5)
    assert receiver.messages == []


def test_private_receivers_are_refused_at_every_attempt(
    sending: Sending, receiver: Receiver, life: Life, keep_sending: Callable[..., None]
) -> None:
    webhook, _ = sending.webhooks.create("local", receiver.url)
    life.create()
    keep_sending(sending.sender(allow_private=False), lambda: sending.deliveries(webhook.id)[0].attempts >= 2)
    assert "private, local or reserved" in (sending.deliveries(webhook.id)[0].error or "")
    assert receiver.messages == []


def test_a_name_that_leads_to_a_private_address_by_now_is_refused(
    sending: Sending, receiver: Receiver, life: Life, wait_until: WaitUntil
) -> None:
    """DNS rebinding: public when it was made, this machine when it is sent to, and asked only once for each attempt."""
    webhook, _ = sending.webhooks.create("local", f"http://rebind.example:{receiver.port}/")
    life.create()
    asked = []

    def resolver(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    sender = Sender(sending.store, study_url=str, resolver=resolver)
    sender.send_due()
    wait_until(lambda: sender.wait(5))
    assert (receiver.messages, asked) == ([], ["rebind.example"])
    assert "private, local or reserved" in (sending.deliveries(webhook.id)[0].error or "")


def test_the_address_that_was_checked_is_the_one_that_is_used(
    sending: Sending, receiver: Receiver, life: Life, wait_until: WaitUntil
) -> None:
    sending.webhooks.create("local", f"http://rebind.example:{receiver.port}/")
    life.create()
    answers = iter([["127.0.0.1"], ["127.0.0.66"]])  # whoever asks a second time is led elsewhere
    sender = Sender(
        sending.store,
        study_url=str,
        options=SenderOptions(allow_private=True),
        resolver=lambda _host, _port: next(answers),
    )
    sender.send_due()
    wait_until(lambda: sender.wait(5))
    assert len(receiver.messages) == 1
    assert receiver.messages[0].headers["host"] == f"rebind.example:{receiver.port}"


def test_no_secret_is_logged(
    sending: Sending,
    receiver: Receiver,
    life: Life,
    keep_sending: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhook, secret = sending.webhooks.create("local", f"{receiver.url}/T0/B0/token-in-the-path")
    life.create()
    receiver.answers = lambda _request: 500
    with caplog.at_level(logging.INFO):
        # The store says so first, and the log a moment later.
        keep_sending(sending.sender(max_attempts=2), lambda: "given up" in caplog.text)
    assert all_ended(sending, webhook.id)
    assert secret not in caplog.text
    assert "token-in-the-path" not in caplog.text


KILLED = """
import sys, time
from service.notifying.sender import Sender, SenderOptions
from service.store.database import Database
from service.store.delivering import DeliveringStore

sender = Sender(
    DeliveringStore(Database(sys.argv[1])),
    study_url=str,
    options=SenderOptions(allow_private=True, timeout_s=30, lease_s=1.0),
)
while True:
    sender.send_due()
    time.sleep(0.02)
"""


def test_nothing_is_lost_when_the_sender_is_killed_between_sending_and_recording(
    sending: Sending,
    receiver: Receiver,
    life: Life,
    api_settings: Settings,
    wait_until: WaitUntil,
    keep_sending: Callable[..., None],
) -> None:
    webhook, _ = sending.webhooks.create("local", receiver.url)
    life.finished({(0.5, 0.1): (0.9,)})
    killed = threading.Event()
    receiver.answers = lambda _request: 200 if len(receiver.messages) != 2 or killed.wait(20) else 500
    process = subprocess.Popen([sys.executable, "-c", KILLED, api_settings.store_url])
    try:
        wait_until(lambda: len(receiver.messages) == 2, 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    killed.set()
    assert [delivery.state for delivery in sending.deliveries(webhook.id)] == ["DELIVERED", "PENDING", "PENDING"]
    keep_sending(sending.sender(), lambda: all_ended(sending, webhook.id))
    assert [message.data["state"] for message in receiver.messages] == ["QUEUED", "RUNNING", "RUNNING", "SUCCEEDED"]
    assert receiver.messages[1].id == receiver.messages[2].id
    assert receiver.messages[1].body.partition(b'"url"')[0] == receiver.messages[2].body.partition(b'"url"')[0]


def test_two_senders_at_once_send_everything_in_order_and_nothing_twice(
    sending: Sending, receiver: Receiver, life: Life, wait_until: WaitUntil
) -> None:
    """Two controllers may believe for a moment that they lead."""
    webhook, _ = sending.webhooks.create("local", receiver.url)
    for _ in range(4):
        life.finished({(0.5, 0.1): (0.9,)})
    senders = [sending.sender(), sending.sender()]

    def both() -> bool:
        for sender in senders:
            sending.send(sender)
        return all_ended(sending, webhook.id)

    wait_until(both, 20)
    assert [message.id for message in receiver.messages] == [
        delivery.message_id for delivery in sending.deliveries(webhook.id)
    ]


def test_a_delivery_is_tried_from_a_second_on_over_about_a_day() -> None:
    exact = [retry_delay_s(attempts, 0.5) for attempts in range(1, MAX_ATTEMPTS)]
    assert exact[:4] == [1, 2, 4, 8]
    assert max(exact) == 4 * 3600
    assert 20 * 3600 < sum(exact) < 30 * 3600 < MAX_AGE_S
    assert (retry_delay_s(1, 0.0), retry_delay_s(1, 1.0)) == (0.75, 1.25)
    assert retry_delay_s(10_000, 0.5) == 4 * 3600
