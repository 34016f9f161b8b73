"""The `samstudy` command: what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console

from service.api.app import RefusedToStartError, serve
from service.cli import main, rendering, surface_rendering
from service.cli.watching import watch_study
from service.client import Client
from service.settings import Settings, settings
from service.spec import accepted_spec
from service.study import Reason, Study, StudyState
from service.trial_checkpoints import TrialCheckpoints
from service.trial_logs import TrialLog
from tests.service.processes import DEADLINE_S
from trainers.__main__ import parse_config

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi

ACCURACIES = {
    (0.0, 0.1): (0.90, 0.92),
    (0.0, 0.2): (0.80, 0.84),
    ("1/t", 0.1): (0.95, 0.97),
    ("1/t", 0.2): (0.70, 0.72),
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An environment without a service; what is printed is 100 characters wide."""
    for name in [name for name in os.environ if name.startswith("SAMSTUDY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def served(environment: Path, running_api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> RunningApi:
    """An environment with a service."""
    monkeypatch.setenv("SAMSTUDY_URL", running_api.url)
    settings.cache_clear()
    return running_api


@pytest.fixture
def spec_file(tmp_path: Path, a_spec: dict[str, Any]) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(a_spec))
    return path


@pytest.mark.parametrize("text", ["[/red] [bold]x[/bold]", "nothing in [/data/x]", ":smiley:"])
def test_text_of_users_is_shown_as_it_is(
    text: str, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    study = life.create(name=f"fine {text.replace('/', '')}", labels={"team": text})
    driver = life.start(study)
    life.fail(driver, life.propose(driver, {"lambda": 0.5, "rho": 0.1})[0], text)
    for command, shown in ((["list"], text), (["show", study.id], study.name), (["trials", study.id], text)):
        assert main(command) == 0
        assert shown in capsys.readouterr().out


def test_no_text_commands_the_terminal(served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    study = life.create()
    driver = life.start(study)
    life.fail(driver, life.propose(driver, {"lambda": 0.5, "rho": 0.1})[0], "\x1b]0;owned\x07 \x9b2J")
    driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "\x1b[2J too many", known=driver.snapshot().known)
    for command in (["show", study.id], ["trials", study.id]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "owned" in shown


class TestSubmit:
    def test_a_file_becomes_a_study(
        self, served: RunningApi, spec_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["submit", str(spec_file), "--name", "other"]) == 0
        with Client(served.url) as client:
            (study,) = client.studies()
        said = capsys.readouterr().out
        assert study.name == "other"
        assert f"study {study.id} (other): 20 configurations × 2 seeds = 40 trials at most" in said
        assert f"samstudy watch {study.id}" in said

    def test_a_key_makes_it_once(self, served: RunningApi, spec_file: Path) -> None:
        for _ in range(2):
            assert main(["submit", str(spec_file), "--idempotency-key", "k"]) == 0
        with Client(served.url) as client:
            assert len(list(client.studies())) == 1

    @pytest.mark.parametrize("key", ["", " ", " x", "x ", "\u00e9", "a\nb"])
    def test_a_key_that_no_header_carries_is_bad_input(
        self, served: RunningApi, spec_file: Path, capsys: pytest.CaptureFixture[str], key: str
    ) -> None:
        assert main(["submit", str(spec_file), "--idempotency-key", key]) == 2
        said = capsys.readouterr().err
        assert f"Idempotency-Key: must be printable ASCII, not empty and without blanks around it, got {key!r}" in said
        with Client(served.url) as client:
            assert list(client.studies()) == []

    def test_validating_needs_no_service(
        self, environment: Path, spec_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["submit", str(spec_file), "--validate-only"]) == 0
        assert "20 configurations × 2 seeds = 40 trials" in capsys.readouterr().out

    def test_problems_of_a_spec_are_listed_on_stderr(
        self, environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text("name: 3\nobjective: {metric: val_accuracy, mode: most}\n")
        assert main(["submit", str(path)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == [
            "error: the study spec is not valid",
            "  name: must be text, got 3",
            "  search_space: is required",
            "  objective.mode: must be one of 'max', 'min', got 'most'",
        ]

    def test_a_folder_is_bad_input(self, environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["submit", str(environment)]) == 2
        assert "directory" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "url",
        [
            "127.0.0.1:8321",
            "localhost",
            "http://[bad",
            "http://a..b",
            "http://..",
            "http://xn--a",
            f"http://{300 * 'a'}",
        ],
    )
    def test_an_address_that_is_none_is_said_so(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        monkeypatch.setenv("SAMSTUDY_URL", url)
        settings.cache_clear()
        assert main(["list"]) == 1
        assert "is no address of a service" in capsys.readouterr().err

    def test_a_file_that_is_not_there_is_bad_input(self, environment: Path) -> None:
        assert main(["submit", str(environment / "none.yaml")]) == 2

    def test_no_service_is_said_with_what_to_do(
        self, environment: Path, spec_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SAMSTUDY_URL", "http://127.0.0.1:1")
        settings.cache_clear()
        assert main(["submit", str(spec_file)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: no samstudy service answers at http://127.0.0.1:1")
        assert "samstudy up" in said


class TestListAndShow:
    def test_studies_are_listed_the_newest_first(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        older, newer = life.finished(ACCURACIES), life.create(name="newer", labels={"a": "b"})
        assert main(["list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (first,) = [index for index, line in enumerate(lines) if newer.id in line]
        (second,) = [index for index, line in enumerate(lines) if older.id in line]
        assert first < second
        assert "QUEUED" in lines[first]
        assert "a:b" in lines[first]
        assert "8/40" in lines[second]  # its plan has room for more
        assert main(["list", "--state", "SUCCEEDED", "--limit", "1", "--json"]) == 0
        assert [study["id"] for study in json.loads(capsys.readouterr().out)] == [older.id]
        assert main(["list", "--label", "a:b", "--name", "newer"]) == 0
        shown = capsys.readouterr().out
        assert older.id not in shown
        assert "the newest" not in shown
        assert main(["list", "--state", "queued", "--name-contains", "NEW"]) == 0
        assert newer.id in capsys.readouterr().out
        assert main(["list", "--limit", "1"]) == 0
        shown = capsys.readouterr().out
        assert older.id not in shown
        assert "the newest 1; --limit 10 shows more" in shown

    def test_times_are_those_of_the_reader(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = life.create()
        monkeypatch.setenv("TZ", "Asia/Kathmandu")  # 5:45 ahead
        time.tzset()
        try:
            assert main(["list"]) == 0
            there = study.created_at + timedelta(hours=5, minutes=45)
            assert f"{there:%Y-%m-%d %H:%M}" in capsys.readouterr().out
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_no_studies_are_said(self, served: RunningApi, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list"]) == 0
        assert "no studies" in capsys.readouterr().out
        assert main(["list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []

    def test_a_label_without_a_value_is_bad_input(self, served: RunningApi) -> None:
        assert main(["list", "--label", "team"]) == 2

    def test_two_values_of_one_label_are_bad_input(
        self, served: RunningApi, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["list", "--label", "a:b", "--label", "a:c"]) == 2
        assert "one value of the label 'a'" in " ".join(capsys.readouterr().err.split())

    def test_a_study_is_shown_with_its_table_and_its_best(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = life.finished(ACCURACIES)
        assert main(["show", study.id]) == 0
        said = capsys.readouterr().out
        assert "8/40 trials done, 0 running, 0 failed" in said
        assert "best: configuration 3, λ=1/t ρ=0.1" in said
        assert "val_accuracy in %: 96.0 ± 1.4 (2)" in said
        assert "96.0 ± 1.4 (2) ★" in said.replace("\u00a0", " ")
        assert f"{served.url}/api/v1/studies/{study.id}" in said
        assert main(["show", study.id, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["progress"]["trials_done"] == 8

    def test_the_best_epoch_is_said_to_be_it(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        objective = {"metric": "val_accuracy", "mode": "max", "at": "best"}
        study = life.finished({(0.0, 0.1): (0.9, 0.92)}, objective=objective)
        assert main(["show", study.id]) == 0
        shown = capsys.readouterr().out
        assert "val_accuracy in %, best epoch: 91.0" in shown
        assert all(", last epoch" in line for line in shown.splitlines() if "test_accuracy" in line)

    def test_what_is_left_out_is_said(self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]) -> None:
        space = {"rho": {"type": "float", "low": 0.01, "high": 0.5}, "lambda": {"type": "float", "low": 0, "high": 1}}
        search = {"search_space": space, "algorithm": {"name": "random"}, "budget": {"max_trials": 40}}
        points = {(number / 20, 0.1): (number / 20, number / 20) for number in range(12)}
        study = life.finished(points, **search)
        assert main(["show", study.id]) == 0
        assert "the best 10; `samstudy export` has all" in capsys.readouterr().out
        few = life.create(**search)
        driver = life.start(few)
        for number in range(12):
            trials = life.propose(driver, {"lambda": number / 20, "rho": 0.1}, (0, 1))
            life.run(driver, trials if number < 4 else [], (0.9, 0.8) if number < 4 else ())
        assert main(["show", few.id]) == 0
        assert "has all" not in capsys.readouterr().out

    def test_a_study_that_is_not_there_is_bad_input(
        self, served: RunningApi, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["show", "nowhere"]) == 2
        assert capsys.readouterr().err == "error: no study has the id or the name 'nowhere'\n"


class TestCompareAndCancel:
    def test_studies_are_compared(self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]) -> None:
        a, b = life.finished(ACCURACIES), life.finished({(0.0, 0.1): (0.90, 0.91)})
        assert main(["compare", a.id, b.id]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "λ=1/t ρ=0.1" in said
        assert f"{a.id} − {b.id}" in said
        assert "paired t, n = 2" in said
        assert "val_accuracy, last epoch" in said
        assert "Holm's correction for 1 comparison" in said
        assert main(["compare", a.id]) == 2

    def test_the_epoch_that_is_compared_is_shown(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        objective = {"metric": "val_accuracy", "mode": "max", "at": "best"}
        a, b = (life.finished(ACCURACIES, objective=objective) for _ in range(2))
        assert main(["compare", a.id, b.id]) == 0
        assert "val_accuracy, best epoch" in capsys.readouterr().out

    def test_the_correction_is_for_what_was_tested(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        accuracies = [(0.90, 0.92), (0.80, 0.85), (0.70, 0.78), (0.89, 0.91)]
        a, b, c, shifted = (life.finished({(0.0, 0.1): values}) for values in accuracies)
        assert main(["compare", a.id, b.id, c.id, shifted.id, life.create().id]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "Holm's correction of p for 2 comparisons" in said
        assert "the differences do not vary" in said
        assert main(["compare", a.id, shifted.id]) == 0
        said = capsys.readouterr().out
        assert "correction for" not in said
        assert "two-sided" not in said

    def test_a_study_can_be_cancelled_once_it_is_there_and_until_it_has_ended(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        queued, running, ended = life.create(), life.create(), life.finished(ACCURACIES)
        life.start(running)
        assert main(["cancel", queued.id]) == 0
        assert "is cancelled" in capsys.readouterr().out
        assert main(["cancel", running.id]) == 0
        assert "is being cancelled" in capsys.readouterr().out
        assert main(["cancel", ended.id]) == 1
        assert "already ended" in capsys.readouterr().err


class Showing:
    """A study that goes a step further whenever its watcher sleeps."""

    def __init__(self, life: Life, end: Callable[[Any], None]) -> None:
        self.life, self.study = life, life.create(replicates={"seeds": [0, 1]})
        self._end = end
        self._steps = iter(self._story())

    def _story(self) -> Iterator[None]:
        driver = self.life.start(self.study)
        yield
        for (lam, rho), values in ACCURACIES.items():
            for trial, value in zip(self.life.propose(driver, {"lambda": lam, "rho": rho}), values, strict=True):
                self.life.train(driver, trial, value)
                yield
        self._end(driver)
        yield

    def sleep(self, _: float) -> None:
        next(self._steps)


class TestWatch:
    def test_without_a_terminal_it_is_plain_lines_and_a_table(self, running_api: RunningApi, life: Life) -> None:
        showing = Showing(life, life.succeed)
        output = io.StringIO()
        with Client(running_api.url) as client:
            console = Console(file=output, width=100)
            study = watch_study(client, showing.study.id, console, sleep=showing.sleep)
        said = output.getvalue()
        assert study.state is StudyState.SUCCEEDED
        assert "\x1b" not in said
        for state, done in (("QUEUED", 0), ("RUNNING", 0), ("SUCCEEDED", 8)):
            assert f"{state}  {done}/40 trials done, 0 running, 0 failed" in said
        assert said.count("trials done") == 3
        assert "96.0 ± 1.4 (2) ★" in said.replace("\u00a0", " ")
        assert "ended: SUCCEEDED" in said
        assert f"API:    {running_api.url}/api/v1/studies/{study.id}" in said

    def test_in_a_terminal_the_table_fills_while_the_bar_grows(self, running_api: RunningApi, life: Life) -> None:
        showing = Showing(life, life.succeed)
        output = io.StringIO()
        with Client(running_api.url) as client:
            console = Console(file=output, width=100, height=50, force_terminal=True, color_system=None)
            watch_study(client, showing.study.id, console, sleep=showing.sleep)
        said = output.getvalue().replace("\u00a0", " ")
        assert "90.0 (1/2)" in said, "a configuration with one of two seeds shows what it has"
        assert "91.0 ± 1.4 (2) ★" in said, "the first complete configuration is the best so far"
        assert said.rindex("96.0 ± 1.4 (2) ★") > said.index("91.0 ± 1.4 (2) ★")
        assert "━" in said

    @pytest.mark.parametrize(("end", "code"), [("succeed", 0), ("cancel", 1)])
    def test_the_exit_code_is_0_only_for_success(
        self, served: RunningApi, life: Life, end: str, code: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = life.create()
        if end == "succeed":
            life.succeed(life.start(study))
        else:
            life.lifecycle.cancel(study.id)
        assert main(["watch", study.id]) == code
        said = capsys.readouterr().out
        assert "no results yet" in said
        assert ("reason: USER" in said) == (end == "cancel")

    def test_submit_can_stay_and_watch(
        self, served: RunningApi, life: Life, spec_file: Path, wait_until: Callable[..., None]
    ) -> None:
        with _command("submit", str(spec_file), "--watch", url=served.url) as watching:
            with Client(served.url) as client:
                wait_until(lambda: len(list(client.studies())) == 1, DEADLINE_S)
                (study,) = client.studies()
            driver = life.start(study)
            life.train(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0], 0.9)
            life.succeed(driver)
            out, err = watching.communicate(timeout=DEADLINE_S)
        assert (watching.returncode, err) == (0, "")
        assert "1/40 trials done" in out

    def test_ctrl_c_leaves_the_study_running_and_says_so(self, served: RunningApi, life: Life) -> None:
        study = life.create()
        with _command("watch", study.id, url=served.url) as watching:
            assert watching.stdout is not None
            assert "QUEUED" in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            out, err = watching.communicate(timeout=DEADLINE_S)
        assert (watching.returncode, err) == (130, "")
        assert f"study {study.id} goes on" in out
        assert life.studies.get(study.id).state is StudyState.QUEUED

    def test_a_space_without_lambda_and_rho_shows_its_best_configurations(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = life.create(search_space={"lr": {"type": "float", "low": 0.01, "high": 0.1, "step": 0.01}})
        driver = life.start(study)
        for lr, accuracy in ((0.01, 0.7), (0.02, 0.9)):
            for trial in life.propose(driver, {"lr": lr}):
                life.train(driver, trial, accuracy)
        (incomplete, _) = life.propose(driver, {"lr": 0.03})
        life.train(driver, incomplete, 0.99)
        assert main(["show", study.id]) == 0
        lines = capsys.readouterr().out.splitlines()
        (best,) = [index for index, line in enumerate(lines) if "★" in line]
        assert lines[best].split()[:2] == ["2", "0.02"]
        assert lines[best + 1].split()[:2] == ["1", "0.01"]
        assert "incomplete" in lines[best + 2]


class TestRendering:
    def surface_text(self, client: Client, study: Study, width: int) -> str:
        output = io.StringIO()
        surface = client.surface(study.id)
        tables = surface_rendering.surface_tables(surface, label="val_accuracy in %", seeds=2, width=width)
        Console(file=output, width=width).print(tables)
        return output.getvalue().replace("\u00a0", " ")

    @pytest.mark.parametrize("width", [80, 100, 120, 200])
    def test_the_table_of_the_paper_is_legible_at_every_width(
        self, running_api: RunningApi, life: Life, width: int
    ) -> None:
        space = {
            "lambda": {"type": "categorical", "choices": [0.0, 0.5, 1.0, "1/t", "1-1/t"]},
            "rho": {"type": "categorical", "choices": [0.1, 0.2, 0.3, 0.4]},
            "sampling": {"type": "categorical", "choices": ["uniform", "gradient_norm"]},
        }
        study = life.create(search_space=space)
        driver = life.start(study)
        for sampling in ("uniform", "gradient_norm"):
            for lam in (0.0, 0.5, 1.0, "1/t", "1-1/t"):
                for rho in (0.1, 0.4):
                    trials = life.propose(driver, {"lambda": lam, "rho": rho, "sampling": sampling})
                    for trial in trials[: 1 if lam == 0.5 else 2]:
                        life.train(driver, trial, 0.9 + rho / 100)
        with Client(running_api.url) as client:
            text = self.surface_text(client, study, width)
        assert text.count("90.4 ± 0.0 (2)") == 8
        assert text.count("90.1 (1/2)") == 2
        assert text.count("(2) ★") == 1
        assert all(len(line) <= width for line in text.splitlines())
        beside = any("uniform" in line and "gradient_norm" in line for line in text.splitlines())
        assert beside == (width >= 100)

    def test_a_continuous_space_is_no_table(self, running_api: RunningApi, life: Life) -> None:
        study = life.create(
            search_space="lambda_rho_continuous", algorithm={"name": "random"}, budget={"max_trials": 40}
        )
        driver = life.start(study)
        for number in range(20):
            life.propose(driver, {"lambda": number / 20, "rho": 0.01 + number / 50})
        with Client(running_api.url) as client:
            assert not surface_rendering.is_readable(client.surface(study.id))

    def test_losses_have_four_digits_and_accuracies_are_percents(self, life: Life, running_api: RunningApi) -> None:
        study = life.finished({(0.0, 0.1): (0.123456, 0.123466)})
        with Client(running_api.url) as client:
            best = client.best(study.id)
        assert best is not None
        assert rendering.shown_summary(best.objective, "val_accuracy") == "12.3 ± 0.0 (2)"
        assert rendering.shown_summary(best.objective, "val_loss") == "0.1235 ± 7.1e-06 (2)"
        assert rendering.shown_summary(None, "val_loss") == ""


class TestProcesses:
    def test_train_runs_without_the_service_with_all_of_its_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []

        def fake(arguments: list[str], *, program: str) -> int:
            asked.append([program, *arguments])
            return 7

        monkeypatch.setattr("trainers.__main__.main", fake)
        assert main(["train", "dataset=digits", "lambda=0.5", "--json", "--help"]) == 7
        assert asked == [["samstudy train", "dataset=digits", "lambda=0.5", "--json", "--help"]]

    def test_migrate_makes_a_store_and_can_be_repeated(
        self, environment: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(2):
            assert main(["migrate"]) == 0
        assert (environment / "home" / "samstudy.db").exists()
        assert "up to date" in capsys.readouterr().out

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_the_api_refuses_to_be_open_to_others(self, environment: Path, log_format: str) -> None:
        assert main(["migrate"]) == 0
        with _command("api", url="", SAMSTUDY_HOST="0.0.0.0", SAMSTUDY_LOG_FORMAT=log_format) as refusing:
            _, err = refusing.communicate(timeout=DEADLINE_S)
        assert refusing.returncode == 1
        (line,) = err.splitlines()
        said = json.loads(line)["message"] if log_format == "json" else line
        assert "SAMSTUDY_HOST is '0.0.0.0'" in said

    def test_the_api_serves_until_it_is_told_to_end(
        self, environment: Path, unused_port: int, wait_until: Callable[[Callable[[], bool]], None]
    ) -> None:
        assert main(["migrate"]) == 0
        url = f"http://127.0.0.1:{unused_port}"
        with _command("api", url=url, SAMSTUDY_PORT=str(unused_port)) as serving:
            with Client(url, patience_s=DEADLINE_S) as client:
                client.check_ready()
            serving.terminate()
            serving.communicate(timeout=DEADLINE_S)
        assert serving.returncode in (0, -signal.SIGTERM)

    def test_a_setting_that_cannot_be_read_is_named(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SAMSTUDY_PORT", "many")
        settings.cache_clear()
        assert main(["list"]) == 2
        assert capsys.readouterr().err.startswith("error: SAMSTUDY_PORT: ")

    def test_an_address_that_is_none_cannot_be_served(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["migrate"]) == 0
        monkeypatch.setenv("SAMSTUDY_HOST", "127.0.0.300")
        settings.cache_clear()
        with pytest.raises(RefusedToStartError, match=r"SAMSTUDY_HOST must be an address .* got '127.0.0.300'"):
            serve(settings())

    @pytest.mark.parametrize(
        "arguments", [["show", "a\udc80"], ["list", "--name", "\udcff"], ["keys", "revoke", "\udc80"]]
    )
    def test_an_argument_that_is_no_text_is_bad_input(
        self, environment: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"error: an argument must be UTF-8, got {arguments[-1]!a}\n"

    def test_who_has_closed_the_output_is_told_nothing(
        self, served: RunningApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "stdout", None)
        assert main(["list"]) == 0
        assert capsys.readouterr().err == ""

    def test_a_width_of_none_is_a_width_that_nobody_knows(
        self, served: RunningApi, life: Life, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = life.create()
        monkeypatch.setenv("COLUMNS", "0")
        assert main(["list"]) == 0
        assert study.id in capsys.readouterr().out

    def test_help_comes_without_heavy_imports(self) -> None:
        code = (
            "import sys\nfrom service.cli import main\nassert main(['--help']) == 0\n"
            "heavy = ('torch', 'ray', 'mlflow', 'uvicorn', 'fastapi', 'sqlalchemy', 'httpx', 'scipy')\n"
            "print([name for name in heavy if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "submit" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"

    def test_an_unknown_command_is_bad_input(self) -> None:
        assert main(["nonsense"]) == 2


def _command(*arguments: str, url: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments],
        env={**os.environ, "SAMSTUDY_URL": url, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )


class TestBest:
    def test_it_says_how_to_train_it_once_more(
        self, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = life.finished(ACCURACIES)
        assert main(["best", study.id, "--command"]) == 0
        command = capsys.readouterr().out
        train = " ".join(f"{name}={value}" for name, value in study.spec["train"].items())
        assert command == f"samstudy train {train} lambda=1/t rho=0.1 seed=1 --threads 1\n"
        config = parse_config(shlex.split(command)[2:-2])
        assert config == accepted_spec(study.spec).train_config({"lambda": "1/t", "rho": 0.1}, 1)
        assert main(["best", study.id]) == 0
        said = capsys.readouterr().out
        assert "best: configuration 3, λ=1/t ρ=0.1" in said
        assert f"again: {command}" in said
        assert main(["best", study.id, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["configuration"]["number"] == 3
        assert main(["best", life.create().id]) == 1
        assert "has no configuration with a result yet" in capsys.readouterr().err


class TestExport:
    @pytest.mark.parametrize("name", ["a.xlsx", "b.csv.gz", "c.tsv"])
    def test_another_ending_is_refused_unless_the_format_is_said(
        self, name: str, served: RunningApi, life: Life, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        study, path = life.finished(ACCURACIES), tmp_path / name
        assert main(["export", study.id, "-o", str(path)]) == 2
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert "must end with .csv, .json or .parquet" in said
        assert not path.exists()
        assert main(["export", study.id, "-o", str(path), "--format", "csv"]) == 0
        assert path.read_text().startswith("trial")


class TestCheckpoint:
    @pytest.mark.parametrize("mode", ["max", "min"])
    def test_the_best_trial_of_the_best_configuration_is_the_default(
        self,
        mode: str,
        served: RunningApi,
        life: Life,
        api_settings: Settings,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        study = life.finished(ACCURACIES, objective={"metric": "val_accuracy", "mode": mode})
        for trial in life.studies.trials(study.id):
            checkpoints = TrialCheckpoints(api_settings.storage_uri, study.id, trial.id)
            checkpoints.save(2, f"best of {trial.objective}".encode(), is_best=True)
            checkpoints.save(3, f"last of {trial.objective}".encode())
        assert main(["checkpoint", study.id, "-o", "mine.ckpt"]) == 0
        assert Path("mine.ckpt").read_text() == f"last of {0.97 if mode == 'max' else 0.7}"
        said = capsys.readouterr().err
        assert 'trainers.checkpoint.load("mine.ckpt")["training"]["model"]' in said
        named = life.studies.trials(study.id)[0]
        assert main(["checkpoint", study.id, named.id, "--best"]) == 0
        assert Path(f"{named.id}.ckpt").read_text() == "best of 0.9"

    def test_where_there_is_none_nothing_is_written(
        self,
        served: RunningApi,
        life: Life,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        empty, study = life.create(), life.finished(ACCURACIES)
        assert main(["checkpoint", empty.id]) == 1
        assert "has no configuration with a result yet" in capsys.readouterr().err
        Path("there.ckpt").write_text("already")
        assert main(["checkpoint", study.id, "-o", "there.ckpt"]) == 2
        assert "has no such checkpoint" in capsys.readouterr().err
        assert Path("there.ckpt").read_text() == "already"


class TestLogs:
    def test_a_log_is_printed_as_it_is(
        self, served: RunningApi, life: Life, api_settings: Settings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = life.create()
        driver = life.start(study)
        trial = life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0]
        life.begin(driver, trial)
        log = TrialLog(api_settings.storage_uri, study.id, trial.id, 1)
        log.clear()
        log.write(0, "λ [bold]=½\nthe end\n".encode())
        log.finish()
        life.lose(driver, trial)
        assert main(["logs", study.id, trial.id]) == 0
        assert capsys.readouterr().out == "λ [bold]=½\nthe end\n"
        assert main(["logs", study.id, trial.id, "--follow", "--attempt", "1", "--tail", "1"]) == 0
        assert capsys.readouterr().out == "the end\n"
        assert main(["logs", study.id, trial.id, "--attempt", "2"]) == 2
        assert "has no attempt 2; its attempts: 1" in capsys.readouterr().err
