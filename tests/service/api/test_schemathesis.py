"""Requests made up from the OpenAPI document, sound ones and broken ones: no 5xx, and nothing that it does not promise.

A part of them names a study that is there, and has a sound body, so that they come further than the first check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy, one_of
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from service.access import NewKey, Role
from service.api.app import PREFIX, create_app
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyStore
from tests.service.api.known_routes import BODIES, HEADERS, QUERY, WEBHOOK_URL

if TYPE_CHECKING:
    from tests.service.conftest import Life

FEW, MANY = 5, 400
"""Requests for each route, in `make test` and in `make soak`."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class Place:
    """The application, what is in it, and its document."""

    def __init__(self, database: Database, settings: Settings, life: Life) -> None:
        self.app = create_app(
            database, settings.model_copy(update={"requests_per_minute": 0, "allow_private_webhooks": True})
        )
        self.app.state.stopping.set()  # endless answers, such as events, end at once: they have tests of their own
        token = KeyStore(database).create(NewKey(owner="local", role=Role.ADMIN))[1].text
        self.headers = {"Authorization": f"Bearer {token}"}
        self.client = TestClient(self.app, headers=self.headers)
        self._life = life
        self._keys = KeyStore(database)
        self._other = self._finished()

    def _finished(self) -> str:
        return self._life.finished({(0.0, 0.1): (0.9, 0.8), (1.0, 0.1): (0.7, 0.6)}).id

    def document(self) -> dict[str, Any]:
        """Without `default`, which would make every status a documented one, and without keys to be guessed."""
        document: dict[str, Any] = self.client.get("/openapi.json").json()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("default", None)
                operation.pop("security", None)
        return document

    def queued(self) -> str:
        """The id of a study that waits."""
        return self._life.create().id

    def ids(self) -> dict[str, str]:
        """Of a study that has just ended, and of everything else that a path can name."""
        study_id = self._finished()
        for webhook in self.client.get(f"{PREFIX}/webhooks").json()["webhooks"]:  # there is a limit to them
            self.client.delete(f"{PREFIX}/webhooks/{webhook['id']}")
        trial = self.client.get(f"{PREFIX}/studies/{study_id}/trials").json()["trials"][0]
        return {
            "study_id": study_id,
            "configuration_id": trial["configuration_id"],
            "trial_id": trial["id"],
            "webhook_id": self.client.post(f"{PREFIX}/webhooks", json={"url": WEBHOOK_URL}).json()["id"],
            "key_id": self._keys.create(NewKey(owner="ada", role=Role.VIEWER))[0].id,
            "name": "paper_lambda_rho",
            "other_id": self._other,
        }


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


@pytest.fixture
def place(database: Database, api_settings: Settings, life: Life) -> Place:
    return Place(database, api_settings, life)


def requests_of(operation: APIOperation, ids: Mapping[str, str], queued: str) -> SearchStrategy[Case]:
    """Sound requests and broken ones, for what is there and for what is not."""
    name = f"{operation.method} {operation.path.removeprefix(PREFIX)}"
    there: dict[str, Any] = {}
    parameters = {item.name for item in operation.path_parameters}
    if parameters:
        there["path_parameters"] = {item: ids[item] for item in parameters}
    required = {item.name for item in operation.query if item.is_required}
    if required:
        there["query"] = {item: QUERY[item].format_map(ids) for item in required}
    if name in HEADERS:
        there["headers"] = HEADERS[name]
    made = [operation.as_strategy(mode, **there) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    if there:
        made.append(operation.as_strategy(GenerationMode.POSITIVE))
    if name in BODIES:
        made.append(operation.as_strategy(GenerationMode.POSITIVE, **there, body=BODIES[name]))
    if parameters == {"study_id"}:
        there["path_parameters"] = {"study_id": queued}
        body = {"body": BODIES[name]} if name in BODIES else {}
        made.append(operation.as_strategy(GenerationMode.POSITIVE, **there, **body))
    return one_of(made)


def check_every_route(place: Place, subtests: pytest.Subtests, *, examples: int, repeats: bool) -> None:
    """repeats: whether it makes up the same requests every time; else a failure prints what it was."""
    schema = schemathesis.openapi.from_dict(place.document())
    schema.app = place.app
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            derandomize=repeats,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=requests_of(operation, place.ids(), place.queued()))
        def check(case: Case) -> None:
            response = case.call(headers=place.headers)
            case.validate_response(response, checks=CHECKS)

        with subtests.test(operation.label):
            check()


def test_what_is_made_up_is_answered_as_the_document_says(place: Place, subtests: pytest.Subtests) -> None:
    check_every_route(place, subtests, examples=FEW, repeats=True)


@pytest.mark.soak
def test_so_is_what_is_made_up_for_long(place: Place, subtests: pytest.Subtests) -> None:
    check_every_route(place, subtests, examples=MANY, repeats=False)
