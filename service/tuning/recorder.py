"""The recorder: writes a driver's reports into the store in batches, and keeps the driver's lease alive."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from service.errors import LeaseLostError, StoreUnavailableError
from service.store.driving import DrivingStore
from service.store.reports import Report
from service.store.snapshots import Instructions
from service.tuning.patience import patiently

logger = logging.getLogger(__name__)

_BATCH_S = 0.05
_LARGEST_BATCH = 100  # reports; SQLite takes 600 to 1,200 a second, and the lease is not renewed meanwhile
_AFTERWARDS_S = 10.0


@dataclass(frozen=True, slots=True)
class _Handed:
    """A report, when it was handed over (of `time.monotonic`), and what comes after its commit."""

    report: Report
    at_s: float
    after_commit: Callable[[], None] | None


class Recorder:
    """A thread that records what the driver hands it, in order, and never twice.

    What comes within 50 ms of a report is written with it, 100 reports at most. While the store does not answer, they
    wait here and training goes on; once it is back the lease is renewed before they are written, and in between when
    that is due. Once the lease is lost nothing is written any more, and `has_lost_lease` says so; the same where
    recording fails for another reason, for without its reports a driver is of no use. `after_commit` of a report is
    called once the store has it, in a thread of its own, because a storage that hangs is no reason to lose the lease;
    an error there is only logged.

    waiting_reason: asked between two heartbeats why nothing trains; answers None where something does. It has a thread
    of its own too, because it asks the cluster, which may hang: a heartbeat says what was answered last.
    stuck_after_s: how long the driver's loop may go without a `tick` until its lease is no longer renewed, so that
    another driver takes over; None: for ever.
    """

    def __init__(
        self,
        store: DrivingStore,
        *,
        lease_s: float,
        heartbeat_s: float,
        waiting_reason: Callable[[], str | None] = lambda: None,
        stuck_after_s: float | None = None,
    ) -> None:
        self._store = store
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._waiting_reason = waiting_reason
        self._stuck_after_s = stuck_after_s
        self._ticked_at = time.monotonic()
        self._heartbeat_at = 0.0
        self._reason: str | None = None
        self._reports: queue.Queue[_Handed] = queue.Queue()
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._failure: Exception | None = None
        self._instructions: Instructions | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._afterwards: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._follower = threading.Thread(target=self._follow_up, name="afterwards", daemon=True)
        self._asker = threading.Thread(target=self._keep_asking, name="waiting reason", daemon=True)

    def start(self) -> None:
        """Takes over the lease at once. Raises LeaseLostError, StoreUnavailableError; may be tried again."""
        self._reason = self._waiting_reason()
        self._heartbeat()
        self._heartbeat_at = time.monotonic() + self._heartbeat_s
        self.tick()
        for thread in (self._thread, self._follower, self._asker):
            thread.start()

    def tick(self) -> None:
        """The driver's loop goes round."""
        self._ticked_at = time.monotonic()

    @property
    def instructions(self) -> Instructions | None:
        """What the last heartbeat answered; None before the first."""
        return self._instructions

    @property
    def has_lost_lease(self) -> bool:
        """Whether another driver has taken over, or the study has ended without this one."""
        return self._lost.is_set()

    def lose_lease(self) -> None:
        """Hears that the store has refused another write of this driver's."""
        self._lost.set()

    def record(self, report: Report, after_commit: Callable[[], None] | None = None) -> None:
        """Hands over a report; returns at once."""
        self._reports.put(_Handed(report, time.monotonic(), after_commit))

    def close(self) -> None:
        """Writes what is left and stops. Raises LeaseLostError where that was refused."""
        self._closing.set()
        self._thread.join()
        self._afterwards.put(None)
        if self._failure is not None:
            raise RuntimeError("the driver's reports could not be recorded") from self._failure
        if self.has_lost_lease:
            raise LeaseLostError("another driver has taken the study over")

    def settle(self) -> None:
        """Once closed: waits for what comes after the reports, for `_AFTERWARDS_S` at most.

        Checkpoints that it leaves are tidied up at the study's end.
        """
        self._follower.join(_AFTERWARDS_S)

    def _run(self) -> None:
        try:
            self._record_until_closed()
        except Exception as error:  # the outermost runner of this thread: the driver must not go on without it
            logger.exception("the recorder failed")
            self._failure = error
            self._lost.set()

    def _record_until_closed(self) -> None:
        closing = False
        while not (closing and self._reports.empty()):
            closing = self._closing.is_set()
            batch = self._next_batch(wait_s=0 if closing else min(_BATCH_S, self._heartbeat_s))
            if not self._written(partial(self._write, batch)):
                return
            for handed in batch:
                if handed.after_commit is not None:
                    self._afterwards.put((handed.report.trial_id, handed.after_commit))

    def _next_batch(self, *, wait_s: float) -> list[_Handed]:
        """The next reports, in order; none where none is handed over within this time."""
        batch = []
        with suppress(queue.Empty):
            batch.append(self._reports.get(timeout=wait_s))
            self._closing.wait(batch[0].at_s + _BATCH_S - time.monotonic())
            while len(batch) < _LARGEST_BATCH:
                batch.append(self._reports.get_nowait())
        return batch

    def _write(self, batch: list[_Handed]) -> None:
        """The heartbeat, where one is due, and then the reports."""
        if time.monotonic() >= self._heartbeat_at:
            if not self._is_stuck():
                self._heartbeat()
            self._heartbeat_at = time.monotonic() + self._heartbeat_s
        if batch:
            self._record(batch)

    def _record(self, batch: list[_Handed]) -> None:
        try:
            self._store.record([handed.report for handed in batch], happened_at_s=[handed.at_s for handed in batch])
        except StoreUnavailableError:
            self._heartbeat_at = 0.0  # the lease may be running out: it comes first once the store is back
            raise

    def _is_stuck(self) -> bool:
        """Whether the driver's loop stands still; not so once it has ended."""
        still_s = time.monotonic() - self._ticked_at
        if self._stuck_after_s is None or self._closing.is_set() or still_s < self._stuck_after_s:
            return False
        logger.error("the driver's loop has stood still for %.0f s: its lease is not renewed", still_s)
        return True

    def _heartbeat(self) -> None:
        self._instructions = self._store.heartbeat(self._lease_s, self._reason)

    def _written(self, write: Callable[[], None]) -> bool:
        """Writes, again and again while the store does not answer; False once the lease is lost."""
        try:
            patiently(write)
        except LeaseLostError as error:
            logger.error("%s", error)  # the message says it all
            self._lost.set()
            return False
        return True

    def _keep_asking(self) -> None:
        while not self._closing.wait(self._heartbeat_s):
            try:
                self._reason = self._waiting_reason()
            except Exception:  # the outermost runner of this thread: the driver trains without an answer too
                logger.exception("unexpected, when asked why nothing trains")

    def _follow_up(self) -> None:
        while (item := self._afterwards.get()) is not None:
            trial_id, action = item
            try:
                action()
            except OSError as error:
                logger.warning("after recording a trial's end: %s", error, extra={"trial_id": trial_id})
            except Exception:  # the outermost runner of this thread: what comes after others is still to be done
                logger.exception("unexpected, after recording a trial's end", extra={"trial_id": trial_id})
