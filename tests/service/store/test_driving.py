from __future__ import annotations

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from service.errors import InvalidTransitionError, LeaseLostError
from service.spec_sections import Budget
from service.store import driving, records, tables
from service.store.driving import DrivingStore
from service.store.reports import AttemptLost, AttemptStarted, EpochReported, TrialEnded
from service.store.snapshots import EpochValue, Known
from service.study import AttemptState, Intent, Purpose, Reason, StudyState, TrialState


def every_write(driver: DrivingStore, trial_id: str) -> list[Any]:
    return [
        lambda: driver.heartbeat(60),
        driver.snapshot,
        lambda: driver.add_configuration({"rho": 9.0}, "late", [0], last_known=0),
        lambda: driver.record([EpochReported(trial_id, 1, 2, {"val_loss": 0.1})]),
        lambda: driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=Known(Budget(), 0)),
    ]


def assert_refused(stores: Any, driver: DrivingStore, study_id: str, trial_id: str) -> None:
    before = stores.studies.get(study_id), stores.studies.trials(study_id), stores.studies.events(study_id)
    for write in every_write(driver, trial_id):
        with pytest.raises(LeaseLostError):
            write()
    assert (stores.studies.get(study_id), stores.studies.trials(study_id), stores.studies.events(study_id)) == before


def test_a_limit_that_only_a_newer_version_knows_does_not_keep_a_driver_from_ending_its_study() -> None:
    stored = {"budget": {**Budget(max_trials=4).model_dump(mode="json"), "max_megawatt_hours": 0.5}}
    assert Known.of(stored, 3) == Known(Budget(max_trials=4), 3)


def test_a_late_report_of_a_lost_driver_is_refused(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study)
    late = DrivingStore(stores.database, study.id, claim.driver_attempt)
    trial = stores.begin(late)
    late.heartbeat(-1)
    stores.lose(claim)
    assert_refused(stores, late, study.id, trial.id)  # while the study is queued
    stores.drive(study)
    assert_refused(stores, late, study.id, trial.id)  # under another driver


def test_a_report_after_the_end_is_refused(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    stores.finish(driver)
    assert_refused(stores, driver, study.id, trial.id)


def test_a_report_of_a_study_that_is_gone_is_refused(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    with stores.database.writing() as connection:
        connection.execute(tables.studies.delete())
    for write in every_write(driver, trial.id):
        with pytest.raises(LeaseLostError, match="gone"):
            write()


def test_a_deleted_study_takes_everything_along(stores: Any) -> None:
    driver = stores.drive(stores.create())
    stores.report(driver, stores.begin(driver), 1)
    with stores.database.writing() as connection:
        connection.execute(tables.studies.delete())
        for table in tables.metadata.sorted_tables:
            assert connection.execute(table.select()).all() == []


def test_a_heartbeat_tells_what_the_user_wants(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    assert stores.studies.get(study.id).waiting_reason == "its driver is starting"
    assert driver.heartbeat(60).intent is Intent.RUN
    assert stores.studies.get(study.id).waiting_reason is None
    stores.lifecycle.cancel(study.id)
    assert driver.heartbeat(60).intent is Intent.CANCEL


def test_a_trial_passes_through_its_states(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    (trial,) = stores.propose(driver, seeds=[7])
    assert (trial.state, trial.attempt, trial.seed) == (TrialState.PENDING, 0, 7)
    driver.record([AttemptStarted(trial.id, 1, "node-1")])
    running = stores.studies.trial(study.id, trial.id)
    assert (running.state, running.attempt) == (TrialState.RUNNING, 1)
    driver.record(
        [
            EpochReported(trial.id, 1, 1, {"val_loss": 0.5}),
            EpochReported(trial.id, 1, 2, {"val_loss": 0.25}),
            TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.25),
        ]
    )
    ended = stores.studies.trial(study.id, trial.id)
    assert (ended.state, ended.epochs_done, ended.metrics) == (TrialState.SUCCEEDED, 2, {"val_loss": 0.25})
    assert ended.objective == 0.25
    assert running.started_at == ended.started_at <= ended.finished_at
    (attempt,) = stores.studies.attempts(study.id, trial.id)
    assert (attempt.number, attempt.state, attempt.node) == (1, AttemptState.SUCCEEDED, "node-1")
    results = stores.studies.results(study.id, trial.id)
    assert [(result.epoch, result.metrics["val_loss"]) for result in results] == [(1, 0.5), (2, 0.25)]


def test_every_change_of_state_is_an_event(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    driver.record([AttemptLost(trial.id, 1, "gone"), AttemptStarted(trial.id, 2, None)])
    driver.record([TrialEnded(trial.id, 2, TrialState.FAILED, None, "ValueError")])
    stores.finish(driver)
    events = stores.studies.events(study.id)
    assert [(event.kind, event.data["state"]) for event in events] == [
        ("study.state", "QUEUED"),
        ("study.state", "RUNNING"),
        ("trial.state", "RUNNING"),
        ("trial.state", "PENDING"),
        ("trial.state", "RUNNING"),
        ("trial.state", "FAILED"),
        ("study.state", "SUCCEEDED"),
    ]
    assert events[5].trial_id == trial.id
    assert events[5].data["error"] == "ValueError"


def test_a_report_of_an_older_attempt_changes_nothing(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    driver.record([AttemptLost(trial.id, 1, "gone"), AttemptStarted(trial.id, 2, None)])
    before = stores.studies.trial(study.id, trial.id)
    driver.record([EpochReported(trial.id, 1, 1, {}), AttemptLost(trial.id, 1, "gone")])
    driver.record([TrialEnded(trial.id, 1, TrialState.FAILED, None), AttemptStarted(trial.id, 1, None)])
    assert stores.studies.trial(study.id, trial.id) == before
    assert stores.studies.results(study.id, trial.id) == []


def test_a_report_after_the_trial_ended_changes_nothing(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    stores.succeed(driver, trial)
    before = stores.studies.trial(study.id, trial.id)
    stores.report(driver, trial, 1)
    driver.record([AttemptStarted(trial.id, 2, None)])
    assert stores.studies.trial(study.id, trial.id) == before


def test_an_attempt_that_skips_a_number_does_not_begin(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    (trial,) = stores.propose(driver)
    driver.record([AttemptStarted(trial.id, 2, None)])
    assert stores.studies.trial(study.id, trial.id).state is TrialState.PENDING
    assert stores.studies.attempts(study.id, trial.id) == []


def test_the_first_report_of_an_epoch_counts(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    for epoch in (1, 2, 3):
        stores.report(driver, trial, epoch, value=float(epoch))
    driver.record([AttemptLost(trial.id, 1, "gone"), AttemptStarted(trial.id, 2, None)])
    stores.report(driver, trial, 2, attempt=2, value=20.0)
    again = stores.studies.trial(study.id, trial.id)
    assert (again.epochs_done, again.metrics) == (3, {"val_loss": 3.0})
    stores.report(driver, trial, 4, attempt=2, value=40.0)
    results = stores.studies.results(study.id, trial.id)
    assert [(result.epoch, result.attempt, result.metrics["val_loss"]) for result in results] == [
        (1, 1, 1.0),
        (2, 1, 2.0),
        (3, 1, 3.0),
        (4, 2, 40.0),
    ]


def test_a_lost_attempt_waits_for_the_next_one(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    driver.record([AttemptLost(trial.id, 1, "the node went away")])
    lost = stores.studies.trial(study.id, trial.id)
    assert (lost.state, lost.attempt, lost.error) == (TrialState.PENDING, 1, None)
    driver.record([AttemptStarted(trial.id, 2, "node-2")])
    first, second = stores.studies.attempts(study.id, trial.id)
    assert (first.state, first.error) == (AttemptState.LOST, "the node went away")
    assert (second.state, second.number) == (AttemptState.RUNNING, 2)
    assert stores.studies.trial(study.id, trial.id).started_at == lost.started_at


def test_reports_are_recorded_whole_or_not_at_all(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    impossible = TrialEnded(trial.id, 1, TrialState.RUNNING, None)
    with pytest.raises(InvalidTransitionError):
        driver.record([EpochReported(trial.id, 1, 1, {}), impossible])
    assert stores.studies.results(study.id, trial.id) == []


@pytest.mark.parametrize(
    ("said", "stored"),
    [("bad byte \x00 in 'λ'", "bad byte \ufffd in 'λ'"), ("no file 'a\udcff☂'", "no file 'a?☂'")],
    ids=["NUL", "a lone surrogate"],
)
def test_an_error_may_say_anything(stores: Any, said: str, stored: str) -> None:
    study = stores.create()
    driver = stores.drive(study)
    lost, failed = stores.begin(driver), stores.begin(driver)
    driver.record([EpochReported(lost.id, 1, 1, {}, said), AttemptLost(lost.id, 1, said)])
    driver.record([TrialEnded(failed.id, 1, TrialState.FAILED, None, said, said)])
    trial = stores.studies.trial(study.id, failed.id)
    assert (trial.error, trial.note) == (stored, stored)
    (attempt,) = stores.studies.attempts(study.id, lost.id)
    assert (attempt.error, attempt.warning) == (stored, stored)
    event = stores.studies.events(study.id)[-1]
    assert (event.trial_id, event.data["error"], event.data["note"]) == (failed.id, stored, stored)


@pytest.mark.parametrize(
    ("objectives", "std"),
    [((1e200, 3e200), 2**0.5 * 1e200), ((1.5e308, 1.7e308), 2**0.5 * 1e307), ((1.7e308, -1.7e308), None)],
)
def test_a_trial_that_diverged_is_recorded_and_summarised(
    stores: Any, objectives: tuple[float, float], std: float | None
) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trials = stores.propose(driver, seeds=[0, 1])
    for trial, value in zip(trials, objectives, strict=True):
        driver.record([AttemptStarted(trial.id, 1, None), EpochReported(trial.id, 1, 1, {"val_loss": value})])
        driver.record([TrialEnded(trial.id, 1, TrialState.SUCCEEDED, value)])
    stores.finish(driver)
    assert [trial.objective for trial in stores.studies.trials(study.id)] == list(objectives)
    assert [trial.metrics for trial in stores.studies.trials(study.id)] == [{"val_loss": value} for value in objectives]
    with stores.database.reading() as connection:
        row = connection.execute(tables.configurations.select()).one()
    assert row.complete
    assert row.objective_mean == pytest.approx(objectives[0] / 2 + objectives[1] / 2)
    assert row.objective_std == pytest.approx(std)


def test_a_sign_of_life_is_no_change_to_the_study(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    before = stores.studies.get(study.id)
    driver.heartbeat(60, before.waiting_reason)
    driver.give_up_lease()
    assert stores.studies.get(study.id) == before


def test_ids_and_numbers_grow_through_the_study(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    configuration, trials = driver.add_configuration({"lambda": "1/t", "rho": 0.1}, "a", [5, 6], last_known=0)
    assert (configuration.id, configuration.number) == (f"{study.id}-1", 1)
    assert configuration.point == {"lambda": "1/t", "rho": 0.1}
    assert [(trial.id, trial.number) for trial in trials] == [(f"{study.id}-1-5", 1), (f"{study.id}-1-6", 2)]
    configuration, trials = driver.add_configuration({"rho": 0.2}, "b", [5], last_known=1)
    assert (configuration.id, trials[0].id, trials[0].number) == (f"{study.id}-2", f"{study.id}-2-5", 3)
    assert stores.studies.trials(study.id)[-1] == trials[0]


def test_the_same_point_twice_is_refused_and_leaves_nothing(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    driver.add_configuration({"rho": 0.1}, "same", [0], last_known=0)
    before = driver.snapshot()
    with pytest.raises(IntegrityError):
        driver.add_configuration({"rho": 0.1}, "same", [1], last_known=1)
    assert driver.snapshot() == before
    other = stores.drive(stores.create())
    other.add_configuration({"rho": 0.1}, "same", [0], last_known=0)  # of another study


def test_the_end_of_a_study_cancels_what_is_open(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    done, running = stores.begin(driver), stores.begin(driver)
    stores.succeed(driver, done)
    (pending,) = stores.propose(driver)
    driver.finish(StudyState.FAILED, Reason.TOO_MANY_FAILURES, "6 trials failed", known=driver.snapshot().known)
    ended = stores.studies.get(study.id)
    assert (ended.state, ended.reason, ended.error) == (StudyState.FAILED, "TOO_MANY_FAILURES", "6 trials failed")
    states = {trial.id: trial.state for trial in stores.studies.trials(study.id)}
    assert states == {
        done.id: TrialState.SUCCEEDED,
        running.id: TrialState.CANCELLED,
        pending.id: TrialState.CANCELLED,
    }
    (attempt,) = stores.studies.attempts(study.id, running.id)
    assert (attempt.state, attempt.finished_at) == (AttemptState.CANCELLED, ended.finished_at)


def test_a_snapshot_has_the_whole_study_and_nothing_else(stores: Any) -> None:
    study, other = stores.create(), stores.create()
    driver, another = stores.drive(study), stores.drive(other)
    another.record([EpochReported(stores.begin(another).id, 1, 1, {"val_accuracy": 0.5})])
    first, second = stores.begin(driver), stores.begin(driver)
    seen = [(second, 1, 0.25), (first, 1, 0.5), (first, 2, 1e308), (second, 2, 5e-324)]
    for trial, epoch, value in seen:
        driver.record([EpochReported(trial.id, 1, epoch, {"val_loss": 9.0, "val_accuracy": value})])
    snapshot = driver.snapshot()
    assert snapshot.study == stores.studies.get(study.id)
    assert snapshot.configurations == stores.studies.configurations(study.id)
    assert snapshot.trials == stores.studies.trials(study.id)
    assert snapshot.epoch_values == [EpochValue(trial.id, epoch, value) for trial, epoch, value in seen]


def test_a_snapshot_leaves_out_epochs_without_the_objectives_metric(stores: Any) -> None:
    driver = stores.drive(stores.create())
    trial = stores.begin(driver)
    driver.record([EpochReported(trial.id, 1, 1, {"val_accuracy": 0.5}), EpochReported(trial.id, 1, 2, {"loss": 0.1})])
    snapshot = driver.snapshot()
    assert snapshot.epoch_values == [EpochValue(trial.id, 1, 0.5)]
    assert snapshot.trials[0].epochs_done == 2


def test_a_value_beside_what_is_no_number_is_in_the_snapshot(timed_stores: Any) -> None:
    driver = timed_stores.drive(timed_stores.create())
    trial = timed_stores.begin(driver)
    driver.record([EpochReported(trial.id, 1, 1, {"val_accuracy": 0.5, "val_loss": math.nan})])  # as SQLite takes it
    assert driver.snapshot().epoch_values == [EpochValue(trial.id, 1, 0.5)]


def test_a_snapshot_takes_little_memory_for_an_epoch(stores: Any) -> None:
    epochs, metrics = 12_000, {"val_accuracy": 0.5} | {f"metric_{number}": 0.5 for number in range(15)}
    driver = stores.drive(stores.create())
    trial, now = stores.begin(driver), datetime.now(UTC)
    row = {"trial_id": trial.id, "attempt": 1, "metrics": metrics, "recorded_at": now}
    with stores.database.writing() as connection:
        connection.execute(insert(tables.results), [{**row, "epoch": number} for number in range(1, epochs + 1)])
    tracemalloc.start()
    snapshot = driver.snapshot()
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [one.epoch for one in snapshot.epoch_values] == list(range(1, epochs + 1))
    assert size_bytes < 200 * epochs


def test_a_snapshot_makes_its_records_once_its_transaction_is_over(
    stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = stores.drive(stores.create())
    stores.begin(driver)
    open_connections: list[int] = []

    def as_record(*arguments: Any) -> Any:
        open_connections.append(stores.database._engine.pool.checkedout())
        return records.as_record(*arguments)

    monkeypatch.setattr(driving, "records", SimpleNamespace(as_record=as_record))
    assert len(driver.snapshot().trials) == 1
    assert open_connections == [0, 0, 0]


def test_only_losses_of_workers_are_counted(stores: Any) -> None:
    study = stores.create()
    claim = stores.claim(study)
    driver = DrivingStore(stores.database, study.id, claim.driver_attempt)
    trial, unlucky = stores.begin(driver), stores.begin(driver)
    driver.record([AttemptLost(unlucky.id, 1, "node went away"), AttemptStarted(unlucky.id, 2, None)])
    driver.heartbeat(-1)
    stores.lose(claim)
    snapshot = stores.drive(study).snapshot()
    assert snapshot.lost_attempts == {unlucky.id: 1}
    assert [a.state for a in stores.studies.attempts(study.id, trial.id)] == [AttemptState.LOST]
    assert {trial.attempt for trial in snapshot.trials} == {1, 2}


def test_ten_drivers_at_once_lose_no_result(stores: Any) -> None:
    epochs = 10

    def run(_: int) -> tuple[str, str]:
        study = stores.create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        for epoch in range(1, epochs + 1):
            stores.report(driver, trial, epoch)
            driver.heartbeat(60)
        stores.succeed(driver, trial)
        stores.finish(driver)
        return study.id, trial.id

    with ThreadPoolExecutor(10) as pool:
        for study_id, trial_id in pool.map(run, range(10)):
            results = stores.studies.results(study_id, trial_id)
            assert [result.epoch for result in results] == list(range(1, epochs + 1))
            assert stores.studies.get(study_id).state is StudyState.SUCCEEDED


def test_what_went_wrong_beside_an_epoch_is_on_its_attempt(stores: Any) -> None:
    study = stores.create()
    driver = stores.drive(study)
    trial = stores.begin(driver)
    warning = "the checkpoint of epoch 1 could not be written: No space left on device"
    driver.record([EpochReported(trial.id, 1, 1, {}, warning), EpochReported(trial.id, 1, 2, {})])
    driver.record([AttemptLost(trial.id, 1, "gone"), AttemptStarted(trial.id, 2, None)])
    assert [attempt.warning for attempt in stores.studies.attempts(study.id, trial.id)] == [warning, None]


def test_confirming_trials_are_recorded_once_however_often_they_are_asked_for(stores: Any) -> None:
    driver = stores.drive(stores.create())
    (trial,) = stores.propose(driver)
    first = driver.add_confirming_trials(trial.configuration_id, [7, 8])
    assert driver.add_confirming_trials(trial.configuration_id, [7, 8]) == first  # the first answer may have been lost
    assert [(one.seed, one.purpose) for one in driver.snapshot().trials] == [
        (0, Purpose.SEARCH),
        (7, Purpose.CONFIRM),
        (8, Purpose.CONFIRM),
    ]


def test_confirming_trials_of_more_seeds_are_added_to_those_that_there_are(stores: Any) -> None:
    driver = stores.drive(stores.create())
    (trial,) = stores.propose(driver)
    driver.add_confirming_trials(trial.configuration_id, [7])
    assert [one.seed for one in driver.add_confirming_trials(trial.configuration_id, [7, 9])] == [7, 9]
    assert [one.seed for one in driver.add_confirming_trials(trial.configuration_id, [8])] == [8]
    assert [one.seed for one in driver.snapshot().trials] == [0, 7, 9, 8]
