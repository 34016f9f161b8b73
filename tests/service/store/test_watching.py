"""How the service is doing, as the store shows it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from service.store import tables
from service.store.driving import DrivingStore
from service.store.watching import WatchingStore
from service.study import Study

AGO_S = 900.0


def age(stores: Any, table: Any) -> None:
    """All that the table has is that old."""
    column = table.c.at if table is tables.events else table.c.recorded_at
    ago = stores.reconciling.now() - timedelta(seconds=AGO_S)
    with stores.database.writing() as connection:
        connection.execute(update(table).values({column: ago}))


def export_trials(stores: Any, driver: DrivingStore) -> None:
    for trial in driver.snapshot().trials:
        with stores.database.reading() as connection:
            row = connection.execute(tables.trials.select().where(tables.trials.c.id == trial.id)).one()
        stores.exporting.trial_exported(trial.id, revision=row.revision, epoch=row.epochs_done)


def lag_s(stores: Any) -> float:
    return WatchingStore(stores.database).look().behind.oldest_s


@pytest.fixture
def study(stores: Any) -> Study:
    created: Study = stores.create()
    return created


def test_a_parent_run_that_waits_for_its_interval_is_no_older_than_the_newest_epoch(stores: Any, study: Study) -> None:
    driver = stores.drive(study)
    for _ in range(2):
        stores.report(driver, stores.begin(driver), 1)
    age(stores, tables.events)
    age(stores, tables.results)
    stores.report(driver, driver.snapshot().trials[0], 2)
    assert lag_s(stores) == pytest.approx(AGO_S, abs=30), "the results are what MLflow lacks"
    export_trials(stores, driver)
    assert lag_s(stores) < 30


def test_what_is_behind_for_no_result_is_as_old_as_its_last_event(stores: Any, study: Study) -> None:
    driver = stores.drive(study)
    stores.begin(driver)
    age(stores, tables.events)
    assert lag_s(stores) == pytest.approx(AGO_S, abs=30)


def test_the_end_of_a_trial_is_newer_than_its_results(stores: Any, study: Study) -> None:
    driver = stores.drive(study)
    trial = stores.begin(driver)
    stores.report(driver, trial, 1)
    age(stores, tables.results)
    stores.succeed(driver, trial)
    export_trials(stores, driver)
    assert lag_s(stores) < 30
    age(stores, tables.events)
    assert lag_s(stores) == pytest.approx(AGO_S, abs=30)
