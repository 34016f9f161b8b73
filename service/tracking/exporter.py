"""Keeps MLflow's picture of every study up to date, from the watermarks in the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service import logs
from service.analysis.aggregation import ConfigurationResult, aggregate
from service.errors import InvalidSpecError, StoreUnavailableError, StudyNotFoundError
from service.spec import accepted_spec
from service.store.exporting import ExportStore, LeadLostError, StudyBacklog, StudyGoneError
from service.store.studies import StudyStore
from service.tracking.due import Due, due, has_parent_run
from service.tracking.leftovers import LeftRuns
from service.tracking.server import RefusedError, RunGoneError, TrackingServer, TrackingUnavailableError
from service.tracking.study_runs import StudyRuns

__all__ = ["ExportReport", "Exporter", "TrackingUnavailableError"]

logger = logging.getLogger(__name__)

_MAX_TRIALS = 500  # read of one study at a time
_REFUSED_PAUSE_S = 60.0
_REST = 10.0
"""How much longer than the work for the parent run of a study that runs is the time until it is done again."""
_LATE_S = 60.0  # so long after it was given up MLflow may still carry out a request


@dataclass(slots=True)
class ExportReport:
    """What one call of `export_pending` has written.

    studies, trials, epochs: parent runs, child runs and results written. more: there is more, so call again at once.
    refused: why a study could not be exported, by study; tried again later.
    """

    studies: int = 0
    trials: int = 0
    epochs: int = 0
    more: bool = False
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Progress:
    """What this process knows of one study's export; times by the exporter's clock.

    about: the fields of the study and of the trial that is being written, for log lines. cut_off: since MLflow showed
    all of the study last, a call for these of its trials has failed, or for its parent run (None), which MLflow may
    carry out yet. aggregating_s: CPU time that it took to put the study's trials together last.
    """

    about: dict[str, str] = field(default_factory=dict)
    runs: StudyRuns | None = None
    study_written_at: float | None = None
    aggregating_s: float = 0.0
    trials_written_at: dict[str, float] = field(default_factory=dict)
    refused_until: float = float("-inf")
    cut_off: set[str | None] = field(default_factory=set)

    def start_over(self) -> None:
        """Forgets what was written."""
        self.runs = self.study_written_at = None
        self.trials_written_at.clear()


@dataclass(slots=True)
class _SecondLook:
    """When a study is to be written once more, and which of its trials."""

    at: float = 0.0
    trial_ids: set[str] = field(default_factory=set)


class Exporter:
    """The one writer of MLflow's runs; not for several threads."""

    def __init__(
        self,
        store: ExportStore,
        studies: StudyStore,
        tracking_url: str,
        *,
        min_interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """min_interval_s: least time between two exports of what still runs; of a large study's parent run it is more.

        clock: seconds, monotonic. cpu_clock: seconds of CPU that the calling thread has had.
        """
        self._store = store
        self._studies = studies
        self._server = TrackingServer(tracking_url)
        self._left_runs = LeftRuns(tracking_url)
        self._min_interval_s = min_interval_s
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._progress: dict[str, _Progress] = {}
        self._second_looks: dict[str, _SecondLook] = {}

    def export_pending(self, should_stop: Callable[[], bool] = lambda: False) -> ExportReport:
        """Writes everything that is due of what MLflow lacks, at most some hundred trials of each study.

        What fails for one study is tried again after a pause, and the others are exported meanwhile.

        should_stop: asked before each run. Raises TrackingUnavailableError where MLflow does not answer, and
        StoreUnavailableError; what was written until then stays written, and the next call goes on from there.
        """
        report = ExportReport()
        self._take_second_looks()
        for study_id in self._store.behind():
            if should_stop():
                break
            progress = self._progress.setdefault(study_id, _Progress())
            if self._clock() < progress.refused_until:
                continue
            progress.about = {"study_id": study_id}
            try:
                with logs.about(study_id=study_id):
                    self._export_or_rebuild(study_id, progress, report, should_stop)
            except (TrackingUnavailableError, StoreUnavailableError) as error:
                if isinstance(error, TrackingUnavailableError):
                    progress.cut_off.add(progress.about.get("trial_id"))
                for known in self._progress.values():
                    known.runs = None  # whether the last call was carried out is unknown: look again afterwards
                raise
            except (StudyNotFoundError, StudyGoneError):
                del self._progress[study_id]
            except LeadLostError:
                message = "another controller leads; it writes study %s to MLflow again"
                logger.warning(message, study_id, extra=progress.about)
                self.start_over()
                break
            except (RefusedError, RunGoneError, InvalidSpecError) as error:
                if isinstance(error, RefusedError):  # of a timeout that was one study's only
                    progress.cut_off.add(progress.about.get("trial_id"))
                logger.error("study %s cannot be exported to MLflow: %s", study_id, error, extra=progress.about)
                self._set_aside(study_id, progress, report, error)
            except Exception as error:  # the outermost runner of one study: a defect there must not stop the others
                message = "unexpected: study %s cannot be exported to MLflow"
                logger.exception(message, study_id, extra=progress.about)
                self._set_aside(study_id, progress, report, error)
        return report

    def start_over(self) -> None:
        """Forgets what it knows of MLflow's runs: another process may have written them since."""
        for study_id, progress in self._progress.items():
            self._plan_second_look(study_id, progress)
        self._progress.clear()

    def _take_second_looks(self) -> None:
        """Has those runs written once more for which MLflow may have carried out a request after all that came later.

        It would leave a run RUNNING or doubled, or a tag as it was, and nothing else would ever look.
        """
        for study_id in [study_id for study_id, look in self._second_looks.items() if look.at <= self._clock()]:
            self._store.write_again(study_id, self._second_looks[study_id].trial_ids)
            del self._second_looks[study_id]
            if study_id in self._progress:
                self._progress[study_id].runs = None

    def _plan_second_look(self, study_id: str, progress: _Progress) -> None:
        """Where calls of the study have failed since the last look was planned."""
        if progress.cut_off:
            look = self._second_looks.setdefault(study_id, _SecondLook())
            look.at = self._clock() + _LATE_S
            look.trial_ids |= {trial_id for trial_id in progress.cut_off if trial_id is not None}
            progress.cut_off = set()

    def _set_aside(self, study_id: str, progress: _Progress, report: ExportReport, error: Exception) -> None:
        report.refused[study_id] = str(error)
        progress.runs = None
        progress.refused_until = self._clock() + _REFUSED_PAUSE_S

    def _export_or_rebuild(
        self, study_id: str, progress: _Progress, report: ExportReport, should_stop: Callable[[], bool]
    ) -> None:
        try:
            self._export(study_id, progress, report, should_stop)
        except RunGoneError as error:
            logger.warning("the runs of study %s are written anew: %s", study_id, error, extra=progress.about)
            progress.start_over()
            progress.about = {"study_id": study_id}
            self._store.forget(study_id)
            self._export(study_id, progress, report, should_stop)

    def _export(
        self, study_id: str, progress: _Progress, report: ExportReport, should_stop: Callable[[], bool]
    ) -> None:
        backlog = self._store.backlog(study_id, max_trials=_MAX_TRIALS)
        if backlog is None:
            raise StudyNotFoundError(study_id)
        now = self._due(backlog, progress)
        for item in now.unseen:
            self._store.trial_exported(item.trial.id, revision=item.revision, epoch=item.exported_epoch)
        if has_parent_run(backlog.study):
            if not self._write(backlog, now, progress, report, should_stop):
                return
        elif backlog.study.driver_attempt and not backlog.study.state.has_driver:
            # Its start was given back, or a restored store has lost it, and with it what its runs are.
            self._store.check_lead(study_id)
            self._left_runs.delete(study_id, backlog.study.mlflow_experiment_id)
        if now.catches_up:
            self._store.study_exported(study_id, revision=backlog.revision)
            self._plan_second_look(study_id, progress)
            if backlog.study.state.is_final:
                self._progress.pop(study_id, None)
        report.more |= len(backlog.trials) == _MAX_TRIALS and bool(now.trials or now.unseen)

    def _due(self, backlog: StudyBacklog, progress: _Progress) -> Due:
        now, written_at = self._clock(), progress.study_written_at
        return due(
            backlog,
            max_trials=_MAX_TRIALS,
            study_age_s=None if written_at is None else now - written_at,
            study_interval_s=max(self._min_interval_s, _REST * progress.aggregating_s),
            trial_ages_s={trial_id: now - then for trial_id, then in progress.trials_written_at.items()},
            min_interval_s=self._min_interval_s,
        )

    def _write(
        self,
        backlog: StudyBacklog,
        now: Due,
        progress: _Progress,
        report: ExportReport,
        should_stop: Callable[[], bool],
    ) -> bool:
        """Writes what is due; False where it was stopped before the end."""
        if not now.trials and not now.study:
            return True
        study = backlog.study
        if progress.runs is None or study.mlflow_run_id is None:  # a user had its runs forgotten
            progress.runs = StudyRuns(self._server, self._store, study, accepted_spec(study.spec))
        for item in now.trials:
            if should_stop():
                return False
            progress.about["trial_id"] = item.trial.id
            progress.runs.write_trial(study, item)
            del progress.about["trial_id"]
            report.trials += 1
            report.epochs += len(item.results)
            if item.trial.state.is_final:
                progress.trials_written_at.pop(item.trial.id, None)
            else:
                progress.trials_written_at[item.trial.id] = self._clock()
        if now.study:
            progress.runs.write_study(study, self._results(study.id, progress))
            if study.state.is_final:
                progress.runs.delete_surplus(study)
            self._store.check_lead(study.id)
            progress.study_written_at = self._clock()
            report.studies += 1
        return True

    def _results(self, study_id: str, progress: _Progress) -> list[ConfigurationResult]:
        """What each configuration has come to, from all trials of the study."""
        began_s = self._cpu_clock()
        results = aggregate(self._studies.configurations(study_id), self._studies.trials(study_id))
        progress.aggregating_s = self._cpu_clock() - began_s
        return results
