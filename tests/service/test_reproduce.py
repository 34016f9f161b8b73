"""`samstudy reproduce`: what is refused before anything is started, and what Ctrl-C leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.cli import main
from service.client import Client
from service.settings import settings
from service.study import StudyState

if TYPE_CHECKING:
    from tests.service.conftest import RunningApi


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, and an environment without a service."""
    for name in [name for name in os.environ if name.startswith("SAMSTUDY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_an_unknown_name_is_bad_input_and_the_names_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "figure-nine"]) == 2
    said = capsys.readouterr().err
    for name in ("figure-constant-vs-decreasing", "figure-importance", "figure-lambda-sweep", "table-lambda-rho"):
        assert name in said


def test_an_unknown_scale_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "figure-importance", "--scale", "huge"]) == 2
    assert "huge" in capsys.readouterr().err


def test_no_name_is_bad_input() -> None:
    assert main(["reproduce"]) == 2


def test_a_file_in_place_of_the_folder_is_bad_input(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (environment / "taken").write_text("")
    assert main(["reproduce", "figure-importance", "--output", "taken"]) == 2
    assert "taken" in capsys.readouterr().err


def test_a_service_that_does_not_answer_is_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMSTUDY_URL", "http://127.0.0.1:1")
    settings.cache_clear()
    assert main(["reproduce", "figure-importance"]) == 1
    assert "no samstudy service answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_ctrl_c_leaves_the_studies_to_the_service_and_the_same_command_takes_them_again(
    environment: Path, running_api: RunningApi
) -> None:
    variables = {**os.environ, "SAMSTUDY_URL": running_api.url}
    command = [sys.executable, "-m", "service.cli", "reproduce", "figure-constant-vs-decreasing"]
    with Client(running_api.url) as client:
        for _ in range(2):
            with subprocess.Popen(
                command,
                env=variables,
                stdout=subprocess.PIPE,
                cwd=environment,
                text=True,
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if "QUEUED" in line:
                        break
                process.send_signal(signal.SIGINT)
                said = process.stdout.read()
            assert process.returncode == 130
            assert "the same command goes on with them" in said
            assert [study.state for study in client.studies()] == [StudyState.QUEUED] * 2
