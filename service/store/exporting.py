"""The watermarks of the projection into MLflow: what has changed since it was last written there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Update, case, select, tuple_, update

from service.store import records, tables
from service.store.database import Database
from service.study import OPEN_TRIAL_STATES, Configuration, Result, Study, Trial

_AT_A_TIME = 500  # results of one query


@dataclass(frozen=True, slots=True)
class StudyBacklog:
    """A study whose runs in MLflow are behind.

    revision: what the study stands at now. trials: those behind; those that have ended come first, then those that have
    no run yet, each in order of their numbers.
    """

    study: Study
    revision: int
    trials: list[TrialBacklog]


@dataclass(frozen=True, slots=True)
class TrialBacklog:
    """A trial whose run in MLflow is behind: `results` are the epochs that the run does not have yet.

    exported_epoch: the last epoch that it has, 0 for none.
    """

    trial: Trial
    configuration: Configuration
    revision: int
    exported_epoch: int
    results: list[Result]


class StudyGoneError(Exception):
    """The study was deleted while it was exported: nothing more of it is to be written."""


class LeadLostError(Exception):
    """Another process leads by now, and writes once more what this one was writing when it found out."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The lease under which a process writes, and its name in it."""

    lease: str
    holder: str


class ExportStore:
    """The store as the exporter uses it. Watermarks only grow, and only after MLflow has what they promise.

    MLflow itself refuses nobody. So an exporter that was held up until another one leads may still write what is out of
    date, or a run that the other has made as well; but then its watermark is refused, and what it wrote counts as
    behind, so that whoever leads looks again and puts it right.

    lead: what this process must lead by; None: there is no other. Whatever moves a watermark raises StudyGoneError
    where its study has been deleted since, and LeadLostError.
    """

    def __init__(self, database: Database, lead: Lead | None = None) -> None:
        self._database = database
        self._lead = lead

    def behind(self) -> list[str]:
        """Ids of the studies that MLflow does not show as they are, the oldest first."""
        table = tables.studies
        query = (
            select(table.c.id)
            .where(table.c.revision != table.c.exported_revision)
            .order_by(table.c.created_at, table.c.id)
        )
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def backlog(self, study_id: str, *, max_trials: int) -> StudyBacklog | None:
        """What MLflow lacks of this study, at most `max_trials` trials of it; None where the study is gone.

        What runs is behind again after each epoch: in the order of numbers alone it would hide what is due at once.
        """
        trials = tables.trials
        due_at_once_first = (trials.c.state.in_(OPEN_TRIAL_STATES), trials.c.mlflow_run_id.is_not(None))
        with self._database.reading() as connection:
            study = connection.execute(select(tables.studies).where(tables.studies.c.id == study_id)).one_or_none()
            if study is None:
                return None
            behind = connection.execute(
                select(trials)
                .where(trials.c.study_id == study_id, trials.c.revision != trials.c.exported_revision)
                .order_by(*due_at_once_first, trials.c.number)
                .limit(max_trials)
            ).all()
            configurations = {
                row.id: records.as_record(Configuration, row)
                for row in connection.execute(
                    select(tables.configurations).where(
                        tables.configurations.c.id.in_({row.configuration_id for row in behind})
                    )
                )
            }
            results: dict[str, list[Result]] = {row.id: [] for row in behind}
            for row in connection.execute(
                select(tables.results)
                .join(trials, trials.c.id == tables.results.c.trial_id)
                .where(trials.c.id.in_(results), tables.results.c.epoch > trials.c.exported_epoch)
                .order_by(tables.results.c.epoch)
            ):
                results[row.trial_id].append(records.as_record(Result, row))
            return StudyBacklog(
                study=records.as_record(Study, study),
                revision=study.revision,
                trials=[
                    TrialBacklog(
                        trial=records.as_record(Trial, row),
                        configuration=configurations[row.configuration_id],
                        revision=row.revision,
                        exported_epoch=row.exported_epoch,
                        results=results[row.id],
                    )
                    for row in behind
                ],
            )

    def trials(self, study_id: str) -> list[tuple[Trial, Configuration]]:
        """All trials of the study with their configurations, in the order of their numbers."""
        trials, configurations = tables.trials, tables.configurations
        of_study = select(configurations).where(configurations.c.study_id == study_id)
        query = records.selected(trials, Trial).where(trials.c.study_id == study_id).order_by(trials.c.number)
        with self._database.reading() as connection:
            known = {row.id: records.as_record(Configuration, row) for row in connection.execute(of_study)}
            found = [records.as_record(Trial, row) for row in connection.execute(query)]
        return [(trial, known[trial.configuration_id]) for trial in found]

    def recorded_at(self, study_id: str, results_of: Collection[tuple[str, int]]) -> dict[tuple[str, int], datetime]:
        """When results were recorded, by trial and epoch; those that the study does not have are left out."""
        trials, results = tables.trials, tables.results
        key = tuple_(results.c.trial_id, results.c.epoch)
        query = (
            select(results.c.trial_id, results.c.epoch, results.c.recorded_at)
            .join(trials, trials.c.id == results.c.trial_id)
            .where(trials.c.study_id == study_id)
        )
        wanted = sorted(results_of)
        moments: dict[tuple[str, int], datetime] = {}
        with self._database.reading() as connection:
            for start in range(0, len(wanted), _AT_A_TIME):
                some = query.where(key.in_(wanted[start : start + _AT_A_TIME]))
                moments |= {(row.trial_id, row.epoch): row.recorded_at for row in connection.execute(some)}
        return moments

    def set_study_run(self, study_id: str, *, experiment_id: str, run_id: str) -> None:
        """Remembers the study's experiment and parent run."""
        values = {"mlflow_experiment_id": experiment_id, "mlflow_run_id": run_id}
        self._write(update(tables.studies).values(values), study_id=study_id)

    def set_trial_run(self, trial_id: str, run_id: str) -> None:
        """Remembers the trial's child run."""
        self._write(update(tables.trials).values(mlflow_run_id=run_id), trial_id=trial_id)

    def trial_exported(self, trial_id: str, *, revision: int, epoch: int) -> None:
        """MLflow shows the trial as it was at this revision, its results up to this epoch included.

        A trial without a run has no epoch there: its run was forgotten while it was being written.
        """
        in_run = case((tables.trials.c.mlflow_run_id.is_(None), 0), else_=epoch)
        change = update(tables.trials).values(exported_revision=revision, exported_epoch=in_run)
        self._write(change, trial_id=trial_id)

    def study_exported(self, study_id: str, *, revision: int) -> None:
        """MLflow shows the study and all of its trials as they were at this revision."""
        self._write(update(tables.studies).values(exported_revision=revision), study_id=study_id)

    def check_lead(self, study_id: str) -> None:
        """Raises as what moves a watermark does: asked before runs are deleted, and after a study is left behind."""
        self._write(None, study_id=study_id)

    def forget(self, study_id: str, *, if_version: int | None = None) -> None:
        """Resets the study's watermarks, so that the exporter writes everything again into the runs it finds.

        The experiment stays known, because a person may have renamed it: that is where those runs are.
        Revisions grow with it, so that the watermark of an export that is under way does not fit any more.
        if_version: the version that the user has seen; None: any. Raises StudyNotFoundError, VersionConflictError.
        """
        trials = tables.trials
        with self._database.writing() as connection:
            records.check_version(records.locked_study(connection, study_id), if_version)
            records.touch_study(connection, study_id, exported_revision=0, mlflow_run_id=None)
            connection.execute(
                update(trials)
                .where(trials.c.study_id == study_id)
                .values(revision=trials.c.revision + 1, exported_revision=0, exported_epoch=0, mlflow_run_id=None)
            )

    def write_again(self, study_id: str, trial_ids: Iterable[str]) -> None:
        """Counts the study and these of its trials as behind; their runs, and the results in them, stay known."""
        with self._database.writing() as connection:
            records.touch_study(connection, study_id)
            for trial_id in sorted(trial_ids):
                records.touch_trial(connection, trial_id)

    def _write(self, change: Update | None, *, study_id: str | None = None, trial_id: str | None = None) -> None:
        """Changes a study's row or a trial's; where another process leads, it makes them count as behind instead."""
        try:
            self._change(change, study_id=study_id, trial_id=trial_id)
        except LeadLostError:
            self._count_as_behind(study_id=study_id, trial_id=trial_id)
            raise

    def _change(self, change: Update | None, *, study_id: str | None, trial_id: str | None) -> None:
        """Changes the row and keeps that only where this process leads.

        The row comes first, the lease after it: a deletion may hold the row for minutes, and whoever waited for it with
        the lease in hand would keep every controller from leading.
        """
        studies, trials = tables.studies, tables.trials
        row = studies.c.id == study_id if trial_id is None else trials.c.id == trial_id
        with self._database.writing() as connection:
            if change is None:
                is_there = connection.execute(select(studies.c.id).where(row)).first() is not None
            else:
                is_there = connection.execute(change.where(row)).rowcount > 0
            if not self._leads(connection):
                raise LeadLostError
            if not is_there:
                raise StudyGoneError

    def _count_as_behind(self, *, study_id: str | None, trial_id: str | None) -> None:
        """In a transaction of its own, which locks the study before the trial, as drivers do."""
        trials = tables.trials
        with self._database.writing() as connection:
            if study_id is None:
                study_id = connection.execute(select(trials.c.study_id).where(trials.c.id == trial_id)).scalar()
            if study_id is None:
                raise StudyGoneError
            records.touch_study(connection, study_id)
            if trial_id is not None:
                records.touch_trial(connection, trial_id)

    def _leads(self, connection: Connection) -> bool:
        """Whether nobody else has led since this process took its lease; nobody can take it until this is committed."""
        if self._lead is None:
            return True
        table = tables.leases
        query = select(table.c.holder).where(table.c.name == self._lead.lease)
        return connection.execute(query.with_for_update()).scalar() == self._lead.holder
