"""What a driver's reports change: the attempts, results and states of its study's trials."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from service.store import records, tables
from service.store.reports import AttemptLost, AttemptPaused, AttemptStarted, EpochReported, Report, TrialEnded
from service.store.summaries import summarise_configurations
from service.study import AttemptState, TrialState, check_trial_transition


def record_report(connection: Connection, study: Row[Any], report: Report, *, at: datetime) -> bool:
    """Records what happened at this time; whether that is a new result: an epoch, or the end of a trial.

    study: the locked row of the study. A report of an attempt that is not the trial's current one is left out.
    """
    trial = connection.execute(
        select(
            tables.trials.c.state,
            tables.trials.c.attempt,
            tables.trials.c.started_at,
            tables.trials.c.configuration_id,
        ).where(tables.trials.c.id == report.trial_id, tables.trials.c.study_id == study.id)
    ).one()
    state = TrialState(trial.state)
    if isinstance(report, AttemptStarted):
        if state in (TrialState.PENDING, TrialState.PAUSED) and report.attempt == trial.attempt + 1:
            _start_attempt(connection, study, report, trial.started_at or at, at=at)
        return False
    if report.attempt != trial.attempt or state is not TrialState.RUNNING:
        return False
    trial_ids = [report.trial_id]
    match report:
        case EpochReported():
            return _add_result(connection, report, at=at)
        case TrialEnded():
            check_trial_transition(state, report.state)
            records.end_open_attempts(connection, trial_ids, AttemptState(report.state), at=at, error=report.error)
            values = {"objective": report.objective, "error": report.error, "note": report.note}
            records.move_trials(connection, study.id, trial_ids, report.state, at=at, finished_at=at, **values)
            summarise_configurations(connection, [trial.configuration_id])
            return True
        case AttemptPaused():
            pause_trial(connection, study.id, report.trial_id, at=at)
        case AttemptLost():
            records.end_open_attempts(connection, trial_ids, AttemptState.LOST, at=at, error=report.error)
            records.move_trials(connection, study.id, trial_ids, TrialState.PENDING, at=at)
    return False


def pause_trial(connection: Connection, study_id: str, trial_id: str, *, at: datetime) -> None:
    """The trial has left its worker, and goes on from its checkpoint."""
    records.end_open_attempts(connection, [trial_id], AttemptState.PAUSED, at=at)
    records.move_trials(connection, study_id, [trial_id], TrialState.PAUSED, at=at)


def _start_attempt(
    connection: Connection, study: Row[Any], report: AttemptStarted, started_at: datetime, *, at: datetime
) -> None:
    connection.execute(
        insert(tables.attempts).values(
            trial_id=report.trial_id,
            number=report.attempt,
            driver_attempt=study.driver_attempt,
            state=AttemptState.RUNNING,
            node=report.node,
            started_at=at,
        )
    )
    values = {"attempt": report.attempt, "started_at": started_at}
    records.move_trials(connection, study.id, [report.trial_id], TrialState.RUNNING, at=at, **values)


def _add_result(connection: Connection, report: EpochReported, *, at: datetime) -> bool:
    """Whether the epoch is new to the trial."""
    insert_into = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    added = connection.execute(
        insert_into(tables.results)
        .values(
            trial_id=report.trial_id,
            epoch=report.epoch,
            attempt=report.attempt,
            metrics=report.metrics,
            recorded_at=at,
        )
        .on_conflict_do_nothing(index_elements=["trial_id", "epoch"])
        .returning(tables.results.c.id)
    )
    is_new = added.first() is not None  # rowcount does not say so on PostgreSQL
    if is_new:
        records.touch_trial(connection, report.trial_id, epochs_done=report.epoch, metrics=report.metrics)
    if report.warning is not None:
        table = tables.attempts
        of_attempt = (table.c.trial_id == report.trial_id) & (table.c.number == report.attempt)
        connection.execute(update(table).where(of_attempt).values(warning=report.warning))
    return is_new
