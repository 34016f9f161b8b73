"""No budget pays for the time in which nobody was there: from a driver's last sign of life until its study goes on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DateTime, and_, select

from service.spec import accepted_spec, parse_spec
from service.store import tables
from service.store.backup import restore_backup, write_backup
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reconciling import DriverClaim
from service.store.reports import AttemptStarted, EpochReported, TrialEnded
from service.store.snapshots import StudySnapshot
from service.store.spending import spent_on_attempts
from service.study import AttemptState, Reason, Study, StudyState, Trial, TrialState
from service.tuning.algorithms import algorithm_for
from service.tuning.decisions import IssuedTrial
from service.tuning.progress import StudyProgress
from tests.service.store.conftest import Stores

NIGHT_S = 36_000
TRAINED_S = 30
BUDGETS = [{"max_wallclock_s": 3_600}, {"max_gpu_hours": 2}, {"max_trial_s": 3_600}]


def spec_with(budget: dict[str, float]) -> dict[str, Any]:
    spec = {
        "name": "s",
        "search_space": "paper_lambda_rho",
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "resources_per_trial": {"gpu": 1},
        "budget": budget,
    }
    return parse_spec(spec).to_mapping()


def pass_time(database: Database, seconds: float) -> None:
    """As if everything in the store were that much older."""
    with database.writing() as connection:
        for table in tables.metadata.sorted_tables:
            times = [column for column in table.columns if column.type._type_affinity is DateTime]
            for row in connection.execute(select(table)).mappings().all():
                older = {time: row[time.name] - timedelta(seconds=seconds) for time in times if row[time.name]}
                same = and_(*(key == row[key.name] for key in table.primary_key))
                connection.execute(table.update().where(same).values(older))


def train_for_a_while(stores: Stores, budget: dict[str, float]) -> tuple[DriverClaim, DrivingStore]:
    """A study whose trial has trained for 30 s, and whose driver has shown a sign of life since."""
    claim = stores.claim(stores.create(spec=spec_with(budget)))
    driver = DrivingStore(stores.database, claim.study_id, claim.driver_attempt)
    trial = stores.begin(driver)
    pass_time(stores.database, TRAINED_S)
    stores.report(driver, trial, 1)
    driver.heartbeat(10)
    return claim, driver


def next_driver(stores: Stores) -> tuple[StudySnapshot, StudyProgress]:
    """What the next driver finds, and makes of it."""
    (overdue,) = stores.reconciling.overdue_drivers()
    assert stores.lose(overdue).state is StudyState.QUEUED
    claim = stores.reconciling.claim(overdue.study_id, 60)
    assert claim is not None
    driver = DrivingStore(stores.database, claim.study_id, claim.driver_attempt)
    snapshot = driver.snapshot()
    spec = accepted_spec(snapshot.study.spec)
    progress = StudyProgress(spec, snapshot, algorithm_for(spec, leg=1), driver)
    return snapshot, progress


@pytest.fixture(params=["killed", "asked to end", "restored"])
def after_the_night(
    request: pytest.FixtureRequest, new_url: str, open_url: Callable[..., Database], tmp_path: Path
) -> Callable[[Stores, DrivingStore], Stores]:
    """The driver is gone, and ten hours later somebody looks at the store."""

    def after(stores: Stores, driver: DrivingStore) -> Stores:
        if request.param == "asked to end":
            driver.give_up_lease()
        pass_time(stores.database, NIGHT_S)
        if request.param != "restored":
            return stores
        write_backup(stores.database, tmp_path / "store.backup")
        restored = open_url(new_url)
        restore_backup(restored, tmp_path / "store.backup")
        return Stores(restored)

    return after


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: next(iter(budget)))
def test_an_outage_is_charged_to_no_budget(
    stores: Stores, after_the_night: Callable[[Stores, DrivingStore], Stores], budget: dict[str, float]
) -> None:
    _, driver = train_for_a_while(stores, budget)
    snapshot, progress = next_driver(after_the_night(stores, driver))
    trained_s = pytest.approx(TRAINED_S, abs=10)
    assert snapshot.study.elapsed_s == trained_s
    assert snapshot.attempts_s == trained_s
    assert list(snapshot.trained_s.values()) == [trained_s]
    issued = progress.next_trial()
    assert isinstance(issued, IssuedTrial)
    if "max_trial_s" in budget:
        assert issued.seconds_left == pytest.approx(3_600 - TRAINED_S, abs=10)


def dead_for_a_night(stores: Any, clock: Any) -> tuple[Study, DriverClaim, Trial, datetime]:
    """A study with a trial that trains, whose driver was last seen at that time."""
    study = stores.create()
    claim = stores.claim(study)
    driver = stores.driver(claim)
    trial = stores.begin(driver)
    clock.advance(TRAINED_S)
    driver.heartbeat(10)
    seen = clock.now
    clock.advance(NIGHT_S)
    return study, claim, trial, seen


def test_a_lost_attempt_ended_with_its_drivers_last_sign_of_life(timed_stores: Any, clock: Any) -> None:
    stores = timed_stores
    study, claim, trial, seen = dead_for_a_night(stores, clock)
    stores.lose(claim)
    (attempt,) = stores.studies.attempts(study.id, trial.id)
    assert (attempt.state, attempt.finished_at) == (AttemptState.LOST, seen)
    noticed = stores.studies.events(study.id)[-3:]
    assert {event.kind for event in noticed} == {"driver.lost", "trial.state", "study.state"}
    assert {event.at for event in noticed} == {clock.now}


def test_what_a_driver_records_is_a_sign_of_life_too(timed_stores: Any, clock: Any) -> None:
    study = timed_stores.create()
    claim = timed_stores.claim(study)
    driver = timed_stores.driver(claim)
    trial = timed_stores.begin(driver)
    clock.advance(TRAINED_S)
    timed_stores.report(driver, trial, 1)
    clock.advance(NIGHT_S)
    assert timed_stores.lose(claim).elapsed_s == TRAINED_S


def test_a_driver_that_never_came_to_life_costs_nothing(timed_stores: Any, clock: Any) -> None:
    study = timed_stores.create()
    claim = timed_stores.claim(study)
    clock.advance(NIGHT_S)
    assert timed_stores.lose(claim).elapsed_s == 0
    claim = timed_stores.claim(study)
    clock.advance(NIGHT_S)
    timed_stores.reconciling.give_back(claim, "the cluster takes no jobs")
    assert timed_stores.studies.get(study.id).elapsed_s == 0


def test_a_driver_that_ends_by_itself_has_worked_up_to_then(timed_stores: Any, clock: Any) -> None:
    for end in (timed_stores.finish, lambda driver: driver.leave()):
        study = timed_stores.create()
        driver = timed_stores.drive(study)
        timed_stores.begin(driver)
        clock.advance(TRAINED_S)
        end(driver)
        assert timed_stores.studies.get(study.id).elapsed_s == TRAINED_S


@pytest.mark.parametrize("how", ["paused", "cancelled", "failed"])
def test_a_study_that_ends_with_its_dead_driver_pays_no_more(timed_stores: Any, clock: Any, how: str) -> None:
    stores = timed_stores
    study, claim, trial, seen = dead_for_a_night(stores, clock)
    if how == "paused":
        stores.lifecycle.pause(study.id)
    elif how != "failed":
        stores.lifecycle.cancel(study.id)
    if how == "cancelled":
        stores.reconciling.cancel_now(claim)
    else:
        stores.lose(claim, max_losses=1)
    ended = stores.studies.get(study.id)
    (attempt,) = stores.studies.attempts(study.id, trial.id)
    assert (ended.elapsed_s, attempt.finished_at) == (TRAINED_S, seen)
    if how == "paused":
        assert ended.state is StudyState.PAUSED
        return
    assert ended.finished_at == clock.now
    assert ended.reason is (Reason.DRIVER_FAILED if how == "failed" else Reason.USER)
    assert stores.studies.trial(study.id, trial.id).state is TrialState.CANCELLED


class TestAMachineThatSleeps:
    """The driver wakes before a controller looks, and trains on."""

    @pytest.fixture
    def sleep(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        """The store's clock goes on, whichever it is, and the driver's stopwatch stands still."""
        slept = timedelta()
        now = stores.database.now
        monkeypatch.setattr(stores.database, "now", lambda connection: now(connection) + slept)

        def for_seconds(seconds: float) -> None:
            nonlocal slept
            slept += timedelta(seconds=seconds)

        return for_seconds

    def test_a_night_is_recorded_as_such_and_charged_to_nobody(
        self, stores: Stores, sleep: Callable[[float], None]
    ) -> None:
        study = stores.create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        sleep(NIGHT_S)
        driver.heartbeat(10)
        stores.report(driver, trial, 1)
        (event,) = [event for event in stores.studies.events(study.id) if event.kind == "driver.slept"]
        assert event.data == {"driver_attempt": 1, "seconds": pytest.approx(NIGHT_S, abs=5)}
        stores.succeed(driver, trial)
        stores.finish(driver)
        (attempt,) = stores.studies.attempts(study.id, trial.id)
        assert attempt.finished_at is not None
        assert (attempt.finished_at - attempt.started_at).total_seconds() > NIGHT_S, "the times are true"
        assert stores.studies.get(study.id).elapsed_s < 10
        with stores.database.reading() as connection:
            assert spent_on_attempts(connection, study.id).attempts_s < 10

    @pytest.mark.parametrize("first", ["heartbeat", "record", "finish", "leave", "give_up_lease"])
    def test_whatever_a_driver_does_first_tells_that_it_has_slept(
        self, timed_stores: Any, clock: Any, first: str
    ) -> None:
        stores = timed_stores
        study = stores.create()
        claim = stores.claim(study)
        driver = stores.driver(claim)
        trial = stores.begin(driver)
        clock.advance(TRAINED_S)
        driver.heartbeat(10)
        clock.sleep(NIGHT_S)
        clock.advance(TRAINED_S)
        match first:
            case "heartbeat":
                driver.heartbeat(10)
            case "record":
                stores.succeed(driver, trial)
            case "give_up_lease":
                driver.give_up_lease()
        if first in ("heartbeat", "record", "finish"):
            stores.finish(driver)
        elif first == "leave":
            driver.leave()
        else:
            stores.lose(claim)
        assert stores.studies.get(study.id).elapsed_s == 2 * TRAINED_S
        if first != "leave":
            with stores.database.reading() as connection:
                assert spent_on_attempts(connection, study.id).attempts_s == 2 * TRAINED_S

    def test_only_what_ran_meanwhile_gets_the_night_back(self, timed_stores: Any, clock: Any) -> None:
        stores = timed_stores
        study = stores.create()
        driver = stores.drive(study)
        before, during = stores.begin(driver), stores.begin(driver)
        clock.advance(TRAINED_S)
        stores.succeed(driver, before)
        clock.sleep(NIGHT_S)
        after = stores.begin(driver)
        clock.advance(TRAINED_S)
        stores.succeed(driver, during)
        stores.succeed(driver, after)
        with stores.database.reading() as connection:
            spent = spent_on_attempts(connection, study.id)
        assert spent.trained_s == {before.id: TRAINED_S, during.id: 2 * TRAINED_S, after.id: TRAINED_S}

    def test_a_night_is_told_once_also_where_the_store_was_away_in_the_morning(
        self, timed_stores: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stores = timed_stores
        study = stores.create()
        driver = stores.drive(study)
        stores.begin(driver)
        clock.sleep(NIGHT_S)
        with monkeypatch.context() as patched:
            patched.setattr(driver, "_last_number", lambda *_: 1 / 0)  # after the sign of life, before the commit
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    driver.heartbeat(10)
        for _ in range(2):
            driver.heartbeat(10)
        slept = [event.data["seconds"] for event in stores.studies.events(study.id) if event.kind == "driver.slept"]
        assert slept == [NIGHT_S]

    def test_a_store_that_was_away_is_no_sleep(self, timed_stores: Any, clock: Any) -> None:
        study = timed_stores.create()
        driver = timed_stores.drive(study)
        driver.heartbeat(10)
        clock.advance(NIGHT_S)
        driver.heartbeat(10)
        timed_stores.finish(driver)
        assert timed_stores.studies.get(study.id).elapsed_s == NIGHT_S

    def test_what_trained_while_the_store_was_away_is_paid_for(self, timed_stores: Any, clock: Any) -> None:
        stores = timed_stores
        study = stores.create()
        driver = stores.drive(study)
        (trial,) = stores.propose(driver)
        began = clock.now
        clock.advance(3 * TRAINED_S)
        reports = [
            AttemptStarted(trial.id, 1, None),
            EpochReported(trial.id, 1, 1, {"val_loss": 0.5}),
            TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.5),
        ]
        driver.record(reports, happened_at_s=[clock.awake_s - ago * TRAINED_S for ago in (3, 2, 1)])
        (attempt,) = stores.studies.attempts(study.id, trial.id)
        assert (attempt.started_at, attempt.finished_at) == (began, began + timedelta(seconds=2 * TRAINED_S))
        (result,) = stores.studies.results(study.id, trial.id)
        assert result.recorded_at == began + timedelta(seconds=TRAINED_S)
        assert driver.snapshot().trained_s == {trial.id: 2 * TRAINED_S}

    def test_nothing_happened_before_its_driver(self, timed_stores: Any, clock: Any) -> None:
        stores = timed_stores
        study = stores.create()
        began = clock.now
        driver = stores.drive(study)
        (trial,) = stores.propose(driver)
        driver.record(
            [AttemptStarted(trial.id, 1, None)], happened_at_s=[clock.awake_s - NIGHT_S]
        )  # a clock that was set back
        (attempt,) = stores.studies.attempts(study.id, trial.id)
        assert attempt.started_at == began

    def test_nothing_happened_before_what_is_recorded(self, timed_stores: Any, clock: Any) -> None:
        """A lock was waited for: what came while it was held is recorded with its own age only afterwards."""
        stores = timed_stores
        study = stores.create()
        driver = stores.drive(study)
        first, second = stores.propose(driver, seeds=[0, 1])
        clock.advance(10)
        for trial in (first, second):
            driver.record([AttemptStarted(trial.id, 1, None)], happened_at_s=[clock.awake_s - 0.9])
            driver.record(
                [TrialEnded(trial.id, 1, TrialState.FAILED, None, "why")], happened_at_s=[clock.awake_s - 1.1]
            )
            (attempt,) = stores.studies.attempts(study.id, trial.id)
            assert attempt.started_at == attempt.finished_at == clock.now

    def test_the_wait_for_a_lock_is_part_of_a_reports_age(
        self, timed_stores: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stores = timed_stores
        study = stores.create()
        driver = stores.drive(study)
        (trial,) = stores.propose(driver)
        began, lock = clock.now, driver._lock

        def waiting(connection: Any) -> Any:
            clock.advance(5)
            return lock(connection)

        monkeypatch.setattr(driver, "_lock", waiting)
        driver.record([AttemptStarted(trial.id, 1, None)], happened_at_s=[clock.awake_s])
        (attempt,) = stores.studies.attempts(study.id, trial.id)
        assert attempt.started_at == began

    def test_a_night_in_which_the_store_was_away_too_is_charged_to_nobody(self, timed_stores: Any, clock: Any) -> None:
        stores = timed_stores
        study = stores.create()
        driver = stores.drive(study)
        trial = stores.begin(driver)
        clock.advance(TRAINED_S)
        clock.sleep(NIGHT_S)
        ended = TrialEnded(trial.id, 1, TrialState.SUCCEEDED, 0.5)
        driver.record([ended], happened_at_s=[clock.awake_s - TRAINED_S / 2])
        assert driver.snapshot().trained_s == {trial.id: TRAINED_S}

    @pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: next(iter(budget)))
    def test_the_driver_and_its_successor_count_the_same(
        self, timed_stores: Any, clock: Any, budget: dict[str, float]
    ) -> None:
        stores = timed_stores
        claim = stores.claim(stores.create(spec=spec_with(budget)))
        driver = stores.driver(claim)
        snapshot = driver.snapshot()
        spec = accepted_spec(snapshot.study.spec)
        algorithm = algorithm_for(spec, leg=0)
        progress = StudyProgress(spec, snapshot, algorithm, driver, stopwatch=lambda: clock.awake_s)
        issued = progress.next_trial()
        assert isinstance(issued, IssuedTrial)
        progress.attempt_started(issued.trial_id, 1)
        driver.record([AttemptStarted(issued.trial_id, 1, None)])
        clock.advance(TRAINED_S)
        driver.heartbeat(10)
        clock.sleep(NIGHT_S)
        driver.heartbeat(10)
        assert progress.must_end_now() is None
        clock.advance(TRAINED_S)
        progress.attempt_lost(issued.trial_id)
        driver.give_up_lease()
        own = progress.next_trial()
        snapshot, successor = next_driver(stores)
        after = successor.next_trial()
        assert (snapshot.study.elapsed_s, snapshot.attempts_s) == (2 * TRAINED_S, 2 * TRAINED_S)
        assert isinstance(own, IssuedTrial)
        assert isinstance(after, IssuedTrial)
        assert (after.trial_id, after.seconds_left) == (own.trial_id, own.seconds_left)

    def test_a_clock_that_is_set_back_and_forth_changes_nothing(self, timed_stores: Any, clock: Any) -> None:
        study = timed_stores.create()
        driver = timed_stores.drive(study)
        driver.heartbeat(10)
        for step_s in (-60, 60, 60, -60):
            clock.advance(TRAINED_S)
            clock.sleep(step_s)
            driver.heartbeat(10)
        timed_stores.finish(driver)
        assert timed_stores.studies.get(study.id).elapsed_s == pytest.approx(4 * TRAINED_S)

    def test_a_store_that_answers_late_is_no_sleep(self, timed_stores: Any, clock: Any, monkeypatch: Any) -> None:
        study = timed_stores.create()
        driver = timed_stores.drive(study)
        driver.heartbeat(10)
        look = timed_stores.database.now

        def slow(connection: Any) -> Any:
            now = look(connection)
            clock.advance(TRAINED_S)
            return now

        clock.advance(TRAINED_S)
        with monkeypatch.context() as patch:
            patch.setattr(timed_stores.database, "now", slow)
            driver.heartbeat(10)
        driver.heartbeat(10)
        timed_stores.finish(driver)
        assert timed_stores.studies.get(study.id).elapsed_s == 2 * TRAINED_S
