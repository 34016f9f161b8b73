"""What a process prints while a trial trains is in the attempt's log, and only that."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.trial_logs import TrialLog
from service.tuning import trial_output
from service.tuning.trial_output import TrialOutput

STAMP = "2026-01-01T00:00:00.000Z samstudy: "


class Attempts:
    """Attempts of one trial in this process, and their logs."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.outputs: list[TrialOutput] = []

    def begin(self, attempt: int = 1, flush_s: float = 60) -> TrialOutput:
        output = TrialOutput(lambda: self.log(attempt), flush_s=flush_s, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
        self.outputs.append(output)
        return output

    def log(self, attempt: int = 1) -> TrialLog:
        return TrialLog(self.storage.as_uri(), "study", "study-1-0", attempt)

    def read(self, attempt: int = 1) -> str:
        log = self.log(attempt)
        return b"".join(log.read(log.extent())).decode()


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    attempts = Attempts(tmp_path)
    yield attempts
    for output in attempts.outputs:
        output.close(wait_s=10)


def test_a_line_of_the_service_begins_a_line_also_where_a_piece_has_just_ended(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_output, "_PIECE_BYTES", 16)
    output = attempts.begin()
    with output.captured():
        print("\rstep 12 of a progress bar", end="", flush=True)
    output._flush(is_last=False)
    assert not output._piece
    output.say("epoch 1 of 10")
    output.close(wait_s=10)
    assert attempts.read() == f"\rstep 12 of a progress bar\n{STAMP}epoch 1 of 10\n"


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("character", ["\u00e9", "\u20ac", "\U0001f642"])
def test_what_is_left_out_begins_with_a_whole_character(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, character: str, offset: int
) -> None:
    monkeypatch.setattr(trial_output, "MAX_BYTES", 3_000)
    monkeypatch.setattr(trial_output, "_FREE_OF_OUTPUT", 1_000)
    output = attempts.begin()
    with output.captured():
        print(offset * "x" + 2_000 * character)
    output.close(wait_s=10)
    printed, note, _ = attempts.read().split("\n")
    assert printed.strip("x").strip(character) == ""
    assert note.endswith("more that the training prints is left out]")


def test_python_c_and_children_are_heard_in_their_order(attempts: Attempts) -> None:
    output = attempts.begin()
    libc = ctypes.CDLL(None)
    with output.captured():
        print("from Python")
        sys.stderr.write("to stderr\n")
        os.write(1, b"to the descriptor\n")
        libc.puts(b"from C")
        libc.fflush(None)
        subprocess.run(["echo", "from a child"], check=True, timeout=10)
        print("half a line", end="")
        output.say("its own")
    output.close()
    assert attempts.read() == (
        "from Python\nto stderr\nto the descriptor\nfrom C\nfrom a child\nhalf a line\n" + STAMP + "its own\n"
    )


def test_what_c_holds_back_is_in_the_right_log(attempts: Attempts) -> None:
    first, second = attempts.begin(1), attempts.begin(2)
    with first.captured():
        ctypes.CDLL(None).printf(b"of the first")
    with second.captured():
        print("of the second")
    first.close()
    second.close()
    assert (attempts.read(1), attempts.read(2)) == ("of the first", "of the second\n")


def test_logging_is_heard_from_info_on(attempts: Attempts) -> None:
    output = attempts.begin()
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    with output.captured():
        logging.getLogger("a.library").info("it says")
        logging.getLogger("a.library").debug("it whispers")
    output.close()
    assert " INFO a.library: it says\n" in attempts.read()
    assert "whispers" not in attempts.read()
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before


def test_the_process_has_its_own_output_back(attempts: Attempts) -> None:
    def where() -> list[object]:
        return [(os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino) for descriptor in (1, 2)] + [
            sys.stdout,
            sys.stderr,
        ]

    before = where()
    output = attempts.begin()
    with pytest.raises(KeyError), output.captured():
        raise KeyError("an error of the training")
    assert where() == before
    print("not of the trial")
    output.close()
    assert attempts.read() == ""


def test_no_descriptor_is_left_behind(attempts: Attempts, wait_until: Callable[..., None]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for attempt in range(1, 6):
        output = attempts.begin(attempt)
        with output.captured():
            print("something")
        output.close()
    wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_a_logger_that_keeps_the_stream_of_an_earlier_attempt_harms_nobody(attempts: Attempts) -> None:
    first, second = attempts.begin(1), attempts.begin(2)
    with first.captured():
        handler = logging.StreamHandler(sys.stderr)
    logger = logging.Logger("of its own")
    logger.addHandler(handler)
    first.close()
    with second.captured():
        logger.warning("later")
    second.close()
    assert (attempts.read(1), attempts.read(2)) == ("", "later\n")


def test_characters_that_are_no_text_are_kept_as_they_are(attempts: Attempts) -> None:
    output = attempts.begin()
    with output.captured():
        os.write(1, b"\xff\x00\n")
        print("λ \ud800")
    output.close()
    log = attempts.log()
    assert b"".join(log.read(log.extent())) == b"\xff\x00\n" + "λ \\ud800\n".encode()


def test_it_is_stored_while_the_trial_trains(attempts: Attempts, wait_until: Callable[..., None]) -> None:
    output = attempts.begin(flush_s=0.02)
    with output.captured():
        print("first")
        wait_until(lambda: attempts.read() == "first\n")
        print("second")
        wait_until(lambda: attempts.read() == "first\nsecond\n")
        assert not attempts.log().extent().is_finished
    output.close()
    assert attempts.log().extent().is_finished


def test_much_output_has_few_objects_and_the_memory_back(attempts: Attempts, wait_until: Callable[..., None]) -> None:
    output = attempts.begin(flush_s=0.005)
    said = ""
    with output.captured():
        for number in range(100):
            line = f"{number:04d} " + "x" * 2_000
            print(line)
            said += line + "\n"
            threading.Event().wait(0.002)
        descriptor = output._captured._file
        assert descriptor is not None
        wait_until(lambda: attempts.read() == said)
        assert os.fstat(descriptor).st_size == len(said)
        assert os.fstat(descriptor).st_blocks * 512 <= 8192
    output.close()
    assert attempts.read() == said
    assert len(attempts.log().extent().pieces) <= len(said) // 65_536 + 1


def test_a_log_is_bounded_and_its_end_is_there(attempts: Attempts) -> None:
    output = attempts.begin(flush_s=0.01)
    with output.captured():
        for _ in range(15):
            os.write(1, (b"x" * 127 + b"\n") * 8192)
        output.say("epoch 1")
        for _ in range(20):
            output.say("e" * 65_536)
    output.say("the traceback", is_end=True)
    output.close(wait_s=30)
    log = attempts.read()
    assert len(log) <= trial_output.MAX_BYTES
    assert len(log) > 0.9 * trial_output.MAX_BYTES
    assert log.count("more that the training prints is left out") == 1
    assert STAMP + "epoch 1\n" in log
    assert log.count("more to say is left out") == 1
    assert log.endswith(STAMP + "the traceback\n")


def test_storage_that_fails_is_not_heard_of_and_has_it_all_later(
    attempts: Attempts, wait_until: Callable[..., None]
) -> None:
    blocked = attempts.storage / "studies"
    blocked.write_text("a file where a folder should be")
    output = attempts.begin(flush_s=0.02)
    with output.captured():
        print("first")
        wait_until(lambda: output._is_failing)
        print("second")
        blocked.unlink()
        wait_until(lambda: "second" in attempts.read())
    output.close()
    log = attempts.read()
    assert log.startswith("first\n")
    assert "the storage does not take this log" in log
    assert log.endswith("second\n")


def test_the_end_is_stored_when_the_storage_is_back_and_nobody_waits_for_it(
    attempts: Attempts, wait_until: Callable[..., None]
) -> None:
    blocked = attempts.storage / "studies"
    blocked.write_text("a file where a folder should be")
    output = attempts.begin(flush_s=0.2)
    output.say("the end", is_end=True)
    output.close()
    blocked.unlink()
    wait_until(lambda: attempts.log().extent().is_finished)
    assert "the end" in attempts.read()


def test_a_storage_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    released = threading.Event()

    def open_log() -> TrialLog:
        released.wait(30)
        return TrialLog(tmp_path.as_uri(), "study", "study-1-0", 1)

    output = TrialOutput(open_log, flush_s=0.01)
    with output.captured():
        print("something")
    output.close(wait_s=0.05)
    released.set()
    output._thread.join(10)
    assert not output._thread.is_alive()


def test_an_attempt_of_this_number_that_nobody_knows_leaves_nothing(attempts: Attempts) -> None:
    log = attempts.log()
    log.clear()
    log.write(0, b"of a driver that was killed before it could say so\n")
    log.write(51, b"much of it\n")
    log.finish()
    output = attempts.begin()
    output.say("anew")
    output.close()
    assert attempts.read() == STAMP + "anew\n"


def test_closing_twice_is_closing_once(attempts: Attempts) -> None:
    output = attempts.begin()
    output.close()
    output.close()
    with output.captured():
        print("too late")
    assert attempts.read() == ""
