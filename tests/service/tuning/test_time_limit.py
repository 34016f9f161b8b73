from __future__ import annotations

import importlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.tuning.time_limit import OutOfTimeError, time_limit


@pytest.fixture(autouse=True)
def timer_of_somebody_else() -> Iterator[list[int]]:
    """A handler and a timer that were there before: they fire in 100 s."""
    fired: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, frame: fired.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 100)
    ours = signal.getsignal(signal.SIGALRM)
    yield fired
    assert signal.getsignal(signal.SIGALRM) is ours
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 80 < left <= 100
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)
    assert fired == []


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_what_is_quick_is_not_interrupted() -> None:
    with time_limit(time.monotonic() + 60):
        busy(0.01)


def test_without_a_deadline_nothing_is_limited() -> None:
    with time_limit(None):
        busy(0.01)


@pytest.mark.parametrize("wait", [busy, time.sleep])
def test_it_is_interrupted_in_the_middle(wait: object) -> None:
    started = time.monotonic()
    with pytest.raises(OutOfTimeError), time_limit(started + 0.1):
        wait(20)  # type: ignore[operator]
    assert 0.1 <= time.monotonic() - started < 5


def test_a_deadline_that_is_over_lets_nothing_begin() -> None:
    with pytest.raises(OutOfTimeError), time_limit(time.monotonic()):
        pytest.fail("it began")


def test_code_that_catches_exceptions_does_not_stop_it() -> None:
    def stubborn() -> None:
        with time_limit(time.monotonic() + 0.05):
            try:
                busy(20)
            except Exception:  # noqa: BLE001
                pytest.fail("it was caught")

    with pytest.raises(OutOfTimeError):
        stubborn()


def test_an_interruption_that_is_lost_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tuning.time_limit._AGAIN_S", 0.05)
    lost: list[BaseException] = []

    def careless() -> None:
        with time_limit(time.monotonic() + 0.3):
            while len(lost) < 2:
                try:
                    busy(20)
                except OutOfTimeError as error:
                    lost.append(error)
            busy(20)

    with pytest.raises(OutOfTimeError):
        careless()
    assert len(lost) == 2


def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), time_limit(time.monotonic() + 60):
        raise KeyError


def test_outside_the_main_thread_the_deadline_is_looked_at_before() -> None:
    seen: list[str] = []

    def run() -> None:
        with time_limit(time.monotonic() + 0.3):
            busy(0.4)
            seen.append("not interrupted")
        try:
            with time_limit(time.monotonic() - 1):
                seen.append("began")
        except OutOfTimeError:
            seen.append("too late")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert seen == ["not interrupted", "too late"]


def test_an_import_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module would stay half made, and the next trial in this process would not find what it needs."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.6)\nDONE = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OutOfTimeError), time_limit(time.monotonic() + 0.1):  # noqa: PT012
        module = importlib.import_module("slow_to_import")
        while True:
            time.sleep(0.01)
    assert module.DONE
