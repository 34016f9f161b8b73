"""POST /studies: what is accepted, what is refused and how, and that nothing is made twice."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.spec import parse_spec
from tests.service.api.stores import on_sqlite


def fields(answer: Any) -> list[str]:
    return [error["field"] for error in answer.json()["errors"]]


def number_of_studies(api: TestClient) -> int:
    return len(api.get("studies").json()["studies"])


def test_an_accepted_study_waits_as_queued_where_location_says(api: TestClient, a_spec: dict[str, Any]) -> None:
    answer = api.post("studies", json=a_spec)
    assert answer.status_code == 201
    study = answer.json()
    assert (study["state"], study["name"], study["labels"]) == ("QUEUED", a_spec["name"], {"team": "vision"})
    assert answer.headers["Location"] == f"/api/v1/studies/{study['id']}"
    assert api.get(answer.headers["Location"].removeprefix("/api/v1/")).json()["id"] == study["id"]


def test_the_stored_spec_is_the_accepted_one_with_its_defaults(api: TestClient, a_spec: dict[str, Any]) -> None:
    assert api.post("studies", json=a_spec).json()["spec"] == parse_spec(a_spec).to_mapping()


@on_sqlite
def test_every_problem_of_a_spec_comes_at_once_with_its_path(api: TestClient, a_spec: dict[str, Any]) -> None:
    wrong = {
        **a_spec,
        "name": 3,
        "search_space": {"rho": {"type": "float", "low": 0.5, "high": 0.1}},
        "objective": {"metric": "val_acuracy", "mode": "most"},
        "budgte": {},
    }
    answer = api.post("studies", json=wrong)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "invalid_spec"
    assert {"name", "objective.mode", "budgte"} <= set(fields(answer))
    assert any(field.startswith("search_space.rho") for field in fields(answer))
    assert number_of_studies(api) == 0


@on_sqlite
@pytest.mark.parametrize("body", ["[]", "null", "3", '"text"'])
def test_a_body_that_is_no_mapping_is_an_invalid_spec(api: TestClient, body: str) -> None:
    answer = api.post("studies", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
    assert fields(answer) == ["spec"]


@on_sqlite
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_named_by_their_path(api: TestClient, number: str) -> None:
    body = '{"name": "x", "search_space": "paper_lambda_rho", "objective": {"metric": "val_accuracy", "mode": "max", '
    answer = api.post("studies", content=f'{body}"target": {number}}}}}', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert fields(answer) == ["objective.target"]


@on_sqlite
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "line 1, column 1"),
        (b'{"name": ', "line 1, column 10"),
        (b'{"name": "a",\n "name": "b"}', "the key 'name' is there twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
        (b'{"name": "\xff"}', "UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"1" * 5_000, "digits"),
    ],
)
def test_a_body_that_is_not_json_is_400(api: TestClient, body: bytes, said: str) -> None:
    answer = api.post("studies", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")
    assert said in answer.json()["detail"]


def test_half_of_a_surrogate_pair_is_refused_and_can_be_answered(api: TestClient) -> None:
    answer = api.post("studies", content=b'{"name": "\\ud800"}', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "name" in fields(answer)


def test_a_body_above_one_mebibyte_is_413(api: TestClient, a_spec: dict[str, Any]) -> None:
    answer = api.post("studies", json={**a_spec, "description": "x" * 2**20})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@on_sqlite
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "application/yaml", ""])
def test_another_content_type_is_415(api: TestClient, a_spec: dict[str, Any], content_type: str) -> None:
    answer = api.post("studies", content=json.dumps(a_spec), headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_json_may_say_its_charset(api: TestClient, a_spec: dict[str, Any]) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert api.post("studies", content=json.dumps(a_spec), headers=headers).status_code == 201


def test_validate_only_answers_the_plan_and_stores_nothing(api: TestClient, a_spec: dict[str, Any]) -> None:
    answer = api.post("studies", json=a_spec, params={"validate_only": "true"}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 200
    assert answer.json() == {"configurations": 20, "trials": 40, "confirming_trials": 0}
    assert number_of_studies(api) == 0


def test_the_plan_counts_the_trials_that_confirm(api: TestClient, a_spec: dict[str, Any]) -> None:
    spec = {**a_spec, "confirm": {"top_k": 3, "seeds": [7, 8]}}
    answer = api.post("studies", json=spec, params={"validate_only": "true"})
    assert answer.json() == {"configurations": 20, "trials": 46, "confirming_trials": 6}


def test_validate_only_refuses_what_would_be_refused(api: TestClient, a_spec: dict[str, Any]) -> None:
    answer = api.post("studies", json={**a_spec, "name": ""}, params={"validate_only": "true"})
    assert answer.status_code == 422
    assert fields(answer) == ["name"]


def test_the_same_key_and_body_is_the_same_study(api: TestClient, a_spec: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "once"}
    first = api.post("studies", json=a_spec, headers=headers)
    again = api.post("studies", json=a_spec, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert number_of_studies(api) == 1


def test_the_body_may_be_written_differently_as_long_as_it_says_the_same(
    api: TestClient, a_spec: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = api.post("studies", json=a_spec, headers=headers)
    rewritten = dict(reversed(a_spec.items())) | {"description": "", "algorithm": {"name": "grid"}}
    again = api.post("studies", json=rewritten, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_the_same_key_with_another_body_is_409(api: TestClient, a_spec: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "once"}
    api.post("studies", json=a_spec, headers=headers)
    answer = api.post("studies", json={**a_spec, "name": "another"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")
    assert number_of_studies(api) == 1


def test_a_refused_body_does_not_use_its_key_up(api: TestClient, a_spec: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "once"}
    assert api.post("studies", json={}, headers=headers).status_code == 422
    assert api.post("studies", json=a_spec, headers=headers).status_code == 201


def test_without_a_key_every_post_is_a_study(api: TestClient, a_spec: dict[str, Any]) -> None:
    assert api.post("studies", json=a_spec).json()["id"] != api.post("studies", json=a_spec).json()["id"]


def test_posts_with_one_key_at_the_same_time_make_one_study(api: TestClient, a_spec: dict[str, Any]) -> None:
    def post(_: int) -> tuple[int, str]:
        answer = api.post("studies", json=a_spec, headers={"Idempotency-Key": "once"})
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert sorted(status for status, _ in answers) == [200] * 15 + [201]
    assert len({study_id for _, study_id in answers}) == 1


@on_sqlite
@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "ümlaut".encode("latin-1")])
def test_a_key_has_1_to_255_printable_characters(api: TestClient, a_spec: dict[str, Any], key: str | bytes) -> None:
    answer = api.post("studies", json=a_spec, headers={"Idempotency-Key": key})  # type: ignore[dict-item]
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [field.lower() for field in fields(answer)] == ["idempotency-key"]
    assert number_of_studies(api) == 0
