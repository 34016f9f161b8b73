from __future__ import annotations

from typing import TYPE_CHECKING

from service.store.removals import Removal, RemovalStore

if TYPE_CHECKING:
    from service.store.database import Database
    from tests.service.store.conftest import Clock, Stores


def test_a_deleted_study_is_to_be_removed_until_it_is(stores: Stores, database: Database) -> None:
    removals = RemovalStore(database)
    study = stores.create()
    stores.exporting.set_study_run(study.id, experiment_id="7", run_id="r")
    stores.lifecycle.cancel(study.id)
    assert removals.pending() == []
    stores.lifecycle.delete(study.id, delete_runs=True)
    (removal,) = removals.pending()
    assert (removal.study_id, removal.experiment_id, removal.delete_runs) == (study.id, "7", True)
    removals.failed(study.id, "MLflow does not answer")
    assert len(removals.pending()) == 1
    removals.done(study.id)
    assert removals.pending() == []


def test_removals_know_their_age_and_the_oldest_comes_first(timed_stores: Stores, clock: Clock) -> None:
    removals = RemovalStore(timed_stores.database)
    deleted = []
    for _ in range(2):
        study = timed_stores.create()
        timed_stores.lifecycle.cancel(study.id)
        timed_stores.lifecycle.delete(study.id, delete_runs=True)
        deleted.append(study.id)
        clock.advance(10)
    assert removals.pending() == [Removal(deleted[0], None, True, 20.0), Removal(deleted[1], None, True, 10.0)]
