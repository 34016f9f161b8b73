"""Whatever goes wrong is answered with a problem document, and nothing about our insides."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import logs
from service.store.database import Database
from service.store.studies import StudyStore
from tests.service.api.stores import on_sqlite


def test_a_problem_has_everything_that_rfc_9457_and_we_promise(api: TestClient) -> None:
    answer = api.get("studies/nowhere", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:samstudy:problem:study_not_found",
        "title": "No such study",
        "status": 404,
        "detail": "no study has the id 'nowhere'",
        "code": "study_not_found",
        "errors": [],
        "request_id": "mine-1",
    }


@on_sqlite
@pytest.mark.parametrize(
    ("query", "field", "ending"),
    [
        ("page_size=0", "page_size", "greater than or equal to 1, got '0'"),
        ("page_size=many", "page_size", ", got 'many'"),
        ("state=FOO", "state[0]", ", got 'FOO'"),
        ("order_by=x", "order_by", ", got 'x'"),
        ("label=x", "label[0]", "must be key:value, got 'x'"),
        ("created_after=2024-01-01", "created_after", ", got '2024-01-01'"),
        ("created_after=2024-13-01T00:00Z", "created_after", "range of 1-12, got '2024-13-01T00:00Z'"),
        ("created_after=0001-01-01T00:00%2B14:00", "created_after", ", got 0001-01-01T00:00:00+14:00"),
        ("archived=perhaps", "archived", ", got 'perhaps'"),
        ("name=a%00b", "name", r", got 'a\x00b'"),
        ("name=" + "a" * 5_000, "name", f"at most 200 characters, got '{'a' * 76}..."),
    ],
)
def test_a_bad_value_is_told_shortly_and_once(api: TestClient, query: str, field: str, ending: str) -> None:
    (error,) = api.get(f"studies?{query}").json()["errors"]
    assert error["field"] == field
    assert error["message"].endswith(ending)
    assert error["message"].count("got ") == 1


def test_so_is_one_in_a_path_or_beside_a_body(api: TestClient) -> None:
    (error,) = api.post("studies?validate_only=perhaps", json={}).json()["errors"]
    assert error["message"].endswith(", got 'perhaps'")
    (error,) = api.get("studies/" + "a" * 81).json()["errors"]
    assert error["message"].endswith(f"at most 80 characters, got '{'a' * 76}...")


def test_what_is_missing_is_not_said_to_be_something(api: TestClient) -> None:
    (error,) = api.get("/studies:compare").json()["errors"]
    assert error == {"field": "ids", "message": "Field required"}


def test_a_header_is_not_told_again(api: TestClient) -> None:
    answer = api.post("studies", json={}, headers={"Idempotency-Key": "secret" * 99})
    assert [error["field"] for error in answer.json()["errors"]] == ["idempotency-key"]
    assert answer.status_code == 422
    assert "secret" not in answer.text


def test_an_unknown_path_is_a_problem_too(api: TestClient) -> None:
    answer = api.get("nonsense")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_wrong_method_is_405_and_says_which_are_right(api: TestClient) -> None:
    answer = api.put("studies/x")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, PATCH, DELETE"


def test_an_unexpected_error_says_nothing_about_itself_but_in_the_log(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(StudyStore, "page", broken)
    caplog.handler.addFilter(logs.Fields({}))
    with caplog.at_level(logging.ERROR):
        answer = api.get("studies")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert problem["request_id"] == answer.headers["x-request-id"]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["request_id"] == problem["request_id"]
    assert "the secret inside" in caplog.text


def test_a_store_that_does_not_answer_is_503(api: TestClient, database: Database) -> None:
    with database.writing() as connection:
        for table in ("events", "results", "attempts", "trials", "configurations", "studies"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    answer = api.get("studies")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")


@on_sqlite
@pytest.mark.parametrize("given", ["", "x" * 65, "with blank", "a\x7fb"])
def test_a_request_id_that_could_spoil_a_log_is_replaced(api: TestClient, given: str) -> None:
    assert api.get("studies", headers={"X-Request-ID": given}).headers["x-request-id"] != given


def test_a_nul_in_an_id_is_refused_before_a_database_sees_it(api: TestClient) -> None:
    for path in ("studies/a%00b", "studies/a/trials/b%00c", "studies/a/configurations/b%00c"):
        assert api.get(path).status_code == 422
