"""GET /metrics: what Prometheus can alert on."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, update
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.metrics import LOOK_S, Metrics
from service.settings import Settings
from service.store import tables
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.reconciling import ReconcilingStore
from service.store.watching import Sight, WatchingStore
from service.study import StudyState, TrialState

if TYPE_CHECKING:
    from tests.service.conftest import Life

AGO = timedelta(minutes=10)


def read(database: Database) -> dict[str, float]:
    """Samples by name, with their labels where they have some."""
    text = Metrics(WatchingStore(database)).exposition().decode()
    return {
        sample.name + shown(sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def shown(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(labels.values()) + "}" if labels else ""


def change(database: Database, statement: Any) -> None:
    with database.writing() as connection:
        connection.execute(statement)


def test_made_up_methods_make_one_series(database: Database, api_settings: Settings) -> None:
    client = TestClient(create_app(database, api_settings))
    for method in (*(f"FROB{number}" for number in range(50)), "get", "OPTIONS"):
        client.request(method, "/nowhere")
    text = client.get("/metrics").text
    assert set(re.findall(r'method="([^"]*)"', text)) == {"GET", "OPTIONS", "other"}
    assert "FROB" not in text


def test_a_store_that_says_nothing_is_down_for_everybody_at_once(
    database: Database, wait_until: Callable[..., None]
) -> None:
    goes_on = threading.Event()

    class Silent(WatchingStore):
        looks = 0

        def look(self) -> Sight:
            Silent.looks += 1
            goes_on.wait(20)
            return super().look()

    metrics = Metrics(Silent(database), patience_s=0.1)
    started = time.monotonic()
    for _ in range(5):
        assert b"samstudy_store_up 0.0" in metrics.exposition()
    assert time.monotonic() - started < 2
    assert Silent.looks == 1
    goes_on.set()
    wait_until(lambda: b"samstudy_store_up 1.0" in metrics.exposition())


def test_an_idle_service_has_every_series(database: Database) -> None:
    found = read(database)
    assert {name for name in found if name.startswith("samstudy_studies")} == {
        f"samstudy_studies{{{state}}}" for state in StudyState
    }
    assert {found[f"samstudy_trials{{{state}}}"] for state in TrialState} == {0}
    nothing = {name: value for name, value in found.items() if name.startswith("samstudy_") and "{" not in name}
    assert nothing.pop("samstudy_store_up") == 1
    assert {
        "samstudy_trials_with_warning",
        "samstudy_queue_age_seconds",
        "samstudy_drivers",
        "samstudy_drivers_overdue",
        "samstudy_idle_studies",
        "samstudy_idle_age_seconds",
        "samstudy_controller_leading",
        "samstudy_export_behind_studies",
        "samstudy_export_lag_seconds",
        "samstudy_webhook_deliveries_pending",
        "samstudy_webhook_delivery_age_seconds",
        "samstudy_removals_pending",
        "samstudy_removal_age_seconds",
    } == nothing.keys()
    assert set(nothing.values()) == {0}
    assert found["process_resident_memory_bytes"] > 0


def test_studies_and_trials_are_counted_by_state(database: Database, life: Life) -> None:
    life.finished({(0.0, 0.1): (0.9, 0.8)})
    driver = life.start(life.create())
    running, _ = life.propose(driver, {"lambda": 0.0, "rho": 0.1})
    life.begin(driver, running)
    found = read(database)
    assert (found["samstudy_studies{SUCCEEDED}"], found["samstudy_studies{RUNNING}"]) == (1, 1)
    assert [found[f"samstudy_trials{{{state}}}"] for state in ("SUCCEEDED", "RUNNING", "PENDING")] == [2, 1, 1]


def test_the_age_of_the_queue_counts_from_when_a_study_came_there(database: Database, life: Life) -> None:
    old, waiting = life.create(), life.create()
    change(database, update(tables.studies).values(created_at=datetime.now(UTC) - AGO))
    assert read(database)["samstudy_queue_age_seconds"] < 60  # an old study may have been reopened just now
    change(
        database,
        update(tables.events).where(tables.events.c.study_id == waiting.id).values(at=datetime.now(UTC) - AGO),
    )
    assert read(database)["samstudy_queue_age_seconds"] == pytest.approx(600, abs=60)
    life.start(waiting)
    assert read(database)["samstudy_queue_age_seconds"] < 60
    life.start(old)
    assert read(database)["samstudy_queue_age_seconds"] == 0


def test_a_study_that_has_a_driver_and_trains_nothing_is_idle(database: Database, life: Life) -> None:
    life.create()
    training, waiting = life.start(life.create()), life.start(life.create())
    trial, _ = life.propose(training, {"lambda": 0.0, "rho": 0.1})
    life.begin(training, trial)
    trial, _ = life.propose(waiting, {"lambda": 0.0, "rho": 0.1})
    assert (read(database)["samstudy_idle_studies"], read(database)["samstudy_idle_age_seconds"] < 60) == (1, True)
    change(database, update(tables.events).values(at=datetime.now(UTC) - AGO))
    assert read(database)["samstudy_idle_age_seconds"] == pytest.approx(600, abs=60)
    life.begin(waiting, trial)
    assert (read(database)["samstudy_idle_studies"], read(database)["samstudy_idle_age_seconds"]) == (0, 0)


def test_the_lease_of_the_most_overdue_driver_shows(database: Database, life: Life) -> None:
    first, _ = life.create(), life.start(life.create())
    assert read(database)["samstudy_driver_lease_remaining_seconds"] == pytest.approx(60, abs=30)
    life.start(first)
    overdue = update(tables.studies).where(tables.studies.c.id == first.id)
    change(database, overdue.values(lease_expires_at=datetime.now(UTC) - AGO))
    found = read(database)
    assert (found["samstudy_drivers"], found["samstudy_drivers_overdue"]) == (2, 1)
    assert found["samstudy_driver_lease_remaining_seconds"] == pytest.approx(-600, abs=60)


def test_a_lease_that_was_given_up_ended_then(database: Database, life: Life) -> None:
    study = life.create()
    life.start(study).give_up_lease()
    found = read(database)
    assert (found["samstudy_drivers"], found["samstudy_drivers_overdue"]) == (1, 1)
    assert found["samstudy_driver_lease_remaining_seconds"] == pytest.approx(0, abs=30)


def test_a_missing_controller_can_be_alerted_on(database: Database) -> None:
    reconciling = ReconcilingStore(database)
    assert reconciling.lead("controller", "a-machine:1", 60)
    found = read(database)
    assert found["samstudy_controller_leading"] == 1
    assert found["samstudy_controller_lease_remaining_seconds"] == pytest.approx(60, abs=30)
    assert found["samstudy_controller_info{a-machine:1}"] == 1
    change(database, update(tables.leases).values(expires_at=datetime.now(UTC) - AGO))
    found = read(database)
    assert found["samstudy_controller_leading"] == 0
    assert found["samstudy_controller_lease_remaining_seconds"] == pytest.approx(-600, abs=60)
    reconciling.give_up_lead("controller", "a-machine:1")
    assert read(database)["samstudy_controller_leading"] == 0


def test_the_lag_of_the_export_is_the_age_of_the_oldest_result_that_mlflow_lacks(
    database: Database, life: Life
) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.8)})
    exporting = ExportStore(database)
    change(database, update(tables.events).values(at=datetime.now(UTC) - AGO))
    results = tables.results
    change(database, update(results).where(results.c.epoch == 2).values(recorded_at=datetime.now(UTC) - AGO / 2))
    change(database, update(results).where(results.c.epoch == 1).values(recorded_at=datetime.now(UTC) - AGO))
    found = read(database)
    assert found["samstudy_export_behind_studies"] == 1
    assert found["samstudy_export_lag_seconds"] == pytest.approx(600, abs=60)
    change(database, update(tables.trials).values(exported_epoch=1))
    assert read(database)["samstudy_export_lag_seconds"] == pytest.approx(300, abs=60)
    change(database, update(tables.trials).values(exported_epoch=3, exported_revision=tables.trials.c.revision))
    assert read(database)["samstudy_export_lag_seconds"] == pytest.approx(600, abs=60)  # its end is an event
    exporting.study_exported(study.id, revision=life.studies.get(study.id).revision)
    found = read(database)
    assert (found["samstudy_export_behind_studies"], found["samstudy_export_lag_seconds"]) == (0, 0)


def test_what_waits_for_webhooks_and_removals_shows(database: Database) -> None:
    at = datetime.now(UTC) - AGO
    change(
        database,
        insert(tables.webhooks).values(id="w", owner="a", url="http://x", secret="s", states=[], created_at=at),
    )
    delivery = {"webhook_id": "w", "study_id": "s", "payload": {}, "created_at": at, "attempts": 1}
    change(database, insert(tables.webhook_deliveries).values(**delivery, next_attempt_at=at))
    change(database, insert(tables.webhook_deliveries).values(**delivery, next_attempt_at=None))
    change(database, insert(tables.removals).values(study_id="s", delete_runs=False, requested_at=at))
    found = read(database)
    for count, age in (("webhook_deliveries_pending", "webhook_delivery_age"), ("removals_pending", "removal_age")):
        assert found[f"samstudy_{count}"] == 1
        assert found[f"samstudy_{age}_seconds"] == pytest.approx(600, abs=60)


def test_the_store_is_looked_at_once_for_all_who_ask_within_seconds(database: Database, life: Life) -> None:
    now = 0.0
    metrics = Metrics(WatchingStore(database), clock=lambda: now)
    assert b'samstudy_studies{state="QUEUED"} 0.0' in metrics.exposition()
    life.create()
    assert b'samstudy_studies{state="QUEUED"} 0.0' in metrics.exposition()
    now = LOOK_S
    assert b'samstudy_studies{state="QUEUED"} 1.0' in metrics.exposition()


def test_starting_the_api_does_not_ask_the_store(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    create_app(database, Settings(home=tmp_path))
    database.dispose()
    assert not (tmp_path / "empty.db").exists()


def test_names_follow_prometheus_conventions(database: Database) -> None:
    text = Metrics(WatchingStore(database)).exposition().decode()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("samstudy_"):
            assert family.documentation
            assert not family.name.endswith(("_ms", "_minutes", "_count", "_total"))
