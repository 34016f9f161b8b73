"""A line for every request: what was asked of which route, by whom, how it ended and how long it took."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.access import NewKey, Role
from service.api.app import create_app
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyStore
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

pytestmark = on_sqlite
"""The log knows of no store."""


@pytest.fixture(autouse=True)
def _at_level_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def of_access(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(line) for line in caplog.records if line.name == "service.api.access_log"]


def test_a_request_is_a_line_with_its_route_and_not_its_url(
    api: TestClient, life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    study = life.create()
    answer = api.get(f"studies/{study.id}/trials?configuration_id=s3cret", headers={"X-Request-ID": "r-1"})
    assert answer.status_code == 200
    (line,) = of_access(caplog)
    names = ("method", "route", "status", "owner", "key_id", "study_id")
    assert [line[name] for name in names] == ["GET", "/api/v1/studies/{study_id}/trials", 200, "local", None, study.id]
    assert 0 < line["duration_ms"] < 60_000
    assert "s3cret" not in str(line)


def test_an_id_that_is_none_does_not_fill_the_log(api: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    assert api.get(f"studies/{60_000 * 'A'}").status_code == 422
    (line,) = of_access(caplog)
    assert line["study_id"] == 80 * "A"


def test_the_line_names_the_key_and_never_has_it(
    database: Database, api_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    key, token = KeyStore(database).create(NewKey(owner="ada", role=Role.USER))
    client = TestClient(create_app(database, api_settings))
    client.get("/api/v1/studies", headers={"Authorization": f"Bearer {token.text}"})
    client.get("/api/v1/studies", headers={"Authorization": f"Bearer {token.text[:-1]}"})
    allowed, refused = of_access(caplog)
    assert (allowed["status"], allowed["owner"], allowed["key_id"]) == (200, "ada", key.id)
    assert (refused["status"], refused["owner"], refused["key_id"]) == (401, None, None)
    assert token.secret[:-1] not in str([vars(line) for line in caplog.records])


def test_probes_are_no_lines_unless_they_fail(
    database: Database, api_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(create_app(database, api_settings))
    for path in ("/healthz", "/readyz", "/metrics", "/api/v1/healthz"):
        assert client.get(path).status_code == 200
    assert of_access(caplog) == []
    assert client.post("/healthz").status_code == 405
    assert [line["status"] for line in of_access(caplog)] == [405]


def test_a_made_up_method_is_another_one(
    database: Database, api_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(create_app(database, api_settings))
    for number in range(3):
        client.request(f"FROB{number}", "/x")
    assert [line["method"] for line in of_access(caplog)] == 3 * ["other"]
    assert "FROB" not in str([vars(line) for line in caplog.records if line.name.startswith("service")])


def test_a_defect_is_logged_with_the_request_id_that_its_answer_has(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("service.store.studies.StudyStore.page", fail)
    answer = api.get("studies", headers={"X-Request-ID": "r-2"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "r-2")
    (line,) = of_access(caplog)
    assert line["status"] == 500
    assert any(record.exc_info and "failed" in record.getMessage() for record in caplog.records)
