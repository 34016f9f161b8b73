"""Query parameters that a route does not have are refused, with the one that may have been meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from tests.service.api.known_routes import SPEC, routes_of
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

pytestmark = on_sqlite


def test_a_misspelt_parameter_changes_nothing_and_is_named(api: TestClient) -> None:
    answer = api.post("studies?validateonly=true", json=SPEC)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"] == [
        {"field": "validateonly", "message": "unknown parameter 'validateonly'; did you mean 'validate_only'?"}
    ]
    assert api.get("studies").json()["studies"] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("surface?z=lr", "unknown parameter 'z'; those there are: metric, panel, x, y"),
        ("export?table_format=parquet", "unknown parameter 'table_format'; did you mean 'format'?"),
        ("best?x=1", "unknown parameter 'x'; there are none"),
        ("?a=1&b=2", "unknown parameter 'a'; there are none; unknown parameter 'b'; there are none"),
        ("trials?state=RUNNING&stat=x", "unknown parameter 'stat'; did you mean 'state'?"),
        ("?%0D%0Ax=1", r"unknown parameter '\r\nx'; there are none"),
    ],
)
def test_a_parameter_of_another_route_is_refused(path: str, words: str, api: TestClient, life: Life) -> None:
    study = life.create()
    answer = api.get(f"studies/{study.id}{'' if path.startswith('?') else '/'}{path}")
    assert (answer.status_code, answer.json()["detail"]) == (422, words)


def test_every_route_refuses_what_it_does_not_know(api: TestClient) -> None:
    api.base_url = api.base_url.join("/")
    document = api.get("openapi.json").json()
    ids = dict.fromkeys(
        ("study_id", "trial_id", "configuration_id", "webhook_id", "key_id", "name", "other_id"), "nowhere"
    )
    for route in routes_of(document):
        request = route.request(ids)
        answer = api.request(**{**request, "params": {**request["params"], "surely_unknown": "1"}})
        if not route.is_open:
            assert answer.status_code == 422, (route.name, answer.text)
            assert "surely_unknown" in answer.text, route.name
