"""`samstudy backup` and `samstudy restore`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.cli import main
from service.settings import settings
from service.store.database import Database
from service.store.studies import StudyStore

if TYPE_CHECKING:
    from tests.service.conftest import Life


@pytest.fixture
def environment(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The commands work on the store."""
    for name in [name for name in os.environ if name.startswith("SAMSTUDY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAMSTUDY_DATABASE_URL", store_url)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_a_store_goes_into_a_file_and_into_a_new_store(
    environment: Path, life: Life, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.8)})
    file = environment / "store.backup"
    assert main(["backup", str(file)]) == 0
    assert "1 studies, 2 trials, 6 results of " in capsys.readouterr().out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["restore", "--check", str(file)]) == 0
    assert "is whole" in capsys.readouterr().out

    new = f"sqlite:///{environment / 'new' / 'store.db'}"
    monkeypatch.setenv("SAMSTUDY_DATABASE_URL", new)
    settings.cache_clear()
    assert main(["restore", str(file)]) == 0
    assert "restored 1 studies" in capsys.readouterr().out
    database = Database(new)
    restored = StudyStore(database).get(study.id)
    moved_on = {name: getattr(restored, name) for name in ("revision", "driver_attempt", "version")}
    assert restored == study.model_copy(update=moved_on)
    assert all(moved_on[name] > getattr(study, name) for name in moved_on)
    database.dispose()


def test_a_store_whose_url_has_options_is_backed_up_too(
    environment: Path, store_url: str, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.create()
    monkeypatch.setenv("SAMSTUDY_DATABASE_URL", f"{store_url}?timeout=20")
    settings.cache_clear()
    assert main(["backup", str(environment / "store.backup")]) == 0


def test_a_mistyped_home_is_said_and_not_made(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SAMSTUDY_DATABASE_URL")
    monkeypatch.setenv("SAMSTUDY_HOME", str(environment / "hmoe"))
    settings.cache_clear()
    assert main(["backup", str(environment / "store.backup")]) == 1
    assert f"{environment / 'hmoe' / 'samstudy.db'} is not there" in capsys.readouterr().err
    assert not (environment / "hmoe").exists()


def test_what_is_refused_says_why(environment: Path, life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    life.create()
    file = environment / "store.backup"
    assert main(["backup", str(file)]) == 0
    for arguments, status, said in (
        (["backup", str(file)], 1, "replaces nothing"),
        (["backup", str(environment / "nowhere" / "file")], 1, "No such file"),
        (["restore", str(file)], 1, "the store is not empty (studies: 1)"),
        (["restore", str(environment / "missing")], 1, "No such file"),
        (["restore", "--check", str(environment / "home")], 1, "directory"),
    ):
        capsys.readouterr()
        assert main(arguments) == status
        assert said in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-20])
    assert main(["restore", str(file)]) == 2
    assert "is damaged" in capsys.readouterr().err
