"""What deleted studies leave outside the store, in a real folder and in MLflow's real server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from sqlalchemy import select

from service.removing import Remover
from service.store import tables
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.lifecycle import LifecycleStore
from service.store.removals import RemovalStore
from service.store.studies import StudyStore
from service.study import Study
from service.tracking.exporter import Exporter
from service.tracking.leftovers import LeftRuns
from service.trial_checkpoints import TrialCheckpoints
from tests.service.conftest import Life
from tests.service.mlflow_server import MlflowServer

_NAMES = (f"removed-{number}" for number in count())
GRID = {(0.5, 0.1): (0.90, 0.92), ("1/t", 0.1): (0.80, 0.82)}


class World:
    """A service without its processes; its time stands still until it is moved."""

    def __init__(self, path: Path, mlflow_url: str, spec: dict[str, Any]) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self.database = Database(f"sqlite:///{path}", clock=lambda: self._now)
        self.life = Life(self.database, {**spec, "name": next(_NAMES)})
        self.lifecycle = LifecycleStore(self.database)
        self.exports = ExportStore(self.database)
        self.exporter = Exporter(self.exports, StudyStore(self.database), mlflow_url, min_interval_s=0)
        self.client = MlflowClient(tracking_uri=mlflow_url)
        self.storage = path.parent / "storage"
        self.remover = self.new_remover(mlflow_url)

    def new_remover(self, mlflow_url: str) -> Remover:
        return Remover(
            RemovalStore(self.database),
            LeftRuns(mlflow_url),
            self.storage.as_uri(),
            settling_s=60,
            clock=lambda: self._now.timestamp(),
        )

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    def finished(self) -> Study:
        """A finished study with checkpoints, which MLflow shows."""
        study = self.life.finished(GRID)
        for trial in self.life.studies.trials(study.id):
            TrialCheckpoints(self.storage.as_uri(), study.id, trial.id).save(1, b"weights")
        self.exporter.export_pending()
        return self.life.studies.get(study.id)

    def files(self, study: Study) -> list[Path]:
        return list((self.storage / "studies" / study.id).rglob("*"))

    def runs(self, study: Study) -> list[Run]:
        experiments = [found.experiment_id for found in self.client.search_experiments(ViewType.ALL)]
        return list(self.client.search_runs(experiments, f"tags.`samstudy.study_id` = '{study.id}'", max_results=1_000))

    def pending(self) -> list[tuple[str, str | None]]:
        """Studies that are still to be removed, with what went wrong."""
        table = tables.removals
        with self.database.reading() as connection:
            return [(row.study_id, row.error) for row in connection.execute(select(table))]

    def settle(self) -> None:
        """Two looks with the settling time between them."""
        self.remover.carry_out()
        self.advance(61)
        self.remover.carry_out()


@pytest.fixture
def world(migrated_store: Path, tmp_path: Path, mlflow_server: MlflowServer, a_spec: dict[str, Any]) -> Iterator[World]:
    shutil.copy(migrated_store, tmp_path / "samstudy.db")
    world = World(tmp_path / "samstudy.db", mlflow_server.url, a_spec)
    yield world
    world.database.dispose()


def test_a_deleted_studys_files_and_runs_are_removed_and_no_other_studys(world: World) -> None:
    study, other = world.finished(), world.finished()
    assert (len(world.runs(study)), len(world.files(study))) == (5, 12)
    world.lifecycle.delete(study.id, delete_runs=True)
    world.settle()
    assert (world.runs(study), world.files(study), world.pending()) == ([], [], [])
    assert (len(world.runs(other)), len(world.files(other))) == (5, 12)


def test_the_runs_stay_as_they_are_where_only_the_study_is_deleted(world: World) -> None:
    study = world.finished()
    before = {run.info.run_id: (run.info.status, run.info.end_time, run.data.tags) for run in world.runs(study)}
    world.lifecycle.delete(study.id, delete_runs=False)
    world.settle()
    after = {run.info.run_id: (run.info.status, run.info.end_time, run.data.tags) for run in world.runs(study)}
    assert after == before
    assert (world.files(study), world.pending()) == ([], [])


def test_what_appears_after_the_first_look_is_removed_too(world: World) -> None:
    """Such as a run whose creation was answered late, and a last checkpoint of a worker that was being ended."""
    study = world.finished()
    world.lifecycle.delete(study.id, delete_runs=True)
    world.remover.carry_out()
    assert (world.runs(study), world.files(study)) == ([], [])
    assert study.mlflow_experiment_id is not None
    world.client.create_run(study.mlflow_experiment_id, tags={"samstudy.study_id": study.id})
    TrialCheckpoints(world.storage.as_uri(), study.id, "late").save(1, b"weights")
    world.advance(61)
    world.remover.carry_out()
    assert (world.runs(study), world.files(study)) == ([], [])
    assert [study_id for study_id, _ in world.pending()] == [study.id]
    world.advance(2)
    world.remover.carry_out()
    assert world.pending() == []


def test_runs_are_found_although_the_store_never_heard_of_their_experiment(world: World) -> None:
    """The exporter was killed between making a run and remembering it."""
    study = world.life.finished(GRID)
    experiment = world.client.create_experiment(study.name)
    world.client.create_run(experiment, tags={"samstudy.study_id": study.id})
    world.lifecycle.delete(study.id, delete_runs=True)
    world.settle()
    assert (world.runs(study), world.pending()) == ([], [])


def test_a_study_that_was_never_exported_is_removed(world: World) -> None:
    study = world.life.create()
    world.lifecycle.cancel(study.id)
    world.lifecycle.delete(study.id, delete_runs=True)
    world.settle()
    assert world.pending() == []


def test_a_study_whose_experiment_somebody_deleted_is_removed(world: World) -> None:
    study = world.finished()
    world.client.delete_experiment(study.mlflow_experiment_id)
    world.lifecycle.delete(study.id, delete_runs=True)
    world.settle()
    assert world.pending() == []


def test_a_study_that_is_deleted_while_it_is_exported_leaves_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is deleted right after MLflow has made the third run, which the exporter then has no trial to remember for."""
    study = world.life.finished(GRID)
    create_run, made = MlflowClient.create_run, count(1)

    def create_and_delete(client: MlflowClient, *arguments: Any, **options: Any) -> Run:
        run = create_run(client, *arguments, **options)
        if next(made) == 3:
            world.lifecycle.delete(study.id, delete_runs=True)
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_and_delete)
    report = world.exporter.export_pending()
    monkeypatch.undo()
    assert (report.trials, report.refused) == (1, {})
    assert len(world.runs(study)) == 3
    assert world.exporter.export_pending().trials == 0
    world.settle()
    world.advance(2)
    world.remover.carry_out()
    assert (world.runs(study), world.pending()) == ([], [])
    assert world.exporter.export_pending().trials == 0


def test_runs_that_are_left_running_are_ended_where_they_stay_and_empty_ones_deleted(world: World) -> None:
    study = world.finished()
    assert study.mlflow_experiment_id is not None
    for run in world.runs(study):
        world.client.update_run(run.info.run_id, status="RUNNING")
    world.lifecycle.delete(study.id, delete_runs=False)
    world.client.create_run(study.mlflow_experiment_id, tags={"samstudy.study_id": study.id})
    world.settle()
    world.advance(2)
    world.remover.carry_out()
    assert [run.info.status for run in world.runs(study)] == ["KILLED"] * 5
    assert world.pending() == []


def test_mlflow_that_does_not_answer_holds_up_neither_the_files_nor_the_removal_for_good(
    world: World, mlflow_server: MlflowServer, unused_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    study = world.finished()
    world.lifecycle.delete(study.id, delete_runs=True)
    world.remover = world.new_remover(f"http://127.0.0.1:{unused_port}")
    world.remover.carry_out()
    assert world.files(study) == []
    ((study_id, error),) = world.pending()
    assert study_id == study.id
    assert "does not answer" in (error or "")
    assert [line.__dict__["study_id"] for line in caplog.records if line.name == "service.removing"] == [study.id]
    world.remover = world.new_remover(mlflow_server.url)
    world.settle()
    assert (world.runs(study), world.pending()) == ([], [])


def test_a_storage_that_fails_is_tried_again_less_and_less_often_and_the_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import removing

    study, other = world.finished(), world.finished()
    delete_study_files: Callable[[str, str], bool] = removing.delete_study_files
    tries = []

    def fails_for_one(storage_uri: str, study_id: str) -> bool:
        if study_id == study.id:
            tries.append(study_id)
            raise OSError("the disk is not there")
        return delete_study_files(storage_uri, study_id)

    monkeypatch.setattr(removing, "delete_study_files", fails_for_one)
    for each in (study, other):
        world.lifecycle.delete(each.id, delete_runs=True)
    for _ in range(60):
        world.remover.carry_out()
        world.advance(1)
    assert len(tries) == 4  # after 0, 5, 15 and 35 s
    world.advance(1)
    world.remover.carry_out()
    assert world.pending() == [(study.id, "the disk is not there")]
    monkeypatch.undo()
    world.advance(300)
    world.remover.carry_out()
    world.advance(2)
    world.remover.carry_out()
    assert (world.files(study), world.runs(study), world.pending()) == ([], [], [])


def test_a_remover_that_must_stop_removes_nothing(world: World) -> None:
    study = world.finished()
    world.lifecycle.delete(study.id, delete_runs=True)
    world.remover.carry_out(lambda: True)
    assert len(world.files(study)) == 12
