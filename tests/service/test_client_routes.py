"""The client's methods against the routes that the API documents."""

from __future__ import annotations

import inspect
import re

import pytest

from service.api.app import create_app
from service.client import client, connection
from service.settings import Settings
from service.store.database import Database
from tests.service.api.known_routes import routes_of

WITHOUT_A_METHOD = {"/keys", "/keys/{}", "/search-spaces/{}", "/healthz", "/metrics"}
"""What the client leaves out: an admin's work, one of what `search_spaces` lists, and what machines ask."""


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


def asked_by_the_client() -> set[str]:
    """The paths in its source, below the prefix, with {} for what is named by id."""
    source = inspect.getsource(client) + inspect.getsource(connection)
    source = re.sub(r"{study_path\(\w+\)}", "/studies/{}", re.sub(r"{quoted\(\w+\)}", "{}", source))
    return set(re.findall(r'"(?:{_PREFIX})?(/[^" ]+)"', source))


def test_every_route_has_a_method_of_the_client_or_is_known_to_have_none(
    database: Database, api_settings: Settings
) -> None:
    document = create_app(database, api_settings).openapi()
    routes = {re.sub(r"{\w+}", "{}", route.path) for route in routes_of(document)}
    assert routes - asked_by_the_client() == WITHOUT_A_METHOD
    assert asked_by_the_client() - routes == {"/api/v1"}
