"""Checkpoints that nobody has tidied up go after their study's end, and only those that are not to stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.tidying import TidyingStore, UntidyStudy
from service.study import Study, StudyState, Trial
from service.tidying import Tidier
from service.trial_checkpoints import TrialCheckpoints
from tests.service.conftest import Life


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return (tmp_path / "storage").as_uri()


@pytest.fixture
def tidy(database: Database, storage: str) -> Callable[[], None]:
    return Tidier(TidyingStore(database), storage, settling_s=0).tidy


@pytest.fixture
def cut_off(life: Life, database: Database, storage: str) -> Callable[..., tuple[Study, Trial]]:
    """A study with a running trial that has two checkpoints, cancelled by the controller: its driver is dead."""

    def make(**changes: Any) -> tuple[Study, Trial]:
        study = life.create(**changes)
        driver = life.start(study)
        trial, _ = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
        life.begin(driver, trial)
        for epoch in (1, 2):
            TrialCheckpoints(storage, study.id, trial.id).save(epoch, b"weights")
        life.lifecycle.cancel(study.id)
        ReconcilingStore(database).cancel_now(DriverClaim(study.id, 1))
        assert life.studies.get(study.id).state is StudyState.CANCELLED
        return study, trial

    return make


@pytest.mark.parametrize(("keep", "left"), [("latest", [2]), ("none", [])])
def test_what_is_not_to_stay_goes(
    keep: str, left: list[int], cut_off: Callable[..., Any], tidy: Callable[[], None], storage: str, database: Database
) -> None:
    study, trial = cut_off(checkpoint={"keep": keep})
    tidy()
    assert TrialCheckpoints(storage, study.id, trial.id).epochs() == left
    assert TidyingStore(database).untidy() == []


def test_a_study_is_left_alone_until_its_workers_are_gone(
    cut_off: Callable[..., Any], storage: str, database: Database
) -> None:
    study, trial = cut_off()
    Tidier(TidyingStore(database), storage, settling_s=60).tidy()
    assert TrialCheckpoints(storage, study.id, trial.id).epochs() == [2, 1]


def test_a_study_that_goes_on_is_left_alone(
    cut_off: Callable[..., Any], tidy: Callable[[], None], storage: str, database: Database, life: Life
) -> None:
    study = life.create(checkpoint={"keep": "none"})
    driver = life.start(study)
    trial, _ = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.fail(driver, trial)
    TrialCheckpoints(storage, study.id, trial.id).save(1, b"weights")
    life.succeed(driver)
    life.lifecycle.retry(study.id)
    tidy()
    assert TrialCheckpoints(storage, study.id, trial.id).epochs() == [1]


@pytest.mark.parametrize("keep", ["latest", "none"])
@pytest.mark.parametrize("looks", [1, 2])
def test_a_study_that_is_reopened_while_it_is_tidied_up_keeps_what_its_next_attempt_saves(
    looks: int, keep: str, life: Life, storage: str, database: Database
) -> None:
    """It is reopened right after so many looks at the store, which still show its end."""
    study = life.create(checkpoint={"keep": keep}, budget={"max_trials": 2})
    driver = life.start(study)
    trial, _ = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.begin(driver, trial)
    for epoch in (4, 5):
        TrialCheckpoints(storage, study.id, trial.id).save(epoch, b"first")
    life.succeed(driver)
    second = TrialCheckpoints(storage, study.id, trial.id, attempt=2)

    def reopen() -> None:
        life.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
        life.begin(life.start(study), trial, attempt=2)
        second.take_over()
        for epoch in (6, 7):
            second.save(epoch, b"second")

    class Reopening(TidyingStore):
        looks = 0

        def untidy(self, *, ended_for_s: float = 0.0) -> list[UntidyStudy]:
            return self._seen(super().untidy(ended_for_s=ended_for_s))

        def is_at_that_end(self, study: UntidyStudy) -> bool:
            return self._seen(super().is_at_that_end(study))

        def _seen(self, found: Any) -> Any:
            self.looks += 1
            if self.looks == looks:
                reopen()
            return found

    store = Reopening(database)
    tidier = Tidier(store, storage, settling_s=0)
    tidier.tidy()
    assert second.epochs() == [7, 6]
    life.lifecycle.cancel(study.id)
    ReconcilingStore(database).cancel_now(DriverClaim(study.id, 2))
    tidier.tidy()
    assert second.epochs() == ([7] if keep == "latest" else [])
    assert store.untidy() == []


def test_what_attempts_that_the_store_has_not_heard_of_have_left_goes_too(
    cut_off: Callable[..., Any], tidy: Callable[[], None], storage: str
) -> None:
    study, trial = cut_off(checkpoint={"keep": "latest"})
    TrialCheckpoints(storage, study.id, trial.id, attempt=7).save(1, b"weights")
    tidy()
    assert [(found.attempt, found.epoch) for found in TrialCheckpoints(storage, study.id, trial.id).found()] == [(1, 2)]


def test_an_end_that_was_tidied_up_says_nothing_of_the_next(
    cut_off: Callable[..., Any], database: Database, life: Life
) -> None:
    store = TidyingStore(database)
    study = life.create()
    driver = life.start(study)
    trial, _ = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    life.fail(driver, trial)
    life.succeed(driver)
    (first,) = store.untidy()
    life.lifecycle.retry(study.id)
    life.lifecycle.cancel(study.id)
    store.done(first)
    assert [untidy.study_id for untidy in store.untidy()] == [study.id]


def test_storage_that_fails_is_tried_again_later(
    cut_off: Callable[..., Any], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    study, trial = cut_off()
    store = TidyingStore(database)
    tidier = Tidier(store, "no URI", settling_s=0, clock=lambda: now)
    tidier.tidy()
    assert len(store.untidy()) == 1
    (line,) = caplog.records
    assert (line.__dict__["study_id"], line.__dict__["trial_id"]) == (study.id, trial.id)


@pytest.mark.parametrize(("settling_s", "uri"), [(60, "file:///unused"), (0, "no URI")], ids=["fresh", "paused"])
def test_of_a_study_whose_time_has_not_come_no_trial_is_read(
    settling_s: float, uri: str, cut_off: Callable[..., Any], database: Database
) -> None:
    statements: list[str] = []

    def executed(*call: Any) -> None:
        statements.append(call[2])

    cut_off()
    tidier = Tidier(TidyingStore(database), uri, settling_s=settling_s)
    tidier.tidy()
    event.listen(Engine, "before_cursor_execute", executed)
    try:
        tidier.tidy()
    finally:
        event.remove(Engine, "before_cursor_execute", executed)
    assert any("FROM studies" in statement for statement in statements)
    assert not any("FROM trials" in statement for statement in statements)


@pytest.mark.parametrize("trials_before", [0, 1, 2, 3])
def test_tidying_up_can_be_stopped_before_each_trial_and_goes_on_later(
    trials_before: int, life: Life, storage: str, database: Database
) -> None:
    study = life.create(checkpoint={"keep": "none"})
    driver = life.start(study)
    trials = life.propose(driver, {"lambda": 0.5, "rho": 0.1})
    for trial in trials:
        life.begin(driver, trial)
        TrialCheckpoints(storage, study.id, trial.id).save(1, b"weights")
    life.succeed(driver)
    tidier, store = Tidier(TidyingStore(database), storage, settling_s=0), TidyingStore(database)

    def left() -> int:
        return sum(len(TrialCheckpoints(storage, study.id, trial.id).epochs()) for trial in trials)

    answers = iter([False] * (1 + trials_before))  # once for the study, then for each trial: listing, and removing
    tidier.tidy(lambda: next(answers, True))
    assert left() == min(2, 4 - trials_before)
    assert [untidy.study_id for untidy in store.untidy()] == [study.id]
    tidier.tidy()
    assert (left(), store.untidy()) == (0, [])
