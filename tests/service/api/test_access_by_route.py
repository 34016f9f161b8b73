"""Every route of the OpenAPI document, asked for a study of one owner by everybody there is.

The rules hold for all of them, so that a route that is added and forgets about owners fails here, and so does one
whose parameters or body this module does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from service.access import LOCAL_OWNER, NewKey, Role
from service.api.app import PREFIX, create_app
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyStore
from service.trial_checkpoints import TrialCheckpoints
from tests.service.api.known_routes import SPEC, WEBHOOK_URL, Route, routes_of
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

pytestmark = on_sqlite
"""Access is decided above the store; that every store keeps to an owner's, tests/service/store says."""

OWNER = LOCAL_OWNER  # of what `life` makes
STRANGER = "mallory"
NAME, DESCRIPTION, LABEL = "a-name-of-the-owner", "a description of the owner", "a-label-of-the-owner"
ACCURACIES: dict[Any, tuple[float, ...]] = {(0.0, 0.1): (0.87654, 0.81234), (1.0, 0.1): (0.71234, 0.72345)}


class Place:
    """The application over a store, with a key of every kind and what the owner has in it."""

    def __init__(self, database: Database, settings: Settings, life: Life) -> None:
        self._life, self._storage_uri = life, settings.storage_uri
        self.app = create_app(database, settings.model_copy(update={"allow_private_webhooks": True}))
        keys = KeyStore(database)
        self.tokens: dict[str, str | None] = {"anonymous": None}
        for who, owner, role in (
            ("owner", OWNER, Role.USER),
            ("owner's viewer", OWNER, Role.VIEWER),
            ("stranger", STRANGER, Role.USER),
            ("stranger's viewer", STRANGER, Role.VIEWER),
            ("admin", "root", Role.ADMIN),
        ):
            self.tokens[who] = keys.create(NewKey(owner=owner, role=role))[1].text
        self._keys = keys
        self.clients = {who: self._client(token) for who, token in self.tokens.items()}
        self.document: dict[str, Any] = self.clients["anonymous"].get("/openapi.json").json()
        self.routes = routes_of(self.document)
        self.other_id = life.finished({(0.0, 0.1): (0.5, 0.6)}).id

    def _client(self, token: str | None) -> TestClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return TestClient(self.app, raise_server_exceptions=False, headers=headers)

    def new_ids(self) -> dict[str, str]:
        """What path and query parameters name: all of it the owner's, and just made."""
        study = self._life.finished(ACCURACIES, name=NAME, description=DESCRIPTION, labels={"k": LABEL})
        owner = self.clients["owner"]
        trials = owner.get(f"{PREFIX}/studies/{study.id}/trials").json()["trials"]
        TrialCheckpoints(self._storage_uri, study.id, trials[0]["id"]).save(3, LABEL.encode())
        webhook = owner.post(f"{PREFIX}/webhooks", json={"url": WEBHOOK_URL}).json()
        return {
            "study_id": study.id,
            "configuration_id": trials[0]["configuration_id"],
            "trial_id": trials[0]["id"],
            "webhook_id": webhook["id"],
            "key_id": self._keys.create(NewKey(owner=OWNER, role=Role.VIEWER, name=NAME))[0].id,
            "name": "paper_lambda_rho",
            "other_id": self.other_id,
        }

    def ask(self, who: str, route: Route, ids: Mapping[str, str]) -> httpx.Response:
        return self.clients[who].request(**route.request(ids))


@pytest.fixture
def place(database: Database, api_settings: Settings, life: Life) -> Place:
    return Place(database, api_settings, life)


def assert_shows_nothing(answer: httpx.Response, ids: Mapping[str, str], asked: str) -> None:
    """Nothing of the owner's; what was asked for by its id may be said again."""
    secrets = [NAME, DESCRIPTION, LABEL, WEBHOOK_URL, *(str(a) for pair in ACCURACIES.values() for a in pair)]
    secrets += [value for name, value in ids.items() if name != "name" and value not in asked]
    shown = [secret for secret in secrets if secret in answer.text]
    assert not shown, f"{asked}: {shown} in {answer.text[:500]}"


def assert_reached(answer: httpx.Response, route: Route) -> None:
    """A study that has ended cannot be paused: such a refusal did reach the study, which is what matters here."""
    reached = answer.is_success or answer.status_code in (409, 412)
    assert reached, f"{route.name}: {answer.status_code} {answer.text[:500]}"


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def test_anonymous_is_401_everywhere_but_where_it_is_open(place: Place) -> None:
    ids = place.new_ids()
    for route in place.routes:
        answer = place.ask("anonymous", route, ids)
        if route.is_open:
            assert answer.status_code == 200, route.name
        else:
            assert code(answer) == (401, "unauthenticated"), route.name
        assert_shows_nothing(answer, ids, str(answer.request.url))


def test_only_these_routes_are_open(place: Place) -> None:
    assert {route.path for route in place.routes if route.is_open} == {"/healthz", "/readyz", "/metrics"}


@pytest.mark.parametrize("who", ["stranger", "stranger's viewer"])
def test_a_stranger_finds_nothing_of_anothers(place: Place, who: str) -> None:
    ids = place.new_ids()
    before = place.clients["owner"].get(f"{PREFIX}/studies/{ids['study_id']}").content
    for route in place.routes:
        answer = place.ask(who, route, ids)
        if route.is_open:
            assert answer.status_code == 200, route.name
        elif route.is_for_admins or (who == "stranger's viewer" and route.changes):
            assert code(answer) == (403, "forbidden"), route.name
        elif route.is_owned:
            assert answer.status_code == 404, f"{route.name}: {answer.status_code} {answer.text[:500]}"
            assert answer.json()["code"].endswith("_not_found"), route.name
        else:
            assert answer.status_code in (200, 201), f"{route.name}: {answer.status_code} {answer.text[:500]}"
        if not (route.changes and answer.is_success):  # an answer to a stranger's own POST has the stranger's own data
            assert_shows_nothing(answer, ids, str(answer.request.url))
    assert place.clients["owner"].get(f"{PREFIX}/studies/{ids['study_id']}").content == before


def test_the_owners_viewer_reads_everything_and_changes_nothing(place: Place) -> None:
    ids = place.new_ids()
    for route in place.routes:
        answer = place.ask("owner's viewer", route, ids)
        if route.is_open:
            assert answer.status_code == 200, route.name
        elif route.changes or route.is_for_admins:
            assert code(answer) == (403, "forbidden"), route.name
        else:
            assert_reached(answer, route)


@pytest.mark.parametrize("who", ["owner", "admin"])
def test_the_owner_and_an_admin_reach_everything(place: Place, who: str) -> None:
    ids = place.new_ids()
    for route in place.routes:
        answer = place.ask(who, route, ids)
        if who == "owner" and route.is_for_admins:
            assert code(answer) == (403, "forbidden"), route.name
        else:
            assert_reached(answer, route)
        if route.method == "delete":
            ids = place.new_ids()


def test_a_strangers_lists_are_empty_and_an_admins_are_whole(place: Place) -> None:
    ids = place.new_ids()
    stranger, admin = place.clients["stranger"], place.clients["admin"]
    assert stranger.get(f"{PREFIX}/studies").json()["studies"] == []
    assert stranger.get(f"{PREFIX}/webhooks").json()["webhooks"] == []
    assert stranger.get(f"{PREFIX}/studies", params={"name": NAME}).json()["studies"] == []
    assert ids["study_id"] in [study["id"] for study in admin.get(f"{PREFIX}/studies").json()["studies"]]
    assert [
        study["id"]
        for study in place.clients["owner's viewer"].get(f"{PREFIX}/studies", params={"name": NAME}).json()["studies"]
    ] == [ids["study_id"]]


def test_a_stranger_cannot_reach_a_trial_through_a_study_of_its_own(place: Place) -> None:
    ids = place.new_ids()
    own = place.clients["stranger"].post(f"{PREFIX}/studies", json=SPEC).json()["id"]
    for route in place.routes:
        if "study_id" in route.parameters and len(route.parameters) > 1 and not route.changes:
            answer = place.ask("stranger", route, {**ids, "study_id": own})
            assert answer.status_code == 404, route.name
            assert_shows_nothing(answer, ids, str(answer.request.url))


def test_a_strangers_clone_or_comparison_copies_nothing(place: Place) -> None:
    ids = place.new_ids()
    stranger = place.clients["stranger"]
    stranger.post(f"{PREFIX}/studies/{ids['study_id']}/clone", json={})
    assert stranger.get(f"{PREFIX}/studies").json()["studies"] == []
