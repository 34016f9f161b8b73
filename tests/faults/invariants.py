"""What must hold of a study that has ended, whatever has died meanwhile: in the store, in MLflow, among the processes.

No finished trial is run twice or lost, no unfinished one is forgotten or trained again from further back than its last
checkpoint, no run of MLflow is doubled or left RUNNING, and the study ends without a hand on it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run

from service.errors import StoreUnavailableError
from service.spec import StudySpec, parse_spec
from service.store.studies import StudyStore
from service.study import AttemptState, Reason, Result, Study, StudyState, Trial, TrialState
from service.trial_logs import TrialLog
from tests.embedded_service import TIDY_S, Service, wait_until

_STUDY_STATUS = {
    StudyState.SUCCEEDED: "FINISHED",
    StudyState.FAILED: "FAILED",
    StudyState.CANCELLED: "KILLED",
    StudyState.PAUSED: "SCHEDULED",
}
_TRIAL_STATUS = {
    TrialState.SUCCEEDED: "FINISHED",
    TrialState.EARLY_STOPPED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.CANCELLED: "KILLED",
    TrialState.PENDING: "SCHEDULED",
    TrialState.PAUSED: "SCHEDULED",
}
_END_S = 240.0
"""So long that a worker can train 300 epochs of half a second, and start, and begin again."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial that has ended, with all that it reported."""

    trial: Trial
    results: tuple[Result, ...]


class Witness:
    """Looks at a study in the store itself, so that no part of the service has to be there."""

    def __init__(self, service: Service, study_id: str) -> None:
        self.service = service
        self.study_id = study_id
        self.store = StudyStore(service.database)
        self._before: dict[str, Finished] = {}

    def study(self) -> Study:
        return self.store.get(self.study_id)

    def trials(self, *states: TrialState) -> list[Trial]:
        return [trial for trial in self.store.trials(self.study_id) if not states or trial.state in states]

    def epochs_trained(self, trial_id: str, attempt: int) -> list[int]:
        """The epochs that an attempt has trained itself, as its log tells: a killed one's may lack the last second."""
        return [int(epoch) for epoch in re.findall(r"samstudy: epoch (\d+)/", self._log(trial_id, attempt))]

    def continued_after(self, trial_id: str, attempt: int) -> int:
        """The epoch of the checkpoint from which an attempt went on, as its log tells; 0 where it started over."""
        said = re.search(r"samstudy: continues after epoch (\d+)/", self._log(trial_id, attempt))
        return int(said[1]) if said else 0

    def process_id(self, trial_id: str, attempt: int) -> int | None:
        """Of the worker that trains an attempt, as its log tells; None until it does, which takes a second."""
        said = re.search(r"\(process (\d+)\)", self._log(trial_id, attempt))
        return int(said[1]) if said else None

    def _log(self, trial_id: str, attempt: int) -> str:
        log = TrialLog(storage_folder(self.service).as_uri(), self.study_id, trial_id, attempt)
        return b"".join(log.read(log.extent())).decode()

    def wait_for_trials(self, *, finished: int, training: int = 1, epochs: int = 1) -> None:
        """Until so many trials have ended, and so many others have reported so many epochs."""

        def is_so() -> bool:
            trials = self.trials()
            running = [trial for trial in trials if trial.state is TrialState.RUNNING and trial.epochs_done >= epochs]
            ended = [trial for trial in trials if trial.state.is_final]
            return len(ended) >= finished and len(running) >= training

        wait_until(is_so, what=f"{finished} trials have ended and {training} train")

    def remember(self) -> None:
        """Takes down the trials that have ended by now: `check` then proves that they stay as they are."""
        for trial in self.trials():
            if trial.state.is_final and trial.id not in self._before:
                self._before[trial.id] = Finished(trial, tuple(self.store.results(self.study_id, trial.id)))

    def wait_for_end(self, *, deadline_s: float = _END_S) -> Study:
        """Only waits, until the study has ended or is paused, and MLflow shows it."""

        def is_over() -> bool:
            try:
                study = self.study()
            except StoreUnavailableError:
                return False
            return (study.state.is_final or study.state is StudyState.PAUSED) and study.is_exported

        wait_until(is_over, deadline_s=deadline_s, what=f"study {self.study_id} has ended and MLflow shows it")
        return self.study()

    def check(
        self,
        *,
        state: StudyState = StudyState.SUCCEEDED,
        reason: Reason | None = Reason.SPACE_EXHAUSTED,
        trials: int | None = None,
        deadline_s: float = _END_S,
    ) -> Study:
        """Waits for the study's end and proves the invariants; trials: how many there must be, all having SUCCEEDED."""
        study = self.wait_for_end(deadline_s=deadline_s)
        spec = parse_spec(study.spec)
        assert (study.state, study.reason) == (state, reason), study.error
        found = self.trials()
        if trials is not None:
            assert Counter(trial.state for trial in found) == {TrialState.SUCCEEDED: trials}
        if study.state.is_final:
            assert [trial.id for trial in found if not trial.state.is_final] == [], "an unfinished trial is forgotten"
        results = {trial.id: self.store.results(self.study_id, trial.id) for trial in found}
        for trial in found:
            self._check_trial(trial, results[trial.id], epochs=int(spec.train["epochs"]))
            if spec.checkpoint.every_epochs:
                self._check_continuation(trial, results[trial.id], every=spec.checkpoint.every_epochs)
        for before in self._before.values():
            (after,) = [trial for trial in found if trial.id == before.trial.id]
            assert _lasting(after) == _lasting(before.trial), "a finished trial has changed"
            assert tuple(results[after.id]) == before.results, "the results of a finished trial have changed"
        check_runs(self.service, study, found, results)
        self._check_processes()
        if study.state.is_final:
            self._check_checkpoints(spec, found)
        return study

    def _check_trial(self, trial: Trial, results: list[Result], *, epochs: int) -> None:
        """Each epoch once and in order, at most one attempt that SUCCEEDED, and none left open."""
        assert [result.epoch for result in results] == list(range(1, trial.epochs_done + 1))
        assert [result.attempt for result in results] == sorted(result.attempt for result in results)
        if trial.state is TrialState.SUCCEEDED:
            assert trial.epochs_done == epochs
            assert trial.objective is not None
        if results:
            assert trial.metrics == results[-1].metrics
        attempts = self.store.attempts(self.study_id, trial.id)
        assert [attempt.number for attempt in attempts] == list(range(1, trial.attempt + 1))
        assert all(attempt.finished_at is not None for attempt in attempts), "an attempt was left open"
        lost = (AttemptState.LOST, AttemptState.PAUSED)
        assert all(attempt.state in lost for attempt in attempts[:-1]), "an attempt followed one that had ended"
        never_again = trial.state in (TrialState.CANCELLED, TrialState.PENDING, TrialState.PAUSED)
        if attempts and not (never_again and attempts[-1].state in lost):
            assert attempts[-1].state.value == trial.state.value
        if trial.state in (TrialState.SUCCEEDED, TrialState.EARLY_STOPPED, TrialState.FAILED):
            another = self.process_id(trial.id, trial.attempt + 1)  # the store would refuse it, and not show it
            assert another is None, f"finished trial {trial.id} was run once more, by process {another}"
        drivers = [attempt.driver_attempt for attempt in attempts]
        assert drivers == sorted(drivers)

    def _check_continuation(self, trial: Trial, results: list[Result], *, every: int) -> None:
        """Its last attempt went on from a checkpoint behind which nothing was recorded that another one has."""
        attempts = self.store.attempts(self.study_id, trial.id)
        if trial.state is not TrialState.SUCCEEDED or any(attempt.warning for attempt in attempts):
            return  # the log of one that was stopped may end anywhere; a warning tells of checkpoints that are missing
        before = [result.epoch for result in results if result.attempt < trial.attempt]
        saved = before[-1] // every * every if before else 0
        continued = self.continued_after(trial.id, trial.attempt)
        assert continued >= saved, f"attempt {trial.attempt} of trial {trial.id} began after {continued}, not {saved}"
        trained = self.epochs_trained(trial.id, trial.attempt)
        assert trained == list(range(continued + 1, trial.epochs_done + 1)), (
            f"trial {trial.id} after {continued}: {trained}"
        )

    def _check_processes(self) -> None:
        wait_until(
            lambda: not self.service.drivers(self.study_id) and not self.service.workers(),
            deadline_s=TIDY_S,
            what="the study's driver and workers are gone",
        )

    def _check_checkpoints(self, spec: StudySpec, trials: Iterable[Trial]) -> None:
        """As `checkpoint.keep` says of trials that have ended."""
        folder = storage_folder(self.service) / "studies" / self.study_id
        keep = spec.checkpoint.keep if spec.checkpoint.every_epochs else "none"
        kept = {"none": 0, "latest": 1, "best": 1, "latest_and_best": 2}[keep]

        def best_epoch(trial: Trial) -> int:
            values = {
                result.epoch: result.metrics.get(spec.objective.metric)
                for result in self.store.results(self.study_id, trial.id)
            }
            known = {epoch: value for epoch, value in values.items() if value is not None}
            best = max(known.values()) if spec.objective.mode == "max" else min(known.values())
            return min(epoch for epoch, value in known.items() if value == best)

        def surplus() -> dict[str, list[str]]:
            files = {trial.id: sorted(path.name for path in (folder / trial.id).rglob("*.ckpt*")) for trial in trials}
            return {trial_id: names for trial_id, names in files.items() if len(names) > kept}

        try:
            wait_until(lambda: not surplus(), deadline_s=TIDY_S, what="checkpoints are tidied up")
        except TimeoutError:
            raise AssertionError(f"checkpoints are left over: {surplus()}") from None
        for trial in trials:
            if kept and trial.state is TrialState.SUCCEEDED:
                names = [path.name for path in (folder / trial.id).rglob("*.ckpt")]
                warned = self.store.attempts(self.study_id, trial.id)[-1].warning is not None  # it may have saved none
                epochs = {"latest": {trial.epochs_done}, "best": {best_epoch(trial)}}
                wanted = epochs.get(keep, set().union(*epochs.values()))
                assert warned or {int(name.split(".")[0]) for name in names} == wanted, f"trial {trial.id} kept {names}"


def check_runs(
    service: Service, study: Study, trials: Iterable[Trial], results: Mapping[str, Iterable[Result]]
) -> None:
    """MLflow has one parent run and one child for each trial that has started, and they say what the store says."""
    mlflow = MlflowClient(service.addresses.mlflow_url)
    parent, children = _runs_of(mlflow, study)
    assert parent.info.run_id == study.mlflow_run_id
    assert parent.info.status == _STUDY_STATUS[study.state]
    assert parent.data.tags["samstudy.state"] == study.state
    started = {trial.id: trial for trial in trials if trial.started_at is not None}
    assert set(children) == set(started), "a trial has no run, or one that never started has"
    for trial_id, trial in started.items():
        run = children[trial_id]
        assert run.info.run_id == trial.mlflow_run_id
        assert run.info.status == _TRIAL_STATUS[trial.state]
        assert run.data.tags["samstudy.state"] == trial.state
        assert run.data.tags["samstudy.attempt"] == str(trial.attempt)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        stored: dict[str, list[tuple[int, float]]] = {}
        for result in results[trial_id]:
            for name, value in result.metrics.items():
                stored.setdefault(name, []).append((result.epoch, value))
        assert set(run.data.metrics) == set(stored)
        for name, points in stored.items():
            history = [(p.step, p.value) for p in mlflow.get_metric_history(run.info.run_id, name)]
            assert sorted(_comparable(history)) == _comparable(points), f"{name} of trial {trial_id}"


def storage_folder(service: Service) -> Path:
    """Where the service keeps checkpoints: its storage, which is a folder of this machine."""
    uri = service.setting("SAMSTUDY_STORAGE")
    return Path(unquote(urlsplit(uri).path)) if uri else service.home / "storage"


def _runs_of(mlflow: MlflowClient, study: Study) -> tuple[Run, dict[str, Run]]:
    """The parent run and the children by their trials; none of them twice."""
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments(max_results=1000)]
    tagged = f"tags.`samstudy.study_id` = '{study.id}'"
    runs = list(mlflow.search_runs(experiments, filter_string=tagged, max_results=1000))
    parents = [run for run in runs if "samstudy.trial_id" not in run.data.tags]
    assert len(parents) == 1, "the study has not exactly one parent run"
    children = [run for run in runs if "samstudy.trial_id" in run.data.tags]
    by_trial = {run.data.tags["samstudy.trial_id"]: run for run in children}
    assert len(by_trial) == len(children), "a trial has two runs"
    return parents[0], by_trial


def _lasting(trial: Trial) -> Trial:
    """The trial without what may still become known of it: its run in MLflow."""
    return trial.model_copy(update={"mlflow_run_id": None})


def _comparable(points: Iterable[tuple[int, float]]) -> list[tuple[int, str]]:
    """NaN equals NaN here."""
    return [(step, "nan" if math.isnan(value) else repr(value)) for step, value in points]
