"""What may happen to a request on any route is in the OpenAPI document of each, and not only under `default`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.api.requests import MAX_BODY_BYTES
from service.store import tables
from service.store.database import Database
from tests.service.api.known_routes import Route, routes_of

if TYPE_CHECKING:
    from tests.service.conftest import Life

IDS = dict.fromkeys(("study_id", "other_id", "configuration_id", "trial_id", "webhook_id", "key_id"), "nowhere")
IDS["name"] = "paper_lambda_rho"


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


class Document:
    """The OpenAPI document, and how its routes are asked."""

    def __init__(self, client: TestClient) -> None:
        client.base_url = client.base_url.join("/")
        self._client = client
        self._paths = client.get("/openapi.json").json()["paths"]
        self.routes = routes_of({"paths": self._paths})

    def ask(self, route: Route, ids: Mapping[str, str] = IDS, **changes: Any) -> tuple[int, str, dict[str, str]]:
        """Status and code of the answer, and what the document says about the statuses of the route."""
        request = route.request(ids)
        if "content" in changes:
            request.pop("json", None)
        answer = self._client.request(**{**request, **changes})
        is_problem = answer.headers["content-type"] == "application/problem+json"
        template = route.path if route.is_open else f"/api/v1{route.path}"
        said = self._paths[template][route.method]["responses"]
        code = answer.json()["code"] if is_problem else ""
        return answer.status_code, code, {status: told["description"] for status, told in said.items()}


def test_a_body_that_is_too_large(api: TestClient, subtests: pytest.Subtests) -> None:
    document = Document(api)
    for route in document.routes:
        with subtests.test(route.name):
            status, code, said = document.ask(route, content=(MAX_BODY_BYTES + 1) * b"x")
            assert (status, code) == (413, "body_too_large")
            assert code in said["413"]


def test_a_study_at_another_version(api: TestClient, life: Life, subtests: pytest.Subtests) -> None:
    """Whatever changes a study that is there looks at If-Match."""
    document, study_id = Document(api), life.create().id
    for route in document.routes:
        makes_another = route.name == "post /studies/{study_id}/clone"
        if "study_id" not in route.parameters or not route.changes or makes_another:
            continue
        with subtests.test(route.name):
            status, code, said = document.ask(route, {**IDS, "study_id": study_id}, headers={"If-Match": '"77"'})
            assert (status, code) == (412, "version_conflict")
            assert code in said["412"]


@pytest.mark.parametrize("keys_stay", [False, True])
def test_a_store_that_is_away(api: TestClient, database: Database, subtests: pytest.Subtests, keys_stay: bool) -> None:
    document = Document(api)
    with database.writing() as connection:
        for table in reversed(tables.metadata.sorted_tables):
            if not (keys_stay and table is tables.api_keys):
                table.drop(connection)
    for route in document.routes:
        with subtests.test(route.name):
            status, code, said = document.ask(route)
            assert str(status) in said
            assert code in said[str(status)]
            assert status == 503 or keys_stay or route.is_open
