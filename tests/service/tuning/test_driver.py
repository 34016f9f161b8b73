"""The driver's own dealings with the store and with SIGTERM; Ray and Tune are left out."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import LeaseLostError, StoreUnavailableError
from service.settings import Settings
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.snapshots import StudySnapshot
from service.study import StudyState
from service.tuning import driver
from service.tuning.searcher import StudySearcher
from tests.service.conftest import Life


@pytest.fixture
def config(tmp_path: Path, store_url: str) -> Settings:
    return Settings(home=tmp_path / "home", database_url=store_url, heartbeat_s=0.1)


@pytest.fixture
def study_id(life: Life) -> str:
    """Of a RUNNING study whose driver has the number 1; its budget is used up."""
    study = life.create(budget={"max_trials": 2})
    store = life.start(study)
    life.run(store, life.propose(store, {"lambda": 0.5, "rho": 0.1}), [0.9, 0.8])
    return study.id


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_tuner(_spec: object, _study_id: str, searcher: StudySearcher, *_: object) -> None:
        assert searcher.suggest("t1") == StudySearcher.FINISHED

    monkeypatch.setattr(driver.ray, "init", lambda **_: None)
    monkeypatch.setattr(driver, "_run_tuner", run_tuner)
    monkeypatch.setattr(driver, "_leftovers", lambda _: [])


@pytest.fixture
def away_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has the store be away at the first of these calls, while something happens; answers those that were made."""

    def be_away(call: str, meanwhile: Callable[[DrivingStore], object] = lambda _: None) -> list[str]:
        calls: list[str] = []
        answer = getattr(DrivingStore, call)

        def ask(store: DrivingStore, *args: Any, **kwargs: Any) -> Any:
            calls.append(call)
            if len(calls) == 1:
                meanwhile(store)
                raise StoreUnavailableError("one moment")
            return answer(store, *args, **kwargs)

        monkeypatch.setattr(DrivingStore, call, ask)
        return calls

    return be_away


@pytest.mark.parametrize("call", ["snapshot", "heartbeat", "finish"])
def test_a_store_that_is_away_for_a_moment_does_not_end_the_driver(
    call: str, study_id: str, config: Settings, life: Life, away_at: Callable[..., list[str]]
) -> None:
    calls = away_at(call)
    driver.drive(study_id, 1, config)
    assert len(calls) >= 2
    assert life.studies.get(study_id).state is StudyState.SUCCEEDED


def test_a_driver_that_leaves_waits_for_the_store(
    study_id: str, config: Settings, life: Life, away_at: Callable[..., list[str]]
) -> None:
    life.lifecycle.pause(study_id)
    calls = away_at("leave")
    driver.drive(study_id, 1, config)
    assert len(calls) == 2
    assert life.studies.get(study_id).state is StudyState.PAUSED


def test_a_store_that_stays_away_ends_the_driver(
    study_id: str, config: Settings, away_at: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_PATIENCE_S", 0.0)
    away_at("finish")
    with pytest.raises(StoreUnavailableError):
        driver.drive(study_id, 1, config)


def test_a_driver_that_is_replaced_while_the_store_is_away_ends_nothing(
    study_id: str, config: Settings, life: Life, database: Database, away_at: Callable[..., list[str]]
) -> None:
    def replace(store: DrivingStore) -> None:
        store.give_up_lease()
        ReconcilingStore(database).lose_driver(DriverClaim(study_id, 1), max_losses=5)

    away_at("finish", meanwhile=replace)
    with pytest.raises(LeaseLostError):
        driver.drive(study_id, 1, config)
    assert life.studies.get(study_id).state is StudyState.QUEUED


@pytest.fixture
def is_given_up(database: Database, study_id: str) -> Iterator[Callable[[], bool]]:
    """Whether the driver has given its lease up; what it does with SIGTERM is undone afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM would end the process at once"))
    yield lambda: [claim.study_id for claim in ReconcilingStore(database).overdue_drivers(given_up=True)] == [study_id]
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("place", ["ray.init", "_run_tuner", "_leftovers"])
def test_a_driver_that_is_asked_to_end_gives_its_lease_up_wherever_it_is(
    place: str,
    study_id: str,
    config: Settings,
    life: Life,
    is_given_up: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"service.tuning.driver.{place}", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        driver.drive(study_id, 1, config)
    assert is_given_up()
    assert life.studies.get(study_id).state is StudyState.RUNNING


def test_a_driver_that_is_asked_to_end_gives_its_lease_up_though_the_store_is_away(
    study_id: str,
    config: Settings,
    is_given_up: Callable[[], bool],
    away_at: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "_run_tuner", lambda *_: signal.raise_signal(signal.SIGTERM))
    away_at("give_up_lease")
    with pytest.raises(SystemExit):
        driver.drive(study_id, 1, config)
    assert is_given_up()


def test_a_driver_that_is_asked_to_end_as_it_has_ended_its_study_leaves_it_so(
    study_id: str, config: Settings, life: Life, is_given_up: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = DrivingStore.finish

    def finish_and_be_asked(*args: Any, **kwargs: Any) -> StudyState:
        state = finish(*args, **kwargs)
        signal.raise_signal(signal.SIGTERM)
        return state

    monkeypatch.setattr(DrivingStore, "finish", finish_and_be_asked)
    with pytest.raises(SystemExit):
        driver.drive(study_id, 1, config)
    assert life.studies.get(study_id).state is StudyState.SUCCEEDED


def test_a_driver_does_not_keep_the_snapshot_that_it_begins_with(
    study_id: str, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[StudySnapshot] = []

    def begin(**_: object) -> None:
        kept.extend(one for one in gc.get_objects() if type(one) is StudySnapshot and one.study.id == study_id)

    monkeypatch.setattr(driver.ray, "init", begin)
    driver.drive(study_id, 1, config)
    assert kept == []
