"""GET /studies: filters and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from tests.service.conftest import Life


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [study["id"] for study in answer.json()["studies"]]


def test_the_newest_comes_first_with_its_trials_counted(api: TestClient, life: Life) -> None:
    older = life.create()
    newer = life.finished({(0.0, 0.1): (0.9, 0.8)})
    answer = api.get("studies")
    assert ids(answer) == [newer.id, older.id]
    assert [study["trial_counts"] for study in answer.json()["studies"]] == [{"SUCCEEDED": 2}, {}]


def test_filters_must_all_match(api: TestClient, life: Life) -> None:
    plain = life.create(labels={"team": "vision"})
    both = life.create(labels={"team": "vision", "kind": "a:b"})
    other = life.create(labels={"team": "text"}, name="other")
    life.start(other)
    assert ids(api.get("studies", params={"label": "team:vision"})) == [both.id, plain.id]
    assert ids(api.get("studies", params={"label": ["team:vision", "kind:a:b"]})) == [both.id]
    assert ids(api.get("studies", params={"name": "other"})) == [other.id]
    assert ids(api.get("studies", params={"state": "RUNNING"})) == [other.id]
    assert ids(api.get("studies", params={"state": ["RUNNING", "QUEUED"]})) == [other.id, both.id, plain.id]
    assert ids(api.get("studies", params={"state": "RUNNING", "label": "team:vision"})) == []
    assert ids(api.get("studies", params={"label": 'it\'s."odd"[0]\\:x'})) == []


def test_two_values_of_one_label_match_no_study(api: TestClient, life: Life) -> None:
    study = life.create(labels={"team": "x1"})
    assert ids(api.get("studies", params={"label": ["team:nope", "team:x1"]})) == []
    assert ids(api.get("studies", params={"label": ["team:x1", "team:nope"]})) == []
    assert ids(api.get("studies", params={"label": ["team:x1", "team:x1"]})) == [study.id]


def test_the_order_of_labels_says_nothing_to_a_token(api: TestClient, life: Life) -> None:
    for _ in range(2):
        life.create(labels={"a": "1", "b": "2"})
    first = api.get("studies", params={"label": ["a:1", "b:2"], "page_size": 1}).json()
    again = {"label": ["b:2", "a:1", "b:2"], "page_size": 1, "page_token": first["next_page_token"]}
    assert len(ids(api.get("studies", params=again))) == 1


@pytest.mark.parametrize(
    "moment", ["2026-01-31T12:00:00Z", "2026-01-31 12:00+0000", "2026-01-31T13:00:00.000001+01:00"]
)
def test_a_moment_is_a_date_and_a_time_with_their_zone(api: TestClient, life: Life, moment: str) -> None:
    study = life.create()
    assert ids(api.get("studies", params={"created_after": moment})) == [study.id]
    assert ids(api.get("studies", params={"created_before": moment})) == []


@pytest.mark.parametrize("moment", ["2024", "1767225600", "1.5", "-1", "2024-01-01", "2024-01-01T00:00:00", "٢٠٢٤", ""])
def test_nothing_else_is_a_moment(api: TestClient, moment: str) -> None:
    answer = api.get("studies", params={"created_after": moment})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {
            "field": "created_after",
            "message": f"must be an ISO 8601 date and time with its zone, such as 2026-01-31T12:00:00Z, got {moment!r}",
        }
    ]


def test_pages_stay_stable_while_studies_are_added(api: TestClient, life: Life) -> None:
    there = [life.create().id for _ in range(7)]
    seen, token = [], None
    while True:
        answer = api.get("studies", params={"page_size": 3, **({"page_token": token} if token else {})})
        seen += ids(answer)
        token = answer.json()["next_page_token"]
        if token is None:
            break
        life.create()
    assert seen == there[::-1]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"page_size": 0}, "page_size"),
        ({"page_size": 201}, "page_size"),
        ({"page_size": "many"}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "WzEsMl0="}, "page_token"),
        ({"state": "DONE"}, "state[0]"),
        ({"label": "team"}, "label[0]"),
        ({"label": ":x"}, "label[0]"),
        ({"label": ["a:b", "a:b\x00"]}, "label[1]"),
        ({"label": [f"a{number}:b" for number in range(33)]}, "label"),
        ({"state": ["QUEUED"] * 8}, "state"),
        ({"name": "a\x00b"}, "name"),
    ],
)
def test_what_cannot_be_read_is_422_and_named(api: TestClient, parameters: dict[str, Any], field: str) -> None:
    answer = api.get("studies", params=parameters)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [field]
