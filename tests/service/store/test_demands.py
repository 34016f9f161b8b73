"""How many trials a study could train at once, as its share of the cluster sees it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from service.placement import Node
from service.shares import fair_shares
from service.spec import parse_spec
from service.store import tables
from service.store.changing import StudyChanges
from service.store.demands import at_target
from service.store.driving import DrivingStore
from service.store.reports import AttemptPaused, AttemptStarted, TrialEnded
from service.study import Purpose, Reason, Study, StudyState, Trial, TrialState
from service.tuning.algorithms import algorithm_for
from service.tuning.decisions import Ending
from service.tuning.progress import StudyProgress

RANDOM: dict[str, Any] = {
    "name": "s",
    "search_space": {"rho": {"type": "float", "low": 0.01, "high": 0.5}},
    "algorithm": {"name": "random"},
    "objective": {"metric": "val_accuracy", "mode": "max"},
}
GRID: dict[str, Any] = {**RANDOM, "search_space": "paper_lambda_rho", "algorithm": {"name": "grid"}}
GRID_SIZE = 20


def create(stores: Any, spec: dict[str, Any], **changes: Any) -> Study:
    study: Study = stores.create(spec=parse_spec({**spec, **changes}).to_mapping())
    return study


def wanted(stores: Any, study: Study) -> float:
    (number,) = (one.demand.wanted for one in stores.reconciling.driven() if one.demand.study_id == study.id)
    return float(number)


def succeeded(stores: Any, driver: DrivingStore, number: int) -> None:
    for _ in range(number):
        stores.succeed(driver, stores.begin(driver))


def confirm(stores: Any, driver: DrivingStore, number: int, *, end: bool) -> list[Trial]:
    """Trials that confirm this many configurations which have none yet."""
    snapshot = driver.snapshot()
    there = {trial.configuration_id for trial in snapshot.trials if trial.purpose is Purpose.CONFIRM}
    fresh = [one.id for one in snapshot.configurations if one.id not in there][:number]
    trials = [trial for one in fresh for trial in driver.add_confirming_trials(one, [100, 101])]
    for trial in trials if end else []:
        driver.record([AttemptStarted(trial.id, 1, "node-1")])
        stores.succeed(driver, trial)
    return trials


def test_what_trains_is_counted(stores: Any) -> None:
    study = create(stores, GRID)
    driver = stores.drive(study)
    trials = [stores.begin(driver) for _ in range(3)]
    stores.succeed(driver, trials[0])
    assert [one.demand.running for one in stores.reconciling.driven()] == [2]


@pytest.mark.parametrize("budget", [{"max_trials": None}, {"max_trials": GRID_SIZE}, {"max_trials": 500}])
def test_a_grid_wants_what_is_left_of_it(stores: Any, budget: dict[str, Any]) -> None:
    study = create(stores, GRID, budget=budget)
    driver = stores.drive(study)
    assert wanted(stores, study) == GRID_SIZE
    succeeded(stores, driver, GRID_SIZE - 2)
    assert wanted(stores, study) == 2
    stores.begin(driver)
    assert wanted(stores, study) == 2
    succeeded(stores, driver, 1)
    assert wanted(stores, study) == 1


def test_what_the_end_of_a_grid_leaves_the_others_have(stores: Any) -> None:
    ending, other = create(stores, GRID), create(stores, GRID)
    driver = stores.drive(ending)
    stores.drive(other)
    succeeded(stores, driver, GRID_SIZE - 1)
    stores.begin(driver)
    shares = fair_shares([one.demand for one in stores.reconciling.driven()], [Node(8, 0)])
    assert shares == {ending.id: 1, other.id: 7}


def test_each_seed_of_what_is_left_counts(stores: Any) -> None:
    study = create(stores, RANDOM, replicates={"seeds": [0, 1]}, budget={"max_trials": 8})
    driver = stores.drive(study)
    assert wanted(stores, study) == 8
    stores.propose(driver, seeds=(0, 1))
    assert wanted(stores, study) == 8


def test_no_more_is_wanted_than_may_train_at_once(stores: Any) -> None:
    study = create(stores, GRID, budget={"max_concurrent_trials": 3})
    stores.drive(study)
    assert wanted(stores, study) == 3


def test_a_paused_trial_of_a_study_that_goes_on_counts(stores: Any) -> None:
    study = create(stores, GRID)
    driver = stores.drive(study)
    succeeded(stores, driver, GRID_SIZE - 1)
    driver.record([AttemptPaused(stores.begin(driver).id, 1)])
    stores.lifecycle.pause(study.id)
    assert driver.leave() == "PAUSED"
    stores.lifecycle.resume(study.id)
    stores.drive(study)
    assert wanted(stores, study) == 1


@pytest.mark.parametrize(("how", "number"), [("pause", 1), ("cancel", 1), ("stop", 2)])
def test_a_study_on_its_way_to_its_end_wants_only_what_it_waits_for(stores: Any, how: str, number: int) -> None:
    study = create(stores, GRID)
    driver = stores.drive(study)
    stores.begin(driver)
    driver.record([AttemptPaused(stores.begin(driver).id, 1)])
    stores.propose(driver)
    getattr(stores.lifecycle, how)(study.id)
    assert wanted(stores, study) == number


def test_a_stopped_study_of_which_nothing_trains_wants_nothing(stores: Any) -> None:
    study = create(stores, GRID)
    driver = stores.drive(study)
    stores.propose(driver)
    stores.lifecycle.stop(study.id)
    assert wanted(stores, study) == 0


def test_each_round_of_confirming_counts_its_own_trials(stores: Any) -> None:
    study = create(stores, RANDOM, budget={"max_trials": 4}, confirm={"top_k": 2, "seeds": [100, 101]})
    driver = stores.drive(study)
    assert wanted(stores, study) == 4
    succeeded(stores, driver, 3)
    last = stores.begin(driver)
    assert wanted(stores, study) == 1, "no slot idles until the search is over"
    stores.succeed(driver, last)
    confirm(stores, driver, 2, end=True)
    stores.finish(driver)
    stores.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 6}), if_version=None)
    driver = stores.drive(study)
    assert wanted(stores, study) == 2
    succeeded(stores, driver, 2)
    confirm(stores, driver, 2, end=False)
    assert wanted(stores, study) == 4
    assert stores.studies.trials(study.id)[-1].state is TrialState.PENDING


def test_a_driver_with_nothing_to_train_may_find_out_what_comes_next(stores: Any) -> None:
    study = create(stores, RANDOM, budget={"max_trials": 2})
    succeeded(stores, stores.drive(study), 2)
    assert wanted(stores, study) == 1


@pytest.mark.parametrize(("mode", "target"), [("max", 0.9), ("min", 0.1)])
def test_at_its_target_a_study_wants_what_has_begun(stores: Any, mode: str, target: float) -> None:
    metric = "val_accuracy" if mode == "max" else "val_loss"
    study = create(stores, GRID, objective={"metric": metric, "mode": mode, "target": target})
    driver = stores.drive(study)
    first, second, third = (stores.begin(driver) for _ in range(3))
    driver.record([TrialEnded(first.id, 1, TrialState.SUCCEEDED, 0.5)])
    assert wanted(stores, study) == GRID_SIZE - 1
    driver.record([TrialEnded(second.id, 1, TrialState.SUCCEEDED, target)])
    assert wanted(stores, study) == 1
    driver.record([TrialEnded(third.id, 1, TrialState.SUCCEEDED, 0.5)])
    assert wanted(stores, study) == 1  # its driver is to find out


def test_at_its_target_a_study_wants_what_confirms_it_too(stores: Any) -> None:
    objective = {"metric": "val_accuracy", "mode": "max", "target": 0.9}
    study = create(stores, GRID, objective=objective, confirm={"top_k": 1, "seeds": [100, 101]})
    driver = stores.drive(study)
    first, _ = (stores.begin(driver) for _ in range(2))
    driver.record([TrialEnded(first.id, 1, TrialState.SUCCEEDED, 0.95)])
    assert wanted(stores, study) == 1
    confirm(stores, driver, 1, end=False)
    assert wanted(stores, study) == 3


@pytest.mark.parametrize(
    ("state", "objective", "is_reached"),
    [
        (TrialState.SUCCEEDED, 0.9, True),
        (TrialState.SUCCEEDED, 0.8, False),
        (TrialState.SUCCEEDED, None, False),
        (TrialState.EARLY_STOPPED, 0.9, False),
        (TrialState.FAILED, None, False),
    ],
)
def test_the_driver_and_the_store_agree_on_the_target(
    stores: Any, state: TrialState, objective: float | None, is_reached: bool
) -> None:
    target = {"metric": "val_accuracy", "mode": "max", "target": 0.9}
    spec = parse_spec({**GRID, "objective": target, "replicates": {"seeds": [0, 1]}})
    driver = stores.drive(stores.create(spec=spec.to_mapping()))
    first, second = stores.propose(driver, seeds=(0, 1))
    driver.record([AttemptStarted(trial.id, 1, "node-1") for trial in (first, second)])
    driver.record([TrialEnded(first.id, 1, TrialState.SUCCEEDED, 0.9), TrialEnded(second.id, 1, state, objective)])
    progress = StudyProgress(spec, driver.snapshot(), algorithm_for(spec, leg=1), driver)
    ends = progress.next_trial() == Ending(StudyState.SUCCEEDED, Reason.TARGET_REACHED)
    with stores.database.reading() as connection:
        study = connection.execute(select(tables.studies).where(tables.studies.c.id == driver.study_id)).one()
        assert (bool(at_target(connection, [study])), ends) == (is_reached, is_reached)
