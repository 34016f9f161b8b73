from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from service.access import NewKey, Role
from service.api.app import create_app
from service.api.lookups import Lookups
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyStore
from service.webhook import MAX_PER_OWNER
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life

URL = "https://nowhere.invalid/hook"  # a name that never resolves


def create(api: TestClient, **body: Any) -> Any:
    return api.post("webhooks", json={"url": URL, **body})


def test_a_webhook_is_made_and_its_secret_shown_this_once(api: TestClient) -> None:
    answer = create(api, states=["SUCCEEDED", "FAILED"])
    assert answer.status_code == 201
    made = answer.json()
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert (made["url"], made["states"], made["owner"]) == (URL, ["SUCCEEDED", "FAILED"], "local")
    listed, shown = api.get("webhooks"), api.get(f"webhooks/{made['id']}")
    assert listed.json() == {"webhooks": [made]}
    assert shown.json() == {**made, "deliveries": []}
    assert secret not in listed.text + shown.text


def test_a_webhook_shows_what_is_to_be_sent_to_it(api: TestClient, life: Life) -> None:
    made = create(api).json()
    study = life.create()
    (delivery,) = api.get(f"webhooks/{made['id']}").json()["deliveries"]
    assert (delivery["study_id"], delivery["study_state"], delivery["state"]) == (study.id, "QUEUED", "PENDING")
    assert (delivery["attempts"], delivery["error"], delivery["delivered_at"]) == (0, None, None)
    assert delivery["message_id"].startswith("msg_")


def test_a_deleted_webhook_is_gone(api: TestClient) -> None:
    made = create(api).json()
    answer = api.delete(f"webhooks/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    for again in (api.get(f"webhooks/{made['id']}"), api.delete(f"webhooks/{made['id']}")):
        assert (again.status_code, again.json()["code"]) == (404, "webhook_not_found")


@pytest.mark.parametrize("webhook_id", ["no", "%00", "..%2Fkeys", "x" * 81])
def test_an_id_that_no_webhook_has_is_a_clear_answer(api: TestClient, webhook_id: str) -> None:
    for answer in (api.get(f"webhooks/{webhook_id}"), api.delete(f"webhooks/{webhook_id}")):
        assert answer.status_code in (404, 422)
        assert answer.json()["code"] in ("webhook_not_found", "invalid_request", "not_found")


@on_sqlite
@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "https://ada:key@example.org/",
        "https://example.org/\r\nX: y",
        "https://example.org/" + "a" * 5_000,
    ],
)
def test_a_receiver_that_must_not_be_is_refused_with_its_field_and_nothing_is_stored(api: TestClient, url: str) -> None:
    answer = create(api, url=url)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == ["url"]
    assert api.get("webhooks").json() == {"webhooks": []}


@on_sqlite
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["url"]),
        ({"url": 5}, ["url"]),
        ({"url": None}, ["url"]),
        ({"url": URL, "states": ["SUCCEDED"]}, ["states[0]"]),
        ({"url": URL, "states": "FAILED"}, ["states"]),
        ({"url": URL, "states": ["FAILED"] * 50}, ["states"]),
        ({"url": URL, "secret": "mine"}, ["secret"]),
        ({"url": URL, "owner": "bob"}, ["owner"]),
        ([], ["body"]),
        ("url", ["body"]),
    ],
)
def test_a_body_that_is_no_webhook_is_refused_with_its_fields(api: TestClient, body: object, fields: list[str]) -> None:
    answer = api.post("webhooks", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == fields


def test_private_receivers_are_taken_where_the_settings_allow_them(database: Database, api_settings: Settings) -> None:
    settings = api_settings.model_copy(update={"allow_private_webhooks": True})
    with TestClient(create_app(database, settings)) as api:
        answer = api.post("/api/v1/webhooks", json={"url": "http://127.0.0.1:9/hook"})
    assert answer.status_code == 201


def test_one_webhook_too_many_is_refused(api: TestClient) -> None:
    for _ in range(MAX_PER_OWNER):
        assert create(api).status_code == 201
    answer = create(api)
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_webhooks")


class SlowNames:
    """A resolver that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def __call__(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        self.answers.wait(20)
        return ["1.1.1.1"]


@pytest.fixture
def slow_names() -> Iterator[SlowNames]:
    names = SlowNames()
    yield names
    names.answers.set()


class TestLookups:
    """What a receiver's name costs: never a request's thread, and two of the process' at most."""

    @pytest.fixture
    def client(self, database: Database, api_settings: Settings, slow_names: SlowNames) -> Iterator[TestClient]:
        app = create_app(database, api_settings)
        app.state.lookups = Lookups(slow_names, timeout_s=0.3)
        with TestClient(app, "http://testserver/api/v1/") as client:
            yield client

    @pytest.fixture
    def as_owner(self, database: Database) -> Callable[[str], dict[str, str]]:
        def header(owner: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {KeyStore(database).create(NewKey(owner=owner, role=Role.USER))[1].text}"}

        return header

    def test_names_that_do_not_resolve_keep_nobody_else_waiting(
        self, client: TestClient, as_owner: Callable[[str], dict[str, str]], slow_names: SlowNames
    ) -> None:
        ada, bob = as_owner("ada"), as_owner("bob")
        body = {"url": "http://slow.example/"}
        with ThreadPoolExecutor(40) as threads:
            posts = [threads.submit(client.post, "webhooks", json=body, headers=ada) for _ in range(40)]
            started = time.monotonic()
            for _ in range(3):
                assert client.get("studies", headers=bob).status_code == 200
            assert time.monotonic() - started < 2
            answers = [post.result(20) for post in posts]
        assert slow_names.asked == ["slow.example"]
        assert sorted(answer.status_code for answer in answers) == [201] + 39 * [429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["code"] == "too_many_requests"
        assert refused.headers["content-type"] == "application/problem+json"
        assert 1 <= int(refused.headers["retry-after"]) <= 60

    def test_two_at_a_time_are_looked_up_until_they_have_an_answer(
        self, client: TestClient, as_owner: Callable[[str], dict[str, str]], slow_names: SlowNames
    ) -> None:
        headers = [as_owner(owner) for owner in ("ada", "bob", "eve")]
        statuses = [
            client.post("webhooks", json={"url": f"http://{number}.example/"}, headers=header).status_code
            for number, header in enumerate(headers)
        ]
        assert (statuses, slow_names.asked) == ([201, 201, 429], ["0.example", "1.example"])
        slow_names.answers.set()
        again = client.post("webhooks", json={"url": "http://2.example/"}, headers=headers[2])
        assert again.status_code == 201

    def test_who_has_no_room_for_another_costs_no_lookup(self, client: TestClient, slow_names: SlowNames) -> None:
        slow_names.answers.set()
        for _ in range(MAX_PER_OWNER):
            assert create(client).status_code == 201
        slow_names.asked.clear()
        assert create(client).status_code == 409
        assert slow_names.asked == []


def test_owners_see_and_delete_only_their_own_webhooks(api: TestClient, database: Database) -> None:
    keys = KeyStore(database)
    tokens = {
        (owner, role): keys.create(NewKey(owner=owner, role=role))[1].text
        for owner, role in (("ada", Role.USER), ("ada", Role.VIEWER), ("bob", Role.USER), ("root", Role.ADMIN))
    }

    def as_(owner: str, role: Role = Role.USER) -> dict[str, str]:
        return {"Authorization": f"Bearer {tokens[owner, role]}"}

    made = api.post("webhooks", json={"url": URL}, headers=as_("ada"))
    assert (made.status_code, made.json()["owner"]) == (201, "ada")
    path = f"webhooks/{made.json()['id']}"
    assert api.get(path, headers=as_("bob")).status_code == 404
    assert api.delete(path, headers=as_("bob")).status_code == 404
    assert api.get("webhooks", headers=as_("bob")).json() == {"webhooks": []}
    assert api.get(path, headers=as_("ada", Role.VIEWER)).status_code == 200
    assert api.post("webhooks", json={"url": URL}, headers=as_("ada", Role.VIEWER)).status_code == 403
    assert api.delete(path, headers=as_("ada", Role.VIEWER)).status_code == 403
    assert len(api.get("webhooks", headers=as_("root", Role.ADMIN)).json()["webhooks"]) == 1
    assert api.delete(path, headers=as_("ada")).status_code == 204


def test_the_secret_is_in_the_document_of_one_answer_alone(api: TestClient) -> None:
    schemas = api.get("http://testserver/openapi.json").json()["components"]["schemas"]
    assert [name for name, schema in schemas.items() if "secret" in schema.get("properties", {})] == ["CreatedWebhook"]
    assert set(schemas["NewWebhook"]["properties"]) == {"url", "states"}
