"""The runs of one study in MLflow: found again or made, and written."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from service.analysis.aggregation import ConfigurationResult
from service.spec import StudySpec
from service.store.exporting import ExportStore, TrialBacklog
from service.study import Configuration, Study, Trial
from service.tracking import files, limits, runs
from service.tracking.due import has_run
from service.tracking.limits import RunContent
from service.tracking.server import KnownRun, RunGoneError, TrackingServer

logger = logging.getLogger(__name__)


class StudyRuns:
    """What one process knows of a study's runs.

    Every method raises TrackingUnavailableError, RefusedError and RunGoneError.
    """

    def __init__(
        self,
        server: TrackingServer,
        store: ExportStore,
        study: Study,
        spec: StudySpec,
    ) -> None:
        """Looks for the runs that the study has in MLflow already, whether or not the store remembers them.

        So a run whose id was lost between its creation and its remembering is adopted, not made again, and of several
        of one trial or of the study one stays. Runs of what a restored store does not know any more are deleted.
        Raises RunGoneError where MLflow lacks what the store remembers: the study's runs are then to be made anew.
        """
        self.spec = spec
        self._server = server
        self._store = store
        self._statuses: dict[str, str] = {}
        self._params: dict[str, Mapping[str, str]] = {}
        self._passing: dict[str, frozenset[str]] = {}
        self._latest: dict[str, tuple[int, int]] = {}  # of the parent run, as when it ended last
        self._ended_ms: int | None = None
        self._experiment_id, found = self._look(study)
        if study.mlflow_run_id and study.mlflow_run_id not in {run.run_id for run in found}:
            raise RunGoneError(f"run {study.mlflow_run_id} of study {study.id} is gone")
        trials = store.trials(study.id)  # after the look: each of those runs is of a trial that the store had by then
        remembered = {trial.mlflow_run_id for trial, _ in trials if trial.mlflow_run_id}
        kept = self._one_each(self._without_lost(study, found, trials), {*remembered, study.mlflow_run_id})
        gone = remembered - {run.run_id for run in kept}
        if gone:
            raise RunGoneError(f"runs of {len(gone)} trials of study {study.id} are gone")
        for run in kept:
            self._statuses[run.run_id] = run.status
            self._params[run.run_id] = run.params
            self._passing[run.run_id] = self._passing_tags(run.tags, is_parent=run.trial_id is None)
            if run.trial_id is None:
                self._latest, self._ended_ms = dict(run.latest), run.ended_ms
        self._children = {run.trial_id: run.run_id for run in kept if run.trial_id}
        parent_id = next((run.run_id for run in kept if not run.trial_id), None)
        self._parent_id = parent_id or self._new_parent(study)
        if study.mlflow_run_id is None:
            store.set_study_run(study.id, experiment_id=self._experiment_id, run_id=self._parent_id)

    def write_trial(self, study: Study, item: TrialBacklog) -> None:
        """Writes what the trial's run lacks, and moves the watermark."""
        trial = item.trial
        run_id = self._children.get(trial.id)
        if trial.mlflow_run_id and trial.mlflow_run_id != run_id:
            raise RunGoneError(f"run {trial.mlflow_run_id} of trial {trial.id} is gone")
        if run_id is None:
            run_id = self._server.create_run(
                self._experiment_id,
                name=runs.trial_run_name(trial, item.configuration),
                start_ms=runs.milliseconds(trial.started_at or trial.created_at),
                tags=runs.trial_identity(study, trial, self._parent_id),
            )
            self._children[trial.id] = run_id
            self._statuses[run_id] = "RUNNING"
        if trial.mlflow_run_id is None:
            self._store.set_trial_run(trial.id, run_id)
        params = runs.trial_params(trial, item.configuration, self.spec)
        self._write(run_id, runs.trial_content(study, item, self._parent_id), params)
        if trial.error and trial.state.is_final:
            name = f"error-attempt-{trial.attempt}.txt"  # it stays, also where the next attempt succeeds
            self._server.write_files(run_id, {name: trial.error.encode("utf-8", "replace")})
        self._set_status(run_id, runs.trial_status(trial), trial.finished_at if trial.state.is_final else None)
        epoch = item.results[-1].epoch if item.results else item.exported_epoch
        self._store.trial_exported(trial.id, revision=item.revision, epoch=epoch)

    def write_study(self, study: Study, results: Sequence[ConfigurationResult]) -> None:
        """Writes the parent run as the study stands; at the study's end with everything that it found."""
        content = runs.study_content(study, self.spec, results)
        if study.finished_at:
            at = runs.milliseconds(study.finished_at)
            self._check_metrics(study, content, runs.summary_metrics(results), at)
            if self._ended_ms != at:  # before its metrics: were it cut off after them, nobody would know whose they are
                self._server.set_status(self._parent_id, "RUNNING", end_ms=at)
                self._statuses[self._parent_id], self._ended_ms = "RUNNING", at
        params = runs.study_params(self.spec)
        if self._missing(self._parent_id, params):
            self._server.write_files(self._parent_id, files.spec_files(study))
        self._write(self._parent_id, content, params)
        is_final = study.state.is_final
        self._set_status(self._parent_id, runs.study_status(study), study.finished_at if is_final else None)
        if is_final:
            found = files.result_files(study, self.spec, results)
            self._server.write_files(self._parent_id, {**files.spec_files(study), **found})

    def delete_surplus(self, study: Study) -> None:
        """Looks once more for runs that the study has twice, and deletes those that are not written here.

        A run whose creation timed out may appear at any time after that, and so after the first look; one that another
        process made as well, which led before this one and was held up, too. Raises RunGoneError where somebody has
        deleted one of those that are written here.
        """
        found = self._server.runs_of([self._experiment_id], study.id)
        written = {self._parent_id, *self._children.values()}
        if gone := written - {run.run_id for run in found}:
            raise RunGoneError(f"runs of study {study.id} are gone: {', '.join(sorted(gone))}")
        self._one_each(found, written)

    def _check_metrics(self, study: Study, content: RunContent, ours: frozenset[str], at: int) -> None:
        """Deletes the parent run and raises RunGoneError where it shows metrics of another end than this one.

        MLflow takes no metric off a run. An earlier best may have had one that the best has not, and a store that was
        restored has lost an end that was later. What people have logged since the run ended is not of its end.
        """
        names = {point.key for point in content.metrics}
        until = -1 if self._ended_ms is None else self._ended_ms
        of_its_end = [name for name, (step, ms) in self._latest.items() if name in ours and step == 0 and ms <= until]
        is_later = self._ended_ms is not None and self._ended_ms > at
        untrue = [name for name in of_its_end if is_later or name not in names]
        if untrue:
            self._store.check_lead(study.id)
            self._server.delete_run(self._parent_id)
            raise RunGoneError(f"its parent run {self._parent_id} showed {', '.join(sorted(untrue))} of another end")
        self._latest |= dict.fromkeys(names, (0, at))

    def _look(self, study: Study) -> tuple[str, list[KnownRun]]:
        """The study's experiment, and its runs there.

        Where the runs are to be written anew, the experiment that the store remembers is the one only if it has runs of
        the study: its name may be another by now, and on another server its id may be another experiment's.
        """
        known_id = study.mlflow_experiment_id
        if known_id and (study.mlflow_run_id or self._server.has_experiment(known_id)):
            found = self._server.runs_of([known_id], study.id)
            if found or study.mlflow_run_id:
                return known_id, found
        experiment_id = self._server.open_experiment(study.name)
        return experiment_id, self._server.runs_of([experiment_id], study.id)

    def _without_lost(
        self, study: Study, found: Sequence[KnownRun], trials: Iterable[tuple[Trial, Configuration]]
    ) -> list[KnownRun]:
        """Deletes the runs that tell of what the store has lost, and answers the others.

        A store that was restored has lost trials, and gives out their ids again; and epochs, which are trained again.
        """
        known = {trial.id: (trial, configuration) for trial, configuration in trials}
        ends = {run.run_id: self._ends(run) for run in found}
        points = {(run.trial_id, epoch) for run in found if run.trial_id for epoch, _ in ends[run.run_id]}
        moments = self._store.recorded_at(study.id, points)
        recorded_at = {point: runs.milliseconds(moment) for point, moment in moments.items()}
        lost: list[KnownRun] = []
        for run in found:
            if not run.trial_id:
                continue
            told = [recorded_at.get((run.trial_id, epoch)) == at for epoch, at in ends[run.run_id]]
            if run.trial_id not in known:
                what = "a trial that the store has lost"
            elif self._is_of_another(run, *known[run.trial_id]):
                what = "a trial that the store has lost, whose id another one has now"
            elif not has_run(known[run.trial_id][0]):
                what = "an attempt that the store has lost"
            elif told and not any(told):
                what = "epochs that the store has lost"
            else:
                continue
            if not lost:
                self._store.check_lead(study.id)  # what another process knows, or of a deleted study, is not to go
            logger.warning("run %s is deleted: it is of %s", run.run_id, what, extra={"trial_id": run.trial_id})
            self._server.delete_run(run.run_id)
            lost.append(run)
        return [run for run in found if run not in lost]

    def _ends(self, run: KnownRun) -> list[tuple[int, int]]:
        """The last epoch of each metric that every trial has, and its time in ms; people may have added to one."""
        names = {limits.key(name) for name in ("train_loss", self.spec.objective.metric)}
        return [run.latest[name] for name in sorted(names) if name in run.latest]

    def _is_of_another(self, run: KnownRun, trial: Trial, configuration: Configuration) -> bool:
        """Whether the run has another point or seed than the trial."""
        names = runs.identifying(configuration)
        params = runs.trial_params(trial, configuration, self.spec)
        return any(run.params.get(name, value) != value for name, value in params.items() if name in names)

    def _new_parent(self, study: Study) -> str:
        run_id = self._server.create_run(
            self._experiment_id,
            name=runs.study_run_name(study),
            start_ms=runs.milliseconds(study.started_at or study.created_at),
            tags=runs.study_identity(study),
        )
        self._statuses[run_id] = "RUNNING"
        return run_id

    def _one_each(self, found: Iterable[KnownRun], preferred: Collection[str | None]) -> list[KnownRun]:
        """The parent run and one run of each trial, the preferred or else the oldest; the others are deleted."""
        by_trial: dict[str | None, list[KnownRun]] = {}
        for run in found:
            by_trial.setdefault(run.trial_id, []).append(run)
        kept = [next((run for run in same if run.run_id in preferred), same[0]) for same in by_trial.values()]
        for one in kept:
            for run in by_trial[one.trial_id]:
                if run is not one:
                    said = {"trial_id": run.trial_id} if run.trial_id else {}
                    logger.warning("run %s is deleted: it doubles run %s", run.run_id, one.run_id, extra=said)
                    self._server.delete_run(run.run_id)
        return kept

    def _write(self, run_id: str, content: RunContent, params: dict[str, str]) -> None:
        missing = self._missing(run_id, params)
        self._server.write(run_id, RunContent(params=missing, tags=content.tags, metrics=content.metrics))
        self._params[run_id] = {**self._params.get(run_id, {}), **missing}
        passing = self._passing_tags(content.tags, is_parent=run_id == self._parent_id)
        for name in sorted(self._passing.get(run_id, frozenset()) - passing):
            self._server.delete_tag(run_id, name)
        self._passing[run_id] = passing

    def _passing_tags(self, names: Iterable[str], *, is_parent: bool) -> frozenset[str]:
        return runs.passing_study_tags(names, self.spec) if is_parent else runs.passing_trial_tags(names)

    def _missing(self, run_id: str, params: dict[str, str]) -> dict[str, str]:
        """The parameters that the run does not have: MLflow refuses to change one, even to how it is written."""
        known = self._params.get(run_id, {})
        return {name: value for name, value in params.items() if name not in known}

    def _set_status(self, run_id: str, status: runs.RunStatus, ended_at: datetime | None) -> None:
        if ended_at is not None:
            self._server.set_status(run_id, status, end_ms=runs.milliseconds(ended_at))
            if run_id == self._parent_id:
                self._ended_ms = runs.milliseconds(ended_at)
        elif self._statuses.get(run_id) != status:
            self._server.set_status(run_id, status)
        self._statuses[run_id] = status
