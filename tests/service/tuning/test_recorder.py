from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from service.errors import LeaseLostError, StoreUnavailableError
from service.store.driving import DrivingStore
from service.store.reports import EpochReported, Report
from service.store.snapshots import Instructions
from service.study import Intent
from service.tuning.recorder import Recorder


class FakeStore:
    """A DrivingStore that can be down, or under another driver."""

    def __init__(self) -> None:
        self.batches: list[list[Report]] = []
        self.happened_at_s: list[float] = []
        self.heartbeats: list[float] = []
        self.waiting_reasons: list[str | None] = []
        self.intent = Intent.RUN
        self.failures: list[Exception] = []
        self.is_lost = False
        self.is_asked = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.record_s = 0.0
        self.calls: list[str] = []

    @property
    def epochs(self) -> list[int]:
        return [report.epoch for batch in self.batches for report in batch if isinstance(report, EpochReported)]

    def record(self, reports: Sequence[Report], *, happened_at_s: Sequence[float]) -> None:
        self.is_asked.set()
        self.gate.wait(10)
        self.calls.append("record")
        self._fail()
        time.sleep(self.record_s * len(reports))
        self.batches.append(list(reports))
        self.happened_at_s.extend(happened_at_s)

    def heartbeat(self, lease_s: float, waiting_reason: str | None) -> Intent:
        self.calls.append("heartbeat")
        self._fail()
        self.heartbeats.append(lease_s)
        self.waiting_reasons.append(waiting_reason)
        return Instructions(self.intent, {}, None, 0)

    def _fail(self) -> None:
        if self.is_lost:
            raise LeaseLostError("another driver")
        if self.failures:
            raise self.failures.pop()


def epoch(number: int) -> EpochReported:
    return EpochReported("s-1-0", 1, number, {})


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def recorder(store: FakeStore) -> Iterator[Recorder]:
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.01)
    yield recorder
    store.gate.set()
    if recorder._thread.ident is not None:
        recorder._closing.set()
        recorder._thread.join(5)
        assert not recorder._thread.is_alive()


def test_starting_takes_over_the_lease(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    assert store.heartbeats[0] == 10
    assert recorder.instructions is not None
    assert recorder.instructions.intent is Intent.RUN


def test_every_heartbeat_says_why_nothing_trains(store: FakeStore, wait_until: Callable[..., None]) -> None:
    reasons: list[str | None] = ["its driver is starting"]
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.01, waiting_reason=lambda: reasons[-1])
    recorder.start()
    for reason in ("every place is taken", None):
        reasons.append(reason)
        wait_until(lambda reason=reason: store.waiting_reasons[-1] == reason)
    recorder.close()
    assert store.waiting_reasons[0] == "its driver is starting"


def test_a_cluster_that_hangs_holds_up_neither_reports_nor_heartbeats(
    store: FakeStore, wait_until: Callable[..., None]
) -> None:
    asked: list[int] = []
    answers = threading.Event()

    def ask() -> str:
        asked.append(len(store.heartbeats))
        if len(asked) > 1:
            answers.wait(30)
        return "its driver is starting"

    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.01, waiting_reason=ask)
    recorder.start()
    wait_until(lambda: len(asked) == 2)
    beats = len(store.heartbeats)
    wait_until(lambda: len(store.heartbeats) > beats + 10)
    assert len(asked) == 2
    recorder.record(epoch(1))
    wait_until(lambda: store.epochs == [1])
    recorder.close()
    answers.set()
    assert set(store.waiting_reasons) == {"its driver is starting"}


def test_a_question_that_fails_does_not_end_the_driver(
    store: FakeStore, wait_until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter(["its driver is starting"])
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.01, waiting_reason=lambda: next(answers))
    recorder.start()
    wait_until(lambda: "why nothing trains" in caplog.text)
    recorder.close()
    assert not recorder.has_lost_lease


def test_a_driver_without_a_lease_does_not_start(recorder: Recorder, store: FakeStore) -> None:
    store.is_lost = True
    with pytest.raises(LeaseLostError):
        recorder.start()


def test_reports_are_recorded_in_order(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    for number in range(1, 101):
        recorder.record(epoch(number))
    recorder.close()
    assert store.epochs == list(range(1, 101))


def test_reports_that_wait_are_recorded_together(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    store.gate.clear()
    recorder.record(epoch(1))
    assert store.is_asked.wait(10)
    for number in range(2, 51):
        recorder.record(epoch(number))
    store.gate.set()
    recorder.close()
    assert len(store.batches) == 2
    assert store.epochs == list(range(1, 51))


def test_reports_that_come_one_after_the_other_are_recorded_together(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    for number in range(1, 101):
        recorder.record(epoch(number))
        time.sleep(0.002)
    recorder.close()
    assert len(store.batches) <= 5  # in 0.2 s or more, one in 50 ms
    assert store.epochs == list(range(1, 101))


def test_a_report_waits_for_others_50_ms_at_most(
    recorder: Recorder, store: FakeStore, wait_until: Callable[..., None]
) -> None:
    recorder.start()
    waited_s = []
    for number in range(1, 6):
        recorder.record(epoch(number))
        handed_s = time.monotonic()
        wait_until(lambda number=number: number in store.epochs)
        waited_s.append(time.monotonic() - handed_s)
    assert min(waited_s) < 0.1


def test_closing_waits_for_no_other_report(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tuning.recorder._BATCH_S", 30)
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.01)
    recorder.start()
    recorder.record(epoch(1))
    began_s = time.monotonic()
    recorder.close()
    assert time.monotonic() - began_s < 10
    assert store.epochs == [1]


def test_a_backlog_is_recorded_in_parts_between_which_the_lease_is_extended(
    store: FakeStore, wait_until: Callable[..., None]
) -> None:
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.05)
    recorder.start()
    store.gate.clear()
    recorder.record(epoch(0))
    assert store.is_asked.wait(10)
    for number in range(1, 1001):
        recorder.record(epoch(number))
    store.record_s = 0.001
    store.calls.clear()
    store.gate.set()
    recorder.close()
    assert store.epochs == list(range(1001))
    assert max(len(batch) for batch in store.batches) <= 100
    assert "record record record" not in " ".join(store.calls)  # each takes 0.1 s


def test_after_an_outage_the_lease_is_extended_first(store: FakeStore) -> None:
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=600)
    recorder.start()
    store.failures = [StoreUnavailableError("down")]
    recorder.record(epoch(1))
    recorder.close()
    assert store.calls == ["heartbeat", "record", "heartbeat", "record"]


def test_the_lease_is_extended_without_any_report(
    recorder: Recorder, store: FakeStore, wait_until: Callable[..., None]
) -> None:
    recorder.start()
    wait_until(lambda: len(store.heartbeats) > 3)


def test_what_the_user_wants_is_seen(recorder: Recorder, store: FakeStore, wait_until: Callable[..., None]) -> None:
    recorder.start()
    store.intent = Intent.CANCEL
    wait_until(lambda: recorder.instructions.intent is Intent.CANCEL)


def test_a_store_that_is_down_for_a_while_loses_nothing(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    store.failures = [StoreUnavailableError("down"), StoreUnavailableError("down")]
    for number in range(1, 11):
        recorder.record(epoch(number))
    recorder.close()
    assert store.failures == []
    assert store.epochs == list(range(1, 11))


def test_what_waited_for_the_store_says_when_it_happened(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    store.failures = [StoreUnavailableError("down")]
    handed_s = []
    for number in (1, 2):
        before_s = time.monotonic()
        recorder.record(epoch(number))
        handed_s.append((before_s, time.monotonic()))
        time.sleep(0.1)
    recorder.close()
    for (before_s, after_s), happened_at_s in zip(handed_s, store.happened_at_s, strict=True):
        assert before_s <= happened_at_s <= after_s


def test_a_lost_lease_stops_everything(recorder: Recorder, store: FakeStore, wait_until: Callable[..., None]) -> None:
    recorder.start()
    recorder.record(epoch(1))
    wait_until(lambda: store.epochs == [1])
    store.is_lost = True
    wait_until(lambda: recorder.has_lost_lease)
    store.is_lost = False
    recorder.record(epoch(2))
    with pytest.raises(LeaseLostError):
        recorder.close()
    assert store.epochs == [1]


def test_a_refused_report_is_a_lost_lease(recorder: Recorder, store: FakeStore) -> None:
    recorder.start()
    store.is_lost = True
    followed: list[int] = []
    recorder.record(epoch(1), after_commit=lambda: followed.append(1))
    with pytest.raises(LeaseLostError):
        recorder.close()
    assert (store.batches, followed) == ([], [])


def test_what_follows_a_report_comes_after_its_commit(recorder: Recorder, store: FakeStore) -> None:
    seen: list[Any] = []
    recorder.start()
    recorder.record(epoch(1), after_commit=lambda: seen.append(list(store.epochs)))
    recorder.record(epoch(2))
    recorder.close()
    recorder.settle()
    assert len(seen) == 1
    assert 1 in seen[0]


@pytest.mark.parametrize("error", [OSError("the bucket does not answer"), KeyError("a defect")])
def test_what_fails_afterwards_loses_no_report(recorder: Recorder, store: FakeStore, error: Exception) -> None:
    def fail() -> None:
        raise error

    seen: list[int] = []
    recorder.start()
    recorder.record(epoch(1), after_commit=fail)
    recorder.record(epoch(2), after_commit=lambda: seen.append(2))
    recorder.close()
    recorder.settle()
    assert (store.epochs, seen) == ([1, 2], [2])


def test_what_hangs_afterwards_holds_up_neither_reports_nor_heartbeats(
    recorder: Recorder, store: FakeStore, wait_until: Callable[..., None]
) -> None:
    answers = threading.Event()
    recorder.start()
    recorder.record(epoch(1), after_commit=answers.wait)
    wait_until(lambda: store.epochs == [1])
    beats = len(store.heartbeats)
    wait_until(lambda: len(store.heartbeats) > beats + 1)
    recorder.record(epoch(2))
    wait_until(lambda: store.epochs == [1, 2])
    recorder.close()
    answers.set()
    recorder.settle()


def test_a_recorder_that_fails_does_not_let_the_study_succeed(
    recorder: Recorder, store: FakeStore, wait_until: Callable[..., None]
) -> None:
    recorder.start()
    store.failures = [KeyError("a defect")]
    recorder.record(epoch(1))
    wait_until(lambda: recorder.has_lost_lease)
    with pytest.raises(RuntimeError, match="could not be recorded"):
        recorder.close()


def test_a_driver_whose_loop_stands_still_does_not_renew_its_lease(
    store: FakeStore, wait_until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(cast(DrivingStore, store), lease_s=10, heartbeat_s=0.01, stuck_after_s=0.3)

    def beats(more_than: int) -> bool:
        recorder.tick()
        return len(store.heartbeats) > more_than

    recorder.start()
    wait_until(lambda: beats(more_than=3))
    wait_until(lambda: "has stood still" in caplog.text)
    still = len(store.heartbeats)
    time.sleep(0.2)
    assert len(store.heartbeats) == still
    recorder.record(epoch(1))  # what has been trained counts as long as nobody has taken over
    wait_until(lambda: store.epochs == [1])
    wait_until(lambda: beats(more_than=still))
    recorder.close()
