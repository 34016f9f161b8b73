"""A log under the storage URI: pieces that grow, read from any byte on."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.trial_logs import LogExtent, LogPiece, TrialLog


@pytest.fixture
def log(tmp_path: Path) -> TrialLog:
    return TrialLog(tmp_path.as_uri(), "study", "study-1-0", 1)


def text(log: TrialLog, after: int = 0) -> bytes:
    return b"".join(log.read(log.extent(), after=after))


def last_lines(log: TrialLog, lines: int) -> bytes:
    *_, offset = log.seek_last_lines(log.extent(), lines)
    return text(log, offset)


def test_a_log_that_was_never_written_is_empty(log: TrialLog) -> None:
    assert log.extent() == LogExtent((), False)
    assert text(log) == b""
    assert last_lines(log, 3) == b""


def test_a_piece_grows_and_the_next_follows(log: TrialLog) -> None:
    log.clear()
    log.write(0, b"one\n")
    log.write(0, b"one\ntwo\n")
    log.write(8, b"three\n")
    assert log.extent() == LogExtent((LogPiece(0, 8), LogPiece(8, 6)), False)
    assert text(log) == b"one\ntwo\nthree\n"
    log.finish()
    assert log.extent().is_finished


@pytest.mark.parametrize("after", range(20))
def test_a_reader_goes_on_after_any_byte(log: TrialLog, after: int) -> None:
    whole = "λ=½\nρ=0.1\nend".encode()
    log.clear()
    log.write(0, whole[:5])
    log.write(5, whole[5:])
    assert text(log, after) == whole[after:]


def test_pieces_larger_than_a_block_come_whole(log: TrialLog) -> None:
    log.clear()
    log.write(0, b"0123456789abcde\n" * 20_000)
    assert text(log, 7) == (b"0123456789abcde\n" * 20_000)[7:]


@pytest.mark.parametrize("is_terminated", [True, False])
@pytest.mark.parametrize("cut", [1, 4, 10, 12])
@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 9])
def test_the_last_lines_begin_where_they_begin(log: TrialLog, lines: int, cut: int, is_terminated: bool) -> None:
    whole = b"a\nbb\n\ncccc\nddd" + b"\n" * is_terminated
    log.clear()
    log.write(0, whole[:cut])
    log.write(cut, whole[cut:])
    assert last_lines(log, lines) == b"".join(whole.splitlines(keepends=True)[5 - lines if lines < 5 else 0 :])


def test_the_last_lines_of_a_large_log(log: TrialLog) -> None:
    lines = [b"%07d\n" % number for number in range(40_000)]
    log.clear()
    log.write(0, b"".join(lines[:30_000]))
    log.write(240_000, b"".join(lines[30_000:]))
    for wanted in (1, 100, 9_999, 10_000, 10_001, 35_000):
        assert last_lines(log, wanted) == b"".join(lines[-wanted:])


def test_clearing_takes_this_attempt_only(tmp_path: Path) -> None:
    one, other = (TrialLog(tmp_path.as_uri(), "study", "study-1-0", attempt) for attempt in (1, 2))
    for log in (one, other):
        log.clear()
        log.write(0, b"said")
        log.finish()
    one.clear()
    assert (one.extent(), text(other)) == (LogExtent((), False), b"said")


def test_a_piece_that_is_being_written_is_none_yet(log: TrialLog, tmp_path: Path) -> None:
    log.clear()
    log.write(0, b"whole")
    (piece,) = tmp_path.rglob("*.log")
    piece.with_name(piece.name + ".partial").write_bytes(b"ha")
    assert text(log) == b"whole"


def test_storage_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="studies"):
        TrialLog(tmp_path.as_uri(), "study", "study-1-0", 1).clear()
