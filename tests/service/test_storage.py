from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pyarrow import fs

from service.storage import check_writable, delete_study_files, list_folder, study_folder
from service.trial_checkpoints import TrialCheckpoints
from service.trial_logs import TrialLog


def test_the_checkpoints_and_logs_of_a_study_are_in_its_folder(tmp_path: Path) -> None:
    TrialCheckpoints(tmp_path.as_uri(), "s1", "s1-1-0").save(1, b"weights")
    log = TrialLog(tmp_path.as_uri(), "s1", "s1-1-0", 1)
    log.clear()
    log.write(0, b"said")
    _, folder = study_folder(tmp_path.as_uri(), "s1")
    assert {path.name for path in Path(folder).rglob("*") if path.is_file()} == {"000001.ckpt", "000000000000.log"}


def test_a_studys_files_are_deleted_and_no_others(tmp_path: Path) -> None:
    for study_id in ("s1", "s12"):
        TrialCheckpoints(tmp_path.as_uri(), study_id, f"{study_id}-1-0").save(1, b"weights")
    assert delete_study_files(tmp_path.as_uri(), "s1")
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["s12"]
    assert not delete_study_files(tmp_path.as_uri(), "s1")
    assert not delete_study_files((tmp_path / "nothing").as_uri(), "s1")


def test_a_folder_made_and_deleted_while_it_is_listed_is_there_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    is_enough = threading.Event()

    def make_and_delete() -> None:
        while not is_enough.is_set():
            folder.mkdir()
            folder.rmdir()

    making = threading.Thread(target=make_and_delete)
    making.start()
    try:
        for _ in range(20_000):  # one in a thousand meets the moment
            assert list_folder(fs.LocalFileSystem(), str(folder)) == []
    finally:
        is_enough.set()
        making.join()


@pytest.mark.parametrize("study_id", ["", ".", "..", "../studies", "a/b", "s1\n", "S1", "a" * 33])
def test_what_is_no_studys_id_names_no_folder(tmp_path: Path, study_id: str) -> None:
    (tmp_path / "studies" / "s1").mkdir(parents=True)
    with pytest.raises(ValueError, match="is no id of a study"):
        delete_study_files(tmp_path.as_uri(), study_id)
    assert (tmp_path / "studies" / "s1").is_dir()


@pytest.mark.parametrize(
    "uri", ["s3://KEY:abc/def@bucket/p", "nosuch://KEY:abcdef@bucket/p", "s3://b/p?password=abcdef"]
)
def test_what_is_wrong_with_the_uri_is_said_without_it(uri: str) -> None:
    for use in (check_writable, lambda uri: study_folder(uri, "s1"), lambda uri: delete_study_files(uri, "s1")):
        with pytest.raises(ValueError, match=r"\w") as caught:
            use(uri)
        assert "abc" not in str(caught.value)
        assert caught.value.__cause__ is None
