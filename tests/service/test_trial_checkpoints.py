from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.spec_sections import Keep
from service.trial_checkpoints import TrialCheckpoints


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[int], TrialCheckpoints]:
    """The checkpoints of one trial as the attempt with this number sees them."""

    def attempt(number: int) -> TrialCheckpoints:
        return TrialCheckpoints(tmp_path.as_uri(), "study", "study-1-0", attempt=number)

    return attempt


@pytest.fixture
def checkpoints(attempt: Callable[[int], TrialCheckpoints]) -> TrialCheckpoints:
    return attempt(1)


def contents(checkpoints: TrialCheckpoints) -> list[tuple[int, bytes]]:
    return [(found.epoch, checkpoints.read(found)) for found in checkpoints.found()]


def files(tmp_path: Path) -> list[str]:
    """Names of all files of the trial."""
    return sorted(path.name for path in (tmp_path / "studies" / "study" / "study-1-0").rglob("*") if path.is_file())


def save_as_before(tmp_path: Path, *epochs: int) -> None:
    """As versions of the service did it in which a trial had one folder for all of its attempts."""
    folder = tmp_path / "studies" / "study" / "study-1-0"
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in epochs:
        (folder / f"{epoch:06d}.ckpt").write_bytes(b"before")


def test_a_trial_begins_without_checkpoints(checkpoints: TrialCheckpoints) -> None:
    assert contents(checkpoints) == []
    assert checkpoints.take_over() == []
    checkpoints.tidy("latest", up_to_attempt=1)
    checkpoints.tidy("none", up_to_attempt=1)


def test_the_newest_comes_first_and_two_are_kept(checkpoints: TrialCheckpoints) -> None:
    for epoch in (1, 2, 10, 9):
        checkpoints.save(epoch, b"%d" % epoch)
    assert contents(checkpoints) == [(10, b"10"), (9, b"9")]


def test_the_newest_stays_of_a_trial_that_has_ended(checkpoints: TrialCheckpoints, tmp_path: Path) -> None:
    for epoch in (1, 2):
        checkpoints.save(epoch, b"")
    checkpoints.tidy("latest", up_to_attempt=1)
    assert checkpoints.epochs() == [2]
    checkpoints.tidy("none", up_to_attempt=1)
    assert files(tmp_path) == []


def test_the_best_one_stays_among_those_that_are_kept(checkpoints: TrialCheckpoints, tmp_path: Path) -> None:
    for epoch in range(1, 7):
        checkpoints.save(epoch, b"%d" % epoch, is_best=epoch in (1, 3))
    assert files(tmp_path) == ["000003.best.ckpt", "000005.ckpt", "000006.ckpt"]
    assert [found.epoch for found in checkpoints.found() if found.is_best] == [3]
    checkpoints.save(7, b"7", is_best=True)
    assert files(tmp_path) == ["000006.ckpt", "000007.best.ckpt"]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("latest", ["000005.ckpt"]),
        ("best", ["000002.best.ckpt"]),
        ("latest_and_best", ["000002.best.ckpt", "000005.ckpt"]),
        ("none", []),
    ],
)
def test_what_stays_of_a_trial_that_has_ended(
    keep: Keep, left: list[str], checkpoints: TrialCheckpoints, tmp_path: Path
) -> None:
    for epoch in range(1, 6):
        checkpoints.save(epoch, b"", is_best=epoch == 2)
    checkpoints.tidy(keep, up_to_attempt=1)
    assert files(tmp_path) == left


def test_the_last_epoch_may_be_the_best_one(checkpoints: TrialCheckpoints, tmp_path: Path) -> None:
    for epoch in (1, 2):
        checkpoints.save(epoch, b"", is_best=True)
    checkpoints.tidy("latest_and_best", up_to_attempt=1)
    assert files(tmp_path) == ["000002.best.ckpt"]


def test_the_best_one_is_that_of_the_last_attempt_that_has_any(
    attempt: Callable[[int], TrialCheckpoints], tmp_path: Path
) -> None:
    """A later attempt goes on from what those before it have saved; one that was given up may still train."""
    stale, later, last = map(attempt, (1, 2, 3))
    stale.save(2, b"", is_best=True)
    later.save(4, b"later", is_best=True)
    stale.save(9, b"stale", is_best=True)
    last.take_over()
    for epoch in (10, 11, 12):
        last.save(epoch, b"")
    assert [found.epoch for found in last.found() if found.is_best] == [4]
    last.tidy("best", up_to_attempt=3)
    assert files(tmp_path) == ["000004.best.ckpt"]


@pytest.mark.parametrize(("keep", "left"), [("latest", [(5, 1)]), ("none", [])])
def test_tidying_leaves_a_later_attempt_alone(
    keep: Keep,
    left: list[tuple[int, int]],
    attempt: Callable[[int], TrialCheckpoints],
    tmp_path: Path,
) -> None:
    """The trial runs again meanwhile, from its beginning."""
    first, second = attempt(1), attempt(2)
    for epoch in (4, 5):
        first.save(epoch, b"")
    for epoch in (1, 2):
        path = Path(second.save(epoch, b""))
    path.with_name("000003.ckpt.partial").write_bytes(b"ha")
    first.tidy(keep, up_to_attempt=1)
    assert [(found.epoch, found.attempt) for found in second.found()] == [*left, (2, 2), (1, 2)]
    assert "000003.ckpt.partial" in files(tmp_path)


def test_tidying_leaves_an_attempt_alone_that_has_taken_over(attempt: Callable[[int], TrialCheckpoints]) -> None:
    """Its number is at least the one that the store knows it by."""
    attempt(1).save(5, b"the store has not heard of it")
    first, second = attempt(1), attempt(2)
    first.take_over()
    first.save(6, b"")
    second.take_over()
    second.save(7, b"")
    first.tidy("none", up_to_attempt=1)
    assert 7 in second.epochs()


def test_what_was_surplus_once_goes_and_nothing_that_was_saved_since(
    attempt: Callable[[int], TrialCheckpoints],
) -> None:
    first, second = attempt(1), attempt(2)
    for epoch in (4, 5):
        first.save(epoch, b"")
    surplus = first.surplus("none")
    second.save(1, b"")
    first.remove(surplus)
    first.remove(surplus)  # as one that comes late to it
    assert second.epochs() == [1]


def test_the_same_epoch_again_replaces_its_checkpoint(checkpoints: TrialCheckpoints) -> None:
    checkpoints.save(1, b"old")
    checkpoints.save(1, b"new")
    assert contents(checkpoints) == [(1, b"new")]


def test_a_file_that_is_not_whole_is_no_checkpoint(checkpoints: TrialCheckpoints) -> None:
    path = Path(checkpoints.save(1, b"whole"))
    path.with_name("000002.ckpt.partial").write_bytes(b"ha")
    assert contents(checkpoints) == [(1, b"whole")]
    checkpoints.save(2, b"now whole")
    assert sorted(file.name for file in path.parent.iterdir()) == ["000001.ckpt", "000002.ckpt"]


def test_what_is_of_no_use_does_not_count_among_those_that_are_kept(checkpoints: TrialCheckpoints) -> None:
    for epoch in (1, 2):
        checkpoints.save(epoch, b"")
    checkpoints.discard(checkpoints.found()[0])
    checkpoints.save(3, b"")
    assert checkpoints.epochs() == [3, 1]


def test_the_next_attempt_finds_those_before_and_lets_them_go_as_it_passes_them(
    attempt: Callable[[int], TrialCheckpoints], tmp_path: Path
) -> None:
    first, second = attempt(1), attempt(2)
    for epoch in (4, 5):
        first.save(epoch, b"first")
    assert [found.epoch for found in second.take_over()] == [5, 4]
    second.save(6, b"second")
    assert contents(second) == [(6, b"second"), (5, b"first")]
    second.save(7, b"second")
    assert contents(second) == [(7, b"second"), (6, b"second")]
    assert len(list((tmp_path / "studies" / "study" / "study-1-0").iterdir())) == 1


def test_an_attempt_that_starts_over_keeps_its_own_and_what_is_far_ahead(
    attempt: Callable[[int], TrialCheckpoints],
) -> None:
    first, second, third = map(attempt, (1, 2, 3))
    for epoch in (52, 53):
        first.save(epoch, b"first")
    for epoch in range(1, 41):
        second.save(epoch, b"second")
    assert third.epochs() == [53, 52, 40, 39]
    for epoch in range(41, 55):
        second.save(epoch, b"second")
    assert contents(third) == [(54, b"second"), (53, b"second")]


def test_an_attempt_that_was_given_up_removes_nothing_of_a_later_one(
    attempt: Callable[[int], TrialCheckpoints],
) -> None:
    stale, later = attempt(1), attempt(2)
    stale.save(50, b"stale")
    later.take_over()
    for epoch in (51, 52):
        later.save(epoch, b"later")
    for epoch in (51, 60, 61):
        stale.save(epoch, b"stale")
    assert contents(later) == [(61, b"stale"), (60, b"stale"), (52, b"later"), (51, b"later")]
    later.save(53, b"later")
    assert [epoch for epoch, content in contents(later) if content == b"later"] == [53, 52]


def test_of_one_epoch_that_of_the_later_attempt_comes_first(attempt: Callable[[int], TrialCheckpoints]) -> None:
    for number in (2, 1):
        attempt(number).save(5, b"%d" % number)
    assert contents(attempt(3)) == [(5, b"2"), (5, b"1")]


def test_attempts_of_the_same_number_leave_each_other_alone(attempt: Callable[[int], TrialCheckpoints]) -> None:
    """A driver that dies before the store hears of its attempt leaves the number to the next one."""
    unheard, known = attempt(2), attempt(2)
    for epoch in (3, 4, 5):
        unheard.save(epoch, b"unheard")
        known.save(epoch - 2, b"known")
    assert known.epochs() == [5, 4, 3, 2]


def test_an_attempt_that_takes_over_is_later_than_those_with_higher_numbers(
    attempt: Callable[[int], TrialCheckpoints],
) -> None:
    attempt(7).save(5, b"the store has not heard of it")
    taking_over = attempt(2)
    taking_over.take_over()
    for epoch in (6, 7):
        taking_over.save(epoch, b"")
    assert taking_over.epochs() == [7, 6]


def test_what_earlier_versions_have_saved_is_found_and_goes_in_its_time(
    attempt: Callable[[int], TrialCheckpoints], tmp_path: Path
) -> None:
    save_as_before(tmp_path, 4, 5)
    (tmp_path / "studies" / "study" / "study-1-0" / "000006.ckpt.ab12.partial").write_bytes(b"ha")
    checkpoints = attempt(2)
    assert [(found.epoch, checkpoints.read(found)) for found in checkpoints.take_over()] == [
        (5, b"before"),
        (4, b"before"),
    ]
    checkpoints.save(6, b"")
    assert files(tmp_path) == ["000005.ckpt", "000006.ckpt"]
    checkpoints.save(7, b"")
    assert files(tmp_path) == ["000006.ckpt", "000007.ckpt"]


def test_tidying_knows_what_earlier_versions_have_saved(
    attempt: Callable[[int], TrialCheckpoints], tmp_path: Path
) -> None:
    save_as_before(tmp_path, 4, 5)
    attempt(2).save(3, b"")
    attempt(1).tidy("latest", up_to_attempt=2)
    assert files(tmp_path) == ["000005.ckpt"]


def test_tidying_takes_this_trial_only(tmp_path: Path) -> None:
    one, other = (TrialCheckpoints(tmp_path.as_uri(), "study", f"study-1-{seed}") for seed in (0, 1))
    for checkpoints in (one, other):
        checkpoints.save(1, b"")
    one.tidy("none", up_to_attempt=1)
    assert (contents(one), len(contents(other))) == ([], 1)


def test_storage_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="studies"):
        TrialCheckpoints(tmp_path.as_uri(), "study", "trial").save(1, b"")
