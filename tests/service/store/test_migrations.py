"""A store of every released version, with something of everything in it, becomes this version's store, and back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.errors import StoreUnavailableError
from service.store import tables
from service.store.database import Database, _alembic_config, current_revision, known_revisions, upgrade
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.studies import StudyStore
from service.study import StudyState, TrialState
from tests.service.store import releases

if TYPE_CHECKING:
    from tests.service.store.conftest import Stores


@pytest.fixture(params=releases.REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    released: str = request.param
    return released


@pytest.fixture
def released(revision: str, new_url: str, open_url: Callable[..., Database]) -> Database:
    """A store as a release has left it."""
    database = open_url(new_url)
    with database.writing() as connection:
        upgrade(connection, revision)
        releases.fill(connection, revision)
    return database


def found_in(database: Database) -> releases.Contents:
    with database.reading() as connection:
        return releases.contents(connection)


def downgrade(database: Database, revision: str) -> None:
    with database.writing() as connection:
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_every_revision_but_the_newest_has_a_frozen_store() -> None:
    assert known_revisions()[:-1] == releases.REVISIONS[: len(known_revisions()) - 1]


def test_a_frozen_store_has_something_of_everything(released: Database) -> None:
    found = found_in(released)
    assert all(found.values()), "a table without a row proves nothing"
    assert {study["state"] for study in found["studies"].values()} >= {*StudyState} - {StudyState.PAUSED}
    assert {trial["state"] for trial in found["trials"].values()} >= {*TrialState} - {TrialState.PAUSED}


def test_a_released_store_comes_up_to_date_with_everything_in_it(released: Database) -> None:
    before = found_in(released)
    released.migrate()
    released.check_schema()
    assert releases.only_columns_of(found_in(released), before) == before


def test_it_has_exactly_the_tables_then(released: Database) -> None:
    released.migrate()
    with released.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_going_back_leaves_what_the_release_had(released: Database, revision: str) -> None:
    before = found_in(released)
    released.migrate()
    downgrade(released, revision)
    assert found_in(released) == before
    released.migrate()
    released.check_schema()
    assert releases.only_columns_of(found_in(released), before) == before


def test_going_back_to_nothing_leaves_nothing(released: Database) -> None:
    released.migrate()
    downgrade(released, "base")
    assert found_in(released) == {}


def test_a_migration_that_fails_leaves_the_store_as_it_was(released: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found_in(released)

    def fail(connection: Any) -> None:
        upgrade(connection)
        raise RuntimeError("the power went off")

    monkeypatch.setattr("service.store.database.upgrade", fail)
    with pytest.raises(RuntimeError, match="the power went off"):
        released.migrate()
    assert found_in(released) == before


def test_results_by_configuration_are_filled_in(new_url: str, open_url: Callable[..., Database]) -> None:
    database = open_url(new_url)
    with database.writing() as connection:
        upgrade(connection, "0001")
        releases.fill(connection, "0001")
        upgrade(connection, "0002")
    names = ("origin", "objective_mean", "objective_std", "objective_n", "complete", "confirmed_mean", "confirmed_n")
    found = {key[0]: tuple(row[name] for name in names) for key, row in found_in(database)["configurations"].items()}
    assert found == {
        "succeededd-1": ("SEARCH", 0.5, pytest.approx(0.125**0.5), 2, True, None, 0),
        "succeededd-2": ("SEARCH", 0.5, None, 1, False, None, 0),  # its other trial was stopped early
        "succeededd-3": ("SEARCH", None, None, 0, False, None, 0),  # failed, and succeeded without an objective
        "succeededd-4": ("SEARCH", 0.625, None, 1, True, None, 0),
        "runningbbb-1": ("SEARCH", 0.9, None, 1, False, None, 0),
        "runningbbb-2": ("SEARCH", None, None, 0, False, None, 0),
        "stoppingcc-1": ("SEARCH", None, None, 0, False, None, 0),
        "failedeeee-1": ("SEARCH", None, None, 0, False, None, 0),
        "requeuedgg-1": ("SEARCH", 0.8, None, 1, False, None, 0),
    }


def test_new_columns_say_what_was_true_all_along(new_url: str, open_url: Callable[..., Database]) -> None:
    database = open_url(new_url)
    with database.writing() as connection:
        upgrade(connection, "0001")
        releases.fill(connection, "0001")
        upgrade(connection, "0002")
    found = found_in(database)
    for study in found["studies"].values():
        assert (study["version"], study["archived_at"], study["slots"], study["cloned_from"]) == (1, None, None, None)
    for trial in found["trials"].values():
        assert (trial["purpose"], trial["note"], trial["retried_after"]) == ("SEARCH", None, 0)
    assert {attempt["warning"] for attempt in found["attempts"].values()} == {None}


def test_a_driver_of_the_release_was_last_seen_by_what_it_left(new_url: str, open_url: Callable[..., Database]) -> None:
    database = open_url(new_url)
    with database.writing() as connection:
        upgrade(connection, "0002")
        releases.fill(connection, "0002")
        upgrade(connection, "0003")
    found = found_in(database)
    studies = {key[0]: row for key, row in found["studies"].items()}
    seen = {name: study["seen_at"] for name, study in studies.items() if study["seen_at"] is not None}
    assert seen == {
        "runningbbb": studies["runningbbb"]["lease_expires_at"],
        "stoppingcc": studies["stoppingcc"]["lease_expires_at"],
        "givenupiii": max(event["at"] for event in found["events"].values() if event["study_id"] == "givenupiii"),
    }


def take_from_drivers(reconciling: ReconcilingStore) -> list[DriverClaim]:
    """What the controller does with drivers whose lease ran out, and whose job has ended; answers whose they were."""
    overdue = reconciling.overdue_drivers()
    cancelling = {cancel.study_id for cancel in reconciling.cancelling()}
    for claim in overdue:
        if claim.study_id in cancelling:
            reconciling.cancel_now(claim)
        else:
            assert reconciling.lose_driver(claim, max_losses=5) is not None
    return overdue


def test_the_time_from_the_release_until_now_is_charged_to_nobody(
    new_url: str, open_url: Callable[..., Database]
) -> None:
    database = open_url(new_url)
    with database.writing() as connection:
        upgrade(connection, "0002")
        releases.fill(connection, "0002")
    database.migrate()
    overdue = take_from_drivers(ReconcilingStore(database))
    assert overdue
    for claim in overdue:
        elapsed_s = StudyStore(database).get(claim.study_id).elapsed_s
        assert elapsed_s < 61, "the longest lease of the release's drivers is 60 s"


def test_studies_of_a_release_go_on(released: Database) -> None:
    released.migrate()
    studies, reconciling = StudyStore(released), ReconcilingStore(released)
    overdue = take_from_drivers(reconciling)
    running = [claim for claim in overdue if studies.get(claim.study_id).state is StudyState.QUEUED]
    assert running
    assert all(studies.get(claim.study_id).state in (StudyState.QUEUED, StudyState.CANCELLED) for claim in overdue)
    for claim in running:
        assert reconciling.claim(claim.study_id, 60) == DriverClaim(claim.study_id, claim.driver_attempt + 1)
        assert studies.get(claim.study_id).elapsed_s >= 0
    assert reconciling.lead("controller", "another", 10)  # the lease of the release's controller has run out


def test_a_store_of_a_newer_version_is_left_alone(stores: Stores) -> None:
    with stores.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnavailableError, match="revision 9999, which a newer version has made"):
        stores.database.check_schema()
    with pytest.raises(StoreUnavailableError, match="9999"):
        stores.database.migrate()
    with stores.database.reading() as connection:
        assert current_revision(connection) == "9999"


def test_a_study_that_waited_since_the_release_is_as_old_as_it_is(released: Database) -> None:
    before = {key: row["created_at"] for key, row in found_in(released)["studies"].items()}
    released.migrate()
    for (study_id,), created_at in before.items():
        assert StudyStore(released).get(study_id).created_at - created_at == timedelta(0)
