"""Empties the outbox: each webhook's messages in order, webhooks beside each other, until each message has ended."""

from __future__ import annotations

import json
import logging
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from service.errors import StoreUnavailableError
from service.notifying.posting import Deadline, NotSentError, post
from service.notifying.signing import signed_headers
from service.receivers import RefusedReceiverError, Resolver, checked_addresses, parse_receiver, resolve
from service.store.delivering import DeliveringStore, Outgoing
from service.webhook import KEPT_S, MAX_AGE_S, MAX_ATTEMPTS, TIMEOUT_S, retry_delay_s

logger = logging.getLogger(__name__)

_PRUNE_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """How a sender sends.

    timeout_s: for one attempt. lease_s: after which an attempt that was not recorded is made again; longer than an
    attempt takes. at_once: attempts beside each other, of one owner's webhooks at most `at_once_per_owner`.
    """

    allow_private: bool = False
    timeout_s: float = TIMEOUT_S
    lease_s: float = 1.5 * TIMEOUT_S
    max_attempts: int = MAX_ATTEMPTS
    max_age_s: float = MAX_AGE_S
    at_once: int = 32
    at_once_per_owner: int = 10


class Sender:
    """Sends what is in the outbox; at least once, as a receiver can tell by the message's id.

    Every webhook under way has a thread, which sends what is due of it, one message after the other. So a receiver
    that is slow or dead delays nobody else's messages.
    """

    def __init__(
        self,
        store: DeliveringStore,
        *,
        study_url: Callable[[str], str],
        options: SenderOptions | None = None,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
        delay_s: Callable[[int], float] = lambda attempts: retry_delay_s(attempts, random.random()),  # noqa: S311
        clock: Callable[[], float] = time.time,
    ) -> None:
        """study_url: where the study of an id is, as receivers are told.

        delay_s: seconds until the next attempt, by the number of failed ones. clock: Unix time.
        """
        self._store = store
        self._study_url = study_url
        self._options = options or SenderOptions()
        self._resolver = resolver
        self._tls = tls or httpx.create_ssl_context()
        self._delay_s = delay_s
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[str, threading.Thread]] = {}  # owner and thread by webhook
        self._pruned_at = float("-inf")

    def send_due(self, must_stop: Callable[[], bool] = lambda: False) -> None:
        """Begins to send what can be sent now, and returns. Raises StoreUnavailableError.

        must_stop: asked before each attempt, in the threads too.
        """
        if must_stop():
            return
        if time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
            self._store.prune(older_than_s=KEPT_S)
            self._pruned_at = time.monotonic()
        due = self._store.due()
        with self._lock:
            owners = Counter(owner for owner, _ in self._under_way.values())
            for webhook in due:
                if len(self._under_way) >= self._options.at_once:
                    break
                if webhook.webhook_id in self._under_way or owners[webhook.owner] >= self._options.at_once_per_owner:
                    continue
                # A daemon: a process that ends does not wait for receivers; what was under way is sent again.
                thread = threading.Thread(
                    target=self._run, args=(webhook.webhook_id, must_stop), name="webhook", daemon=True
                )
                thread.start()
                owners[webhook.owner] += 1
                self._under_way[webhook.webhook_id] = (webhook.owner, thread)

    def wait(self, timeout_s: float) -> bool:
        """Waits for what is under way; whether it has ended in this time."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = [thread for _, thread in self._under_way.values()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run(self, webhook_id: str, must_stop: Callable[[], bool]) -> None:
        try:
            while not must_stop() and self._send_next(webhook_id):
                pass
        except StoreUnavailableError as error:
            logger.warning("webhook %s: %s; what is under way is sent again", webhook_id, error)
        except Exception:  # the outermost runner: a defect with one webhook must not stop the others
            logger.exception("webhook %s: unexpected; its next message is tried again later", webhook_id)
        finally:
            with self._lock:
                del self._under_way[webhook_id]

    def _send_next(self, webhook_id: str) -> bool:
        """One attempt; whether the next message may follow at once."""
        options = self._options
        outgoing = self._store.take(
            webhook_id, lease_s=options.lease_s, max_attempts=options.max_attempts, max_age_s=options.max_age_s
        )
        if outgoing is None:
            return False
        problem = self._attempt(outgoing)
        if problem is None:
            self._store.delivered(outgoing)
            return True
        is_last = outgoing.attempts >= options.max_attempts
        self._store.failed(outgoing, problem, retry_in_s=None if is_last else self._delay_s(outgoing.attempts))
        log = logger.warning if is_last else logger.info
        message = "webhook %s, message %s, attempt %d: %s%s"
        log(message, webhook_id, outgoing.payload["id"], outgoing.attempts, problem, "; given up" if is_last else "")
        return is_last

    def _attempt(self, outgoing: Outgoing) -> str | None:
        """What went wrong; None where the receiver has the message."""
        deadline = Deadline(self._options.timeout_s)
        body = self._body(outgoing)
        headers = signed_headers(
            outgoing.secret, message_id=outgoing.payload["id"], timestamp_s=int(self._clock()), body=body
        )
        try:
            receiver = parse_receiver(outgoing.url)
            addresses = checked_addresses(
                receiver,
                allow_private=self._options.allow_private,
                timeout_s=deadline.left_s(),
                resolver=self._resolver,
            )
            status = post(receiver, addresses, headers=headers, body=body, deadline=deadline, tls=self._tls)
        except (NotSentError, OSError) as error:
            return str(error) or type(error).__name__
        except RefusedReceiverError as error:
            return f"its url {error}"
        return None if 200 <= status < 300 else f"it answered with the HTTP status {status}"

    def _body(self, outgoing: Outgoing) -> bytes:
        payload = outgoing.payload
        data = {**payload["data"], "url": self._study_url(payload["data"]["id"])}
        return json.dumps({**payload, "data": data}, separators=(",", ":")).encode()
