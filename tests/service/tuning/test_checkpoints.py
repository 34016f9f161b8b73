from __future__ import annotations

from pathlib import Path

import pytest

from service.tuning.checkpoints import TrialCheckpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> TrialCheckpoints:
    return TrialCheckpoints(tmp_path.as_uri(), "study", "study-1-0")


def contents(checkpoints: TrialCheckpoints) -> list[tuple[int, bytes]]:
    return list(checkpoints.newest_first())


def test_a_trial_begins_without_checkpoints(checkpoints: TrialCheckpoints) -> None:
    assert contents(checkpoints) == []
    checkpoints.prune(1)
    checkpoints.delete()


def test_the_newest_comes_first_and_two_are_kept(checkpoints: TrialCheckpoints) -> None:
    for epoch in (1, 2, 10, 9):
        checkpoints.save(epoch, b"%d" % epoch)
    assert contents(checkpoints) == [(10, b"10"), (9, b"9")]


def test_those_after_an_epoch_can_be_left_out(checkpoints: TrialCheckpoints) -> None:
    for epoch in (4, 5):
        checkpoints.save(epoch, b"%d" % epoch)
    assert list(checkpoints.newest_first(up_to=4)) == [(4, b"4")]
    assert list(checkpoints.newest_first(up_to=0)) == []


def test_as_many_are_kept_as_asked_for(checkpoints: TrialCheckpoints) -> None:
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, b"", keep=3)
    assert [epoch for epoch, _ in contents(checkpoints)] == [3, 2, 1]
    checkpoints.save(4, b"", keep=1)
    assert [epoch for epoch, _ in contents(checkpoints)] == [4]


def test_pruning_keeps_the_newest(checkpoints: TrialCheckpoints) -> None:
    for epoch in (1, 2):
        checkpoints.save(epoch, b"")
    checkpoints.prune(1)
    assert [epoch for epoch, _ in contents(checkpoints)] == [2]


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


def test_deleting_takes_this_trial_only(tmp_path: Path) -> None:
    one, other = (TrialCheckpoints(tmp_path.as_uri(), "study", f"study-1-{seed}") for seed in (0, 1))
    for checkpoints in (one, other):
        checkpoints.save(1, b"")
    one.delete()
    assert (contents(one), len(contents(other))) == ([], 1)


def test_storage_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="studies"):
        TrialCheckpoints(tmp_path.as_uri(), "study", "trial").save(1, b"")
