"""Commands that steer a study and take its results away: what they print, and their exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest
from rich.console import Console
from sqlalchemy import update

from service.cli import main
from service.cli.watching import watch_study
from service.client import Client
from service.errors import ServiceUnavailableError
from service.settings import settings
from service.spec import parse_spec
from service.store import tables
from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.lifecycle import LifecycleStore
from service.store.reports import EpochReported, TrialEnded
from service.store.studies import NewStudy
from service.study import StudyState, TrialState
from tests.service.processes import DEADLINE_S

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi

ACCURACIES = {(0.0, 0.1): (0.90, 0.92), ("1/t", 0.1): (0.95, 0.97)}


@pytest.fixture
def served(tmp_path: Path, running_api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningApi]:
    """An environment with a service; what is printed is 120 characters wide."""
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAMSTUDY_URL", running_api.url)
    monkeypatch.setenv("COLUMNS", "120")
    settings.cache_clear()
    yield running_api
    settings.cache_clear()


class Command:
    """Runs commands and remembers what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        """What a command that works prints, in one line."""
        assert main(arguments) == 0, self._capsys.readouterr().err
        return " ".join(self._capsys.readouterr().out.split())

    def refused(self, *arguments: str) -> tuple[int, str]:
        """The exit code and what it says on stderr."""
        code = main(arguments)
        return code, " ".join(self._capsys.readouterr().err.split())


@pytest.fixture
def command(served: RunningApi, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_every_verb_says_what_becomes_of_the_study(command: Command, life: Life, database: Database) -> None:
    queued, running = life.create().id, life.create()
    driver = life.start(running)
    life.begin(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1})[0])
    assert command("pause", queued) == f"study {queued} is paused"
    assert command("resume", queued) == f"study {queued} goes on as soon as its driver has started"
    assert command("stop", queued) == f"study {queued} has ended as CANCELLED"
    assert command("archive", queued).startswith(f"study {queued} is archived")
    assert command("unarchive", queued) == f"study {queued} is listed again"
    assert command("pause", running.id) == f"study {running.id} is being paused: its running trials save their state"
    assert command("resume", running.id) == f"study {running.id} goes on"
    assert command("stop", running.id).startswith(f"study {running.id} is being stopped")
    assert command("cancel", running.id) == f"study {running.id} is being cancelled"


def test_what_cannot_be_done_is_an_error_with_its_reason(command: Command, life: Life) -> None:
    study = life.finished(ACCURACIES).id
    for verb in ("pause", "resume", "stop", "retry"):
        code, said = command.refused(verb, study)
        assert code == 1
        assert said.startswith(f"error: study '{study}'")
    assert command.refused("pause", "nowhere") == (2, "error: no study has the id or the name 'nowhere'")


def test_failed_trials_are_retried(command: Command, life: Life) -> None:
    study = life.create()
    driver = life.start(study)
    life.fail(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1})[0])
    life.succeed(driver)
    assert command("retry", study.id).startswith(f"study {study.id} runs again what failed")
    assert life.studies.get(study.id).state is StudyState.QUEUED


class TestClone:
    def test_a_clone_is_another_study_of_the_same_spec(self, command: Command, life: Life, tmp_path: Path) -> None:
        original = life.create()
        changes = tmp_path / "changes.yaml"
        changes.write_text("budget: {max_trials: 10}\n")
        said = command("clone", original.id, "--name", "again", "--changes", str(changes))
        clone = life.studies.get(said.split()[1])
        assert said.startswith(f"study {clone.id} (again) is a clone of {original.id}")
        assert (clone.cloned_from, clone.spec["budget"]["max_trials"]) == (original.id, 10)

    def test_what_a_given_section_leaves_out_is_told(self, command: Command, life: Life, tmp_path: Path) -> None:
        original = life.create(budget={"max_failed_trials": 50, "max_concurrent_trials": 4})
        changes = tmp_path / "changes.yaml"
        changes.write_text("budget: {max_trials: 10}\ntrain: {dataset: digits, model: mlp, epochs: 4}\n")
        said = command("clone", original.id, "--changes", str(changes))
        assert "budget.max_failed_trials: 5, its default, and not 50 as in lambda-rho-digits" in said
        assert "budget.max_concurrent_trials: none, its default, and not 4" in said
        assert "budget.max_trials" not in said
        assert "its default" not in command("clone", original.id)

    def test_what_is_the_default_in_both_is_not_told(self, command: Command, life: Life, tmp_path: Path) -> None:
        original = life.create(
            train={"dataset": "digits", "model": "small_cnn", "epochs": 4},
            scheduler={"name": "asha", "grace_period": 2},
        )
        changes = tmp_path / "changes.yaml"
        changes.write_text("train: {epochs: 9}\nscheduler: {name: none}\nlabels: {team: language}\n")
        said = command("clone", original.id, "--changes", str(changes))
        assert "train.model: mlp, its default, and not small_cnn as in lambda-rho-digits" in said
        assert said.count("its default") == 1

    def test_changes_that_are_none_are_refused(self, command: Command, life: Life, tmp_path: Path) -> None:
        original = life.create()
        changes = tmp_path / "changes.yaml"
        changes.write_text("- 1\n")
        assert command.refused("clone", original.id, "--changes", str(changes))[0] == 2
        changes.write_text("budgte: {}\n")
        code, said = command.refused("clone", original.id, "--changes", str(changes))
        assert (code, "budgte" in said) == (2, True)


class TestBudget:
    def test_limits_are_shown_and_changed(self, command: Command, life: Life) -> None:
        study = life.finished(ACCURACIES, budget={"max_trials": 4})
        assert "max_trials: 4" in command("budget", study.id)
        said = command("budget", study.id, "max_trials=8", "max_wallclock_s=none", "max_gpu_hours=none")
        assert said.startswith(f"study {study.id} has a new budget: max_trials 4 → 8, max_wallclock_s none → none")
        assert said.endswith("it goes on")
        assert life.studies.get(study.id).state is StudyState.QUEUED

    def test_a_limit_that_an_older_spec_does_not_have_was_none(
        self, command: Command, life: Life, database: Database
    ) -> None:
        study = life.create()
        older = {name: limit for name, limit in study.spec["budget"].items() if name != "max_trial_s"}
        with database.writing() as connection:
            connection.execute(update(tables.studies).values(spec={**study.spec, "budget": older}))
        assert "max_trial_s none → 100" in command("budget", study.id, "max_trial_s=100")

    def test_a_change_in_between_is_no_obstacle(
        self, command: Command, life: Life, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = life.create()
        read, reads = Client.study, []

        def read_and_change(client: Client, study_id: str) -> Any:
            found = read(client, study_id)
            if not reads:
                LifecycleStore(database).patch(study_id, StudyChanges(labels={"new": "label"}), if_version=None)
            reads.append(found)
            return found

        monkeypatch.setattr(Client, "study", read_and_change)
        command("budget", study.id, "max_failed_trials=9")
        changed = life.studies.get(study.id)
        assert (changed.labels, changed.spec["budget"]["max_failed_trials"]) == ({"new": "label"}, 9)

    @pytest.mark.parametrize("limit", ["max_trials", "=3", "max_trials=3", "max_trails=4", "max_trials=many"])
    def test_what_is_no_limit_is_refused(self, command: Command, life: Life, limit: str) -> None:
        assert command.refused("budget", life.create().id, limit)[0] == 2


class TestConfirm:
    def test_the_best_runs_again_on_the_seeds_and_later_on_more(self, command: Command, life: Life) -> None:
        study = life.finished(ACCURACIES, budget={"max_trials": 4})
        said = command("confirm", study.id, "10", "11", "--top-k", "2")
        assert said.startswith(f"study {study.id} confirms its 2 best on seeds 10, 11; next: samstudy watch")
        life.lifecycle.cancel(study.id)
        assert "its 2 best on seeds 10, 11, 12;" in command("confirm", study.id, "11", "12")
        assert life.studies.get(study.id).spec["confirm"] == {"top_k": 2, "seeds": [10, 11, 12]}

    def test_a_spec_that_knows_no_confirm_yet_is_as_one_without(
        self, command: Command, life: Life, database: Database
    ) -> None:
        study = life.finished(ACCURACIES, budget={"max_trials": 4})
        older = {name: section for name, section in study.spec.items() if name != "confirm"}
        with database.writing() as connection:
            connection.execute(update(tables.studies).values(spec=older))
        assert "confirms its best on seed 10;" in command("confirm", study.id, "10")

    @pytest.mark.parametrize("seeds", [[], ["0"], ["ten"], ["-1"]])
    def test_what_is_no_fresh_seed_is_refused(self, command: Command, life: Life, seeds: list[str]) -> None:
        study = life.finished(ACCURACIES, budget={"max_trials": 4})
        assert command.refused("confirm", study.id, *seeds)[0] == 2
        assert life.studies.get(study.id) == study


@pytest.mark.parametrize("limit", ["max_trials=3_0", "max_trials=", "max_trials"])
def test_a_limit_is_a_number_as_people_write_it(command: Command, life: Life, limit: str) -> None:
    study = life.create(budget={"max_trials": 20})
    assert command.refused("budget", study.id, limit)[0] == 2
    assert life.studies.get(study.id).spec["budget"]["max_trials"] == 20


def test_none_is_no_limit_however_it_is_written(command: Command, life: Life) -> None:
    study = life.create(budget={"max_trials": 20, "max_wallclock_s": 500, "max_gpu_hours": None})
    assert "max_wallclock_s 500 → none" in command("budget", study.id, "max_wallclock_s=None")
    digits = 5_000 * "9"
    code, said = command.refused("budget", study.id, f"max_trials={digits}")
    assert (code, "max_trials" in said) == (2, True)


def test_a_point_may_have_a_word_that_means_no_limit_elsewhere(command: Command, life: Life) -> None:
    study = life.create(search_space={"gradient_clip": {"type": "categorical", "choices": ["none", 1.0]}})
    command("enqueue", study.id, "gradient_clip=none")
    assert [one.point for one in life.studies.configurations(study.id)] == [{"gradient_clip": "none"}]


def test_labels_are_shown_set_and_taken_off(command: Command, life: Life) -> None:
    study = life.create(labels={"team": "visoin", "year": "2026"})
    assert command("label", study.id) == "team:visoin year:2026"
    assert command("label", study.id, "team:vision", "new:", "--remove", "year") == "team:vision new:"
    assert life.studies.get(study.id).labels == {"team": "vision", "new": ""}
    for wrong, rule in ((("team",), "KEY:VALUE"), (("--remove", "gone"), "the study has no label 'gone'")):
        code, said = command.refused("label", study.id, *wrong)
        assert (code, rule in said) == (2, True)


def test_a_label_is_set_although_something_else_has_changed(
    command: Command, life: Life, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = life.create(labels={"team": "vision"})
    read, reads = Client.study, []

    def read_and_change(client: Client, study_id: str) -> Any:
        found = read(client, study_id)
        if not reads:
            changes = StudyChanges(labels={"team": "vision", "new": "label"})
            LifecycleStore(database).patch(study_id, changes, if_version=None)
        reads.append(found)
        return found

    monkeypatch.setattr(Client, "study", read_and_change)
    command("label", study.id, "year:2026")
    assert life.studies.get(study.id).labels == {"team": "vision", "new": "label", "year": "2026"}


def test_a_point_is_enqueued(command: Command, life: Life) -> None:
    study = life.create()
    said = command("enqueue", study.id, "lambda=1-1/t", "rho=0.2")
    assert said == f"study {study.id} tries it as configuration 1, 2 trials"
    assert life.studies.configurations(study.id)[0].point == {"lambda": "1-1/t", "rho": 0.2}
    assert command.refused("enqueue", study.id, "lambda=1-1/t", "rho=0.2")[0] == 1
    code, said = command.refused("enqueue", study.id, "lambda=7", "rho=0.2")
    assert (code, "point.lambda" in said) == (2, True)
    assert command.refused("enqueue", study.id, "lambda=none")[0] == 2


class TestDelete:
    def test_nothing_is_deleted_unasked(self, command: Command, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        study = life.finished(ACCURACIES)
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
        code, said = command.refused("delete", study.id)
        assert (code, "--yes" in said) == (2, True)
        assert "runs=delete" in command.refused("delete", study.id, "--yes")[1]
        said = command("delete", study.id, "--yes", "--runs", "delete")
        assert said == f"study {study.id} is deleted; its runs in MLflow are being deleted"
        assert command.refused("show", study.id)[0] == 2

    def test_what_runs_is_not_deleted(self, command: Command, life: Life) -> None:
        study = life.create()
        assert command.refused("delete", study.id, "--yes") == (
            1,
            f"error: study '{study.id}' is QUEUED: cancel it before you delete it",
        )


class TestTrials:
    def test_trials_say_how_they_went_and_why_they_wait(self, command: Command, life: Life) -> None:
        study = life.create(budget={"max_concurrent_trials": 1}, confirm={"top_k": 1, "seeds": [7]})
        driver = life.start(study)
        first, second = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        third, fourth = life.propose(driver, {"lambda": 1.0, "rho": 0.1})
        life.train(driver, first, 0.9)
        life.fail(driver, second)
        life.begin(driver, third)
        driver.record([EpochReported(third.id, 1, 1, {"val_accuracy": 0.5})])
        driver.record([TrialEnded(third.id, 1, TrialState.EARLY_STOPPED, 0.5, note="behind 3 others")])
        life.begin(driver, fourth)
        driver.add_confirming_trials(first.configuration_id, [7])
        driver.heartbeat(60)
        said = command("trials", study.id)
        assert f"{first.id} 0 0.1 0 SUCCEEDED 3 90.0" in said
        assert f"{second.id} 0 0.1 1 FAILED 0" in said
        assert f"{second.id}: ValueError: no" in said
        assert f"{third.id} 1 0.1 0 EARLY_STOPPED 1 50.0" in said
        assert f"{third.id}: behind 3 others" in said
        assert "0 0.1 7 (confirms) PENDING 0" in said
        assert ": budget.max_concurrent_trials is 1, and 1 train" in said
        assert command("trials", study.id, "--state", "running").startswith("trial λ ρ seed state epochs")
        assert "the first 1 of 5; --limit 5 shows all" in command("trials", study.id, "--limit", "1")
        assert "the first 1 of 2;" in command(
            "trials", study.id, "--limit", "1", "--state", "FAILED", "--state", "SUCCEEDED"
        )
        assert command("trials", life.create().id) == "no trials"

    def test_attempts_are_shown_where_a_trial_has_had_several(self, command: Command, life: Life) -> None:
        study = life.create()
        driver = life.start(study)
        first, _ = life.propose(driver, {"lambda": "1/t", "rho": 0.1})
        life.begin(driver, first)
        assert "attempts" not in command("trials", study.id)
        life.lose(driver, first)
        life.begin(driver, first, 2)
        said = command("trials", study.id)
        assert said.startswith("trial λ ρ seed state attempts epochs")
        assert f"{first.id} 1/t 0.1 0 RUNNING 2 0" in said

    def test_no_two_columns_have_one_name(self, command: Command, life: Life) -> None:
        study = life.create()
        driver = life.start(study)
        life.propose(driver, {"epochs": 5, "rho": 0.1})
        assert command("trials", study.id).startswith("trial epochs ρ seed state trained")

    def test_a_parameter_that_is_inactive_has_no_value(self, command: Command, life: Life) -> None:
        study = life.create()
        driver = life.start(study)
        (plain,) = life.propose(driver, {"sampling": "uniform"}, (0,))
        (other,) = life.propose(driver, {"sampling": "gradient_norm", "presample_factor": 3}, (0,))
        said = command("trials", study.id)
        assert said.startswith("trial sampling presample_factor seed")
        assert f"{plain.id} uniform 0 PENDING 0" in said
        assert f"{other.id} gradient_norm 3 0 PENDING 0" in said

    def test_what_is_said_of_many_trials_is_said_once(self, command: Command, life: Life) -> None:
        study = life.create()
        driver = life.start(study)
        trials = [trial for rho in (0.1, 0.2, 0.4) for trial in life.propose(driver, {"lambda": 0.0, "rho": rho})]
        for trial in trials:
            life.fail(driver, trial, "Traceback\nValueError: no")
        said = command("trials", study.id)
        assert said.count("ValueError: no") == 1
        assert f"{trials[0].id}, {trials[1].id}, {trials[2].id} and 3 more: ValueError: no" in said

    @pytest.mark.parametrize("width", ["60", "80"])
    def test_ids_are_whole_in_a_narrow_terminal(
        self, command: Command, life: Life, monkeypatch: pytest.MonkeyPatch, width: str
    ) -> None:
        monkeypatch.setenv("COLUMNS", width)
        study = life.create(name="a name that is not short at all", labels={"team": "vision", "stage": "exploring"})
        driver = life.start(study)
        first, second = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        life.fail(driver, first, "RuntimeError: a long story of what went wrong in this trial, which nobody cuts short")
        said = command("trials", study.id)
        assert f"{first.id} 0 0.1 0 FAILED 0" in said
        assert f"{second.id} 0 0.1 1 PENDING 0" in said
        assert "…" not in said
        assert study.id in command("list")

    def test_json_is_for_programs(self, command: Command, life: Life) -> None:
        study = life.finished(ACCURACIES)
        assert [trial["seed"] for trial in json.loads(command("trials", study.id, "--json"))] == [0, 1, 0, 1]


class TestExport:
    def test_a_table_goes_to_standard_output_or_to_a_file(self, served: RunningApi, life: Life, tmp_path: Path) -> None:
        study = life.finished(ACCURACIES)
        printed = subprocess.run(
            [sys.executable, "-m", "service.cli", "export", study.id], capture_output=True, check=True, timeout=30
        )
        assert [row["seed"] for row in csv.DictReader(io.StringIO(printed.stdout.decode()))] == ["0", "1", "0", "1"]
        for name in ("trials.csv", "trials.json", "trials.parquet"):
            assert main(["export", study.id, "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / "trials.csv").read_bytes() == printed.stdout
        assert len(json.loads((tmp_path / "trials.json").read_text())) == 4
        assert pyarrow.parquet.read_table(tmp_path / "trials.parquet").num_rows == 4

    def test_what_is_refused_leaves_the_file_as_it_was(self, command: Command, tmp_path: Path) -> None:
        path = tmp_path / "trials.csv"
        path.write_text("kept")
        assert command.refused("export", "nowhere", "-o", str(path))[0] == 2
        assert path.read_text() == "kept"
        assert not list(tmp_path.glob("*.part"))

    @pytest.mark.parametrize("name", ["nowhere/trials.csv", "folder.csv", "/proc/sys/kernel/ostype"])
    def test_what_cannot_be_written_is_noticed_before_anything_is_asked_for(
        self, command: Command, life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        asked = []

        def table(*_: object, **__: object) -> Iterator[bytes]:
            asked.append(name)
            yield b"trial_id,\n"

        monkeypatch.setattr("service.client.Client.export", table)
        (tmp_path / "folder.csv").mkdir()
        study = life.finished(ACCURACIES)
        assert command.refused("export", study.id, "--format", "csv", "-o", str(tmp_path / name))[0] == 1
        assert asked == []
        assert not list(tmp_path.glob("*.part"))

    def test_a_table_that_breaks_off_leaves_the_file_as_it_was(
        self, command: Command, life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> Iterator[bytes]:
            yield b"trial_id,\n"
            raise ServiceUnavailableError("the answer broke off")

        monkeypatch.setattr("service.client.Client.export", broken)
        path = tmp_path / "trials.csv"
        path.write_text("kept")
        assert command.refused("export", life.finished(ACCURACIES).id, "-o", str(path))[0] == 1
        assert path.read_text() == "kept"
        assert not list(tmp_path.glob("*.part"))

    def test_a_full_disk_leaves_the_file_as_it_was(
        self, command: Command, life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def large(*_: object, **__: object) -> Iterator[bytes]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
            yield 100_000 * b"x"

        monkeypatch.setattr("service.client.Client.export", large)
        monkeypatch.setattr("tempfile.TemporaryFile", io.BytesIO)  # on another disk, which has room
        path = tmp_path / "there" / "trials.csv"
        path.parent.mkdir()
        path.write_text("kept")
        try:
            status = command.refused("export", life.finished(ACCURACIES).id, "-o", str(path))[0]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (status, path.read_text()) == (1, "kept")
        assert list(path.parent.iterdir()) == [path]

    def test_a_file_keeps_its_mode_and_a_link_its_file(self, command: Command, life: Life, tmp_path: Path) -> None:
        study = life.finished(ACCURACIES)
        before, link = os.umask(0o027), tmp_path / "link.csv"
        try:
            command("export", study.id, "-o", str(tmp_path / "new.csv"))
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o640
        (tmp_path / "new.csv").chmod(0o604)
        link.symlink_to("new.csv")
        command("export", study.id, "-o", str(link))
        assert link.is_symlink()
        assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o604

    def test_what_is_no_file_is_written_to(self, served: RunningApi, life: Life, tmp_path: Path) -> None:
        study = life.finished(ACCURACIES)
        export = [sys.executable, "-m", "service.cli", "export", study.id, "-o"]
        printed = subprocess.run([*export, "/dev/stdout"], capture_output=True, check=True, timeout=30).stdout
        assert len(printed.splitlines()) == 5
        with (tmp_path / "redirected").open("wb") as file:
            subprocess.run([*export, "/dev/stdout"], stdout=file, check=True, timeout=30)
            assert os.fstat(file.fileno()).st_size == len(printed)
        os.mkfifo(tmp_path / "pipe")
        with subprocess.Popen([*export, str(tmp_path / "pipe")]) as running:
            assert (tmp_path / "pipe").read_bytes() == printed
            assert running.wait(30) == 0
        assert (tmp_path / "pipe").is_fifo()

    def test_runs_in_mlflow_are_written_anew(self, command: Command, life: Life) -> None:
        study = life.finished(ACCURACIES)
        assert "are being written anew" in command("export", study.id, "--mlflow")


def test_importances_are_shown_with_what_they_were_told_from(command: Command, life: Life) -> None:
    grid = {(lam, rho): (rho, rho) for lam in (0.0, 0.5, 1.0) for rho in (0.1, 0.2, 0.3, 0.4)}
    study = life.finished(grid)
    said = command("importances", study.id)
    assert said.index("ρ") < said.index("λ")
    assert "val_accuracy, fanova over 12 complete configurations" in said
    assert json.loads(command("importances", study.id, "--json"))["n"] == 12
    code, said = command.refused("importances", life.create().id)
    assert (code, "10 complete configurations" in said) == (1, True)


def test_owners_are_told_apart_where_there_are_several(command: Command, life: Life, database: Database) -> None:
    study = life.create()
    assert "owner" not in command("list")
    spec = {**study.spec, "name": "of-ada"}
    other = life.studies.create(NewStudy("of-ada", "", {}, spec, "ada", "digest"))[0]
    assert all(word in command("list") for word in ("owner", "local", "ada", study.id, other.id))
    of_ada = command("list", "--owner", "ada")
    assert (other.id in of_ada, study.id in of_ada) == (True, False)
    assert command("list", "--label", "no:such") == "no study is like this"


def test_a_study_whose_id_is_a_folder_is_none(command: Command) -> None:
    for name in (".", ".."):
        assert command.refused("show", name) == (2, f"error: no study has the id or the name {name!r}")


def test_a_study_can_be_given_by_its_name_where_no_other_has_it(command: Command, life: Life) -> None:
    sweep, other = life.create(name="λ sweep"), life.create(name="other")
    assert command("pause", "λ sweep") == f"study {sweep.id} is paused"
    compared = command("compare", "λ sweep", "other", "--json")
    assert all(study.id in compared for study in (sweep, other))
    command("cancel", "λ sweep")
    command("archive", "λ sweep")
    assert command("unarchive", "λ sweep") == f"study {sweep.id} is listed again"
    again = life.create(name="λ sweep")
    code, said = command.refused("delete", "--yes", "λ sweep")
    assert code == 2
    assert all(word in said for word in ("several studies have", sweep.id, again.id, "CANCELLED", "QUEUED", "of local"))
    assert command("show", other.id) == command("show", "other")
    alike = life.create(name="parameters")  # an id could be written so
    assert command("cancel", "parameters") == f"study {alike.id} is cancelled"
    life.create(name=other.id)
    assert command("pause", other.id) == f"study {other.id} is paused"
    assert command.refused("show", "aaaaaaaaaa") == (2, "error: no study has the id or the name 'aaaaaaaaaa'")
    assert command.refused("show", "") == (2, "error: no study has the id or the name ''")


def test_a_study_of_a_package_that_is_not_installed_can_be_read(
    command: Command, life: Life, tmp_path: Path, a_spec: dict[str, Any]
) -> None:
    spec = {**a_spec, "train": {"dataset": "digits", "model": "mlp", "epochs": 3}}
    stored = parse_spec(spec).to_mapping()
    stored["train"] |= {"dataset": "of another package", "model": "of another package"}
    study = life.studies.create(NewStudy("theirs", "", {}, stored, "local", "digest"))[0]
    life.run(driver := life.start(study), life.propose(driver, {"lambda": 0.5, "rho": 0.1}), (0.8, 0.9))
    for reading in ("show", "surface", "best", "trials"):
        assert "85.0" in command(reading, "theirs") or reading == "trials", reading
    assert "of another package" in command("best", "theirs", "--command")
    assert command("export", "theirs", "--format", "json").count(" 0.9,") >= 1
    code, said = command.refused("importances", "theirs")
    assert (code, "10 complete configurations" in said) == (1, True)
    assert command("label", "theirs", "team:vision") == "team:vision"
    code, said = command.refused("budget", "theirs", "max_trials=80")
    assert (code, "train.dataset: dataset must be one of" in said) == (2, True)


class TestShow:
    @pytest.mark.parametrize(
        ("values", "shown"), [((0.85, None, 0.87), "86.0 ± 1.4 (2/3)"), ((0.9, None), "90.0 (1/2)")]
    )
    def test_the_best_says_which_seeds_it_lacks(
        self, command: Command, life: Life, values: tuple[float | None, ...], shown: str
    ) -> None:
        said = command("show", life.finished({(0.0, 0.1): values}, replicates={"seeds": [*range(len(values))]}).id)
        assert f"val_accuracy in %: {shown}, 95 % interval" in said
        assert "no value for seed 1: its trial failed" in said

    def test_of_several_that_are_confirmed_the_best_ones_number_is_said_to_be_too_good(
        self, command: Command, life: Life
    ) -> None:
        study = life.create(
            search_space={"lr": {"type": "categorical", "choices": [0.01, 0.02]}},
            confirm={"top_k": 2, "seeds": [7, 8]},
        )
        driver = life.start(study)
        for trial in life.propose(driver, {"lr": 0.01}):
            life.train(driver, trial, 0.7)
        for trial in driver.add_confirming_trials(f"{study.id}-1", [7, 8]):
            life.train(driver, trial, 0.6)
        said = command("show", study.id)
        assert "[60.0, 60.0], on fresh seeds: the best of those confirmed by these, so a little too good" in said

    def test_confirmed_numbers_stand_beside_those_of_the_search(self, command: Command, life: Life) -> None:
        study = life.create(
            search_space={"lr": {"type": "float", "low": 0.01, "high": 0.1, "step": 0.01}},
            confirm={"top_k": 1, "seeds": [7, 8]},
        )
        driver = life.start(study)
        for lr, accuracy in ((0.01, 0.7), (0.02, 0.9)):
            trials = life.propose(driver, {"lr": lr})
            for trial in trials:
                life.train(driver, trial, accuracy)
        first, second = driver.add_confirming_trials(f"{study.id}-1", [7, 8])
        life.train(driver, first, 0.6)
        said = command("show", study.id)
        assert "val_accuracy in %: 60.0 (1/2), 95 % interval unknown with one value, on fresh seeds" in said
        assert "honest" not in said
        life.train(driver, second, 0.6)
        said = command("show", study.id)
        assert (
            "val_accuracy in %: 60.0 ± 0.0 (2), 95 % interval [60.0, 60.0], on fresh seeds: the honest number" in said
        )
        assert "val_accuracy in % in the search: 70.0 ± 0.0 (2)" in said
        assert "1 0.01 70.0 ± 0.0 (2) [70.0, 70.0] 60.0 ± 0.0 (2) ★" in said
        assert "2 0.02 90.0 ± 0.0 (2)" in said
        assert "confirmation:" not in said

    @pytest.mark.parametrize(
        ("fresh", "lines", "cell"),
        [
            (
                (0.6, 0.5, None),
                (
                    "val_accuracy in %: 55.0 ± 7.1 (2/3), 95 % interval [-8.5, 118.5], on fresh seeds "
                    "val_accuracy in % in the search: 70.0 ± 0.0 (2), 95 % interval [70.0, 70.0] "
                    "confirmation: 1 of 3 trials failed"
                ),
                "55.0 ± 7.1 (2/3) ★",
            ),
            (
                (None, None, None),
                (
                    "val_accuracy in % in the search: 70.0 ± 0.0 (2), 95 % interval [70.0, 70.0] "
                    "confirmation: 3 of 3 trials failed"
                ),
                "3 of 3 trials failed ★",
            ),
        ],
    )
    def test_a_confirmation_that_failed_is_told(
        self, command: Command, life: Life, fresh: tuple[float | None, ...], lines: str, cell: str
    ) -> None:
        study = life.create(
            search_space={"lr": {"type": "float", "low": 0.01, "high": 0.1, "step": 0.01}},
            confirm={"top_k": 1, "seeds": [7, 8, 9]},
        )
        driver = life.start(study)
        life.run(driver, life.propose(driver, {"lr": 0.01}), (0.7, 0.7))
        life.run(driver, driver.add_confirming_trials(f"{study.id}-1", [7, 8, 9]), fresh)
        said = command("show", study.id)
        assert lines in said
        assert cell in said
        assert "honest" not in said

    def test_a_confirmation_under_way_is_no_failed_one(self, command: Command, life: Life) -> None:
        study = life.create(confirm={"top_k": 1, "seeds": [7, 8]})
        driver = life.start(study)
        life.run(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1}), (0.7, 0.7))
        driver.add_confirming_trials(f"{study.id}-1", [7, 8])
        said = command("show", study.id)
        assert "val_accuracy in %: 70.0 ± 0.0 (2)" in said
        assert "confirmation:" not in said

    @pytest.mark.parametrize(
        ("fresh", "said_of_test"),
        [
            ((0.6, 0.6), "test_accuracy in %: 59.0 ± 0.0 (2), on fresh seeds"),
            ((0.6, None), "test_accuracy in %: 59.0 (1/2), on fresh seeds"),
            ((None, None), "test_accuracy in % in the search: 69.0 ± 0.0 (2)"),
            ((), "test_accuracy in %: 69.0 ± 0.0 (2)"),
        ],
    )
    def test_what_stands_beside_the_confirmed_number_is_of_the_same_seeds(
        self, command: Command, life: Life, fresh: tuple[float | None, ...], said_of_test: str
    ) -> None:
        study = life.create(confirm={"top_k": 1, "seeds": [7, 8]})
        driver = life.start(study)
        trials = list(zip(life.propose(driver, {"lambda": 0.0, "rho": 0.1}), (0.7, 0.7), strict=True))
        if fresh:
            trials += zip(driver.add_confirming_trials(f"{study.id}-1", [7, 8]), fresh, strict=True)
        for trial, accuracy in trials:
            if accuracy is None:
                life.fail(driver, trial)
                continue
            life.begin(driver, trial)
            metrics = {"val_accuracy": accuracy, "test_accuracy": accuracy - 0.01}
            driver.record([EpochReported(trial.id, 1, 3, metrics)])
            driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, accuracy)])
        said = command("show", study.id)
        assert said_of_test in said
        assert said.count("test_accuracy") == 1

    def test_a_waiting_study_says_why_and_its_share(self, command: Command, life: Life, database: Database) -> None:
        study = life.create()
        driver = life.start(study)
        life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        driver.heartbeat(60, "no node has a GPU")
        assert "its trials wait: no node has a GPU" in command("show", study.id)
        LifecycleStore(database).pause(study.id)
        driver.leave()
        said = command("show", study.id)
        assert "PAUSED" in said
        assert "its trials wait: its study is paused" in said
        assert f"`samstudy resume {study.id}` lets it go on" in said
        assert "PAUSED" in command("list", "--state", "PAUSED")


def test_studies_are_compared_by_what_confirms_them_and_it_is_said_how(command: Command, life: Life) -> None:
    def confirmed(accuracies: tuple[float, float]) -> str:
        study = life.create(confirm={"top_k": 1, "seeds": [7, 8]})
        driver = life.start(study)
        trials = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        for trial in trials:
            life.train(driver, trial, 0.9)
        for trial, value in zip(
            driver.add_confirming_trials(trials[0].configuration_id, [7, 8]), accuracies, strict=True
        ):
            life.train(driver, trial, value)
        return study.id

    a, b = confirmed((0.5, 0.6)), confirmed((0.3, 0.45))
    said = command("compare", a, b)
    assert "55.0 ± 7.1 (2)" in said
    assert "paired t, n = 2" in said
    assert (
        "val_accuracy, last epoch, over the trials that confirm the best configurations on fresh seeds; paired t tests"
        in said
    )
    assert "Holm's correction for 1 comparison" in said
    assert "over the trials of the search" in command("compare", a, life.finished(ACCURACIES).id)


def test_a_comparison_marks_a_side_that_lacks_seeds_and_says_why(command: Command, life: Life) -> None:
    whole = life.finished({(0.0, 0.1): (0.90, 0.91, 0.92)})
    partial = life.finished({(0.0, 0.1): (0.80, 0.83, None)})
    said = command("compare", whole.id, partial.id)
    assert "81.5 ± 2.1 (2/3)" in said
    assert "91.0 ± 1.0 (3)" in said
    assert "has no value for seed 2: its trial failed" in said


def test_of_several_comparisons_it_is_said_that_their_intervals_are_not_corrected(command: Command, life: Life) -> None:
    ids = [life.finished({(0.0, 0.1): values}).id for values in ((0.90, 0.92), (0.80, 0.85), (0.70, 0.78))]
    corrected = "Holm's correction of p for 2 comparisons; the intervals are not corrected"
    assert corrected in command("compare", *ids)
    assert "not corrected" not in command("compare", *ids[:2]), "one comparison needs no correction"


def test_a_watcher_stays_through_a_pause(running_api: RunningApi, life: Life, database: Database) -> None:
    study, lifecycle = life.create(), LifecycleStore(database)
    steps = iter([lifecycle.pause, lambda _: None, lifecycle.resume, lifecycle.cancel])
    output = io.StringIO()
    with Client(running_api.url) as client:
        console = Console(file=output, width=120)
        ended = watch_study(client, study.id, console, sleep=lambda _: next(steps)(study.id))
    assert ended.state is StudyState.CANCELLED
    said = output.getvalue()
    assert said.index("PAUSED") < said.rindex("QUEUED") < said.index("CANCELLED")
    assert "paused by its user" in said


def test_ctrl_c_in_a_pause_leaves_the_study_paused(served: RunningApi, life: Life, database: Database) -> None:
    study = life.create()
    LifecycleStore(database).pause(study.id)
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "service.cli", "watch", study.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as watching:
        assert watching.stdout is not None
        assert "PAUSED" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=DEADLINE_S)
    assert (watching.returncode, err) == (130, "")
    assert f"study {study.id} goes on" in out
    assert life.studies.get(study.id).state is StudyState.PAUSED


class TestSurface:
    def test_the_objective_and_another_metric_are_shown_over_two_parameters(self, command: Command, life: Life) -> None:
        study = life.finished(ACCURACIES)
        said = command("surface", study.id)
        assert said.startswith("ρ \\ λ 0 1/t")
        assert "val_accuracy in %, mean ± std (n) over seeds, ★ best" in said
        turned = command("surface", study.id, "--x", "rho", "--y", "lambda")
        assert turned.startswith("λ \\ ρ 0.1")
        loss = command("surface", study.id, "--metric", "val_loss")
        assert "1 ± 0 (2)" in loss.replace("\u00a0", " ")
        assert "val_loss, mean ± std (n) over seeds, ★ best objective" in loss
        assert json.loads(command("surface", study.id, "--json"))["metric"] == "val_accuracy"

    def test_what_has_no_surface_is_said(self, command: Command, life: Life, tmp_path: Path) -> None:
        single = life.create(search_space={"lr": {"type": "float", "low": 0.01, "high": 0.1, "step": 0.01}})
        code, said = command.refused("surface", single.id)
        assert (code, f"study '{single.id}' searches lr: a surface needs two parameters" in said) == (1, True)
        code, said = command.refused("surface", life.create().id, "--output", str(tmp_path / "map.jpg"))
        assert (code, "must end with .png or .html" in said) == (2, True)
        code, said = command.refused("surface", life.create().id, "--metric", "sharpnes")
        assert (code, "no trial reports 'sharpnes'" in said) == (2, True)

    def test_a_figure_is_drawn_into_a_file(self, command: Command, life: Life, tmp_path: Path) -> None:
        study = life.finished(ACCURACIES)
        command("surface", study.id, "--output", str(tmp_path / "map.png"))
        assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
        command("surface", study.id, "-o", str(tmp_path / "map.html"), "--metric", "val_loss")
        assert "val_loss" in (tmp_path / "map.html").read_text()
