"""Who may ask: open on loopback until the first key is made, and from then on nobody without a valid one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.access import KeyToken, NewKey, Role
from service.api import documentation
from service.api.access import Lock
from service.api.app import RefusedToStartError, check_keys, create_app
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyStore
from tests.service.api.stores import on_sqlite


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


@pytest.fixture
def token_for(keys: KeyStore) -> Callable[..., str]:
    """Makes a key and answers with its token."""
    return lambda owner="ada", role=Role.USER: keys.create(NewKey(owner=owner, role=role))[1].text


@pytest.fixture
def client_of(database: Database, api_settings: Settings) -> Callable[..., TestClient]:
    """An application that has not asked yet whether there are keys."""

    def make(token: str | None = None, **settings: Any) -> TestClient:
        app = create_app(database, api_settings.model_copy(update=settings))
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return TestClient(app, "http://testserver/api/v1/", raise_server_exceptions=False, headers=headers)

    return make


def codes(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


class TestWithoutKeys:
    @pytest.fixture
    def store_kind(self) -> str:
        return "sqlite"

    def test_loopback_is_open_and_acts_as_local(self, client_of: Callable[..., TestClient], a_spec: Any) -> None:
        client = client_of()
        assert client.post("studies", json=a_spec).json()["owner"] == "local"
        assert client.get("keys").json() == {"keys": []}

    def test_a_key_that_nobody_needs_does_no_harm(self, client_of: Callable[..., TestClient]) -> None:
        assert client_of("sam_nonsense").get("studies").status_code == 200

    @pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "", "api.example"])
    def test_elsewhere_nothing_is_open(self, client_of: Callable[..., TestClient], host: str) -> None:
        assert codes(client_of(host=host).get("studies")) == (401, "unauthenticated")

    def test_elsewhere_it_is_open_where_something_in_front_checks(self, client_of: Callable[..., TestClient]) -> None:
        assert client_of(host="0.0.0.0", allow_open_access=True).get("studies").status_code == 200

    @pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost", "[::1]:8321", "api.localhost:1", "testserver"])
    def test_it_may_be_asked_for_as_this_machine(self, client_of: Callable[..., TestClient], host: str) -> None:
        assert client_of().get("studies", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example:8321", "localhost.evil.example", "a.b:c", "[::1"]
    )
    def test_no_web_page_reaches_it_under_a_name_of_its_own(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], host: str
    ) -> None:
        named = {"Host": host}
        assert codes(client_of().get("studies", headers=named)) == (403, "forbidden")
        assert codes(client_of(allow_open_access=True).get("studies", headers=named)) == (403, "forbidden")
        assert client_of(token_for()).get("studies", headers=named).status_code == 200

    @pytest.mark.parametrize("host", ["sam.example", "SAM.example:443", "api.sam.example", "sam.example."])
    def test_a_name_of_the_proxy_in_front_is_its_own(self, client_of: Callable[..., TestClient], host: str) -> None:
        client = client_of(allow_open_access=True, allowed_hosts="sam.example:8443, API.sam.example,")
        assert client.get("studies", headers={"Host": host}).status_code == 200
        assert codes(client.get("studies", headers={"Host": "evil.sam.example"})) == (403, "forbidden")

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "something-new"},
            {"Origin": "https://evil.example"},
            {"Origin": "http://localhost:3000"},
            {"Origin": "http://localhost.evil.example:8321"},
            {"Origin": "null"},
            {"Origin": ""},
        ],
    )
    def test_a_page_of_another_site_changes_nothing(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: Any, headers: dict[str, str]
    ) -> None:
        foreign = {"Host": "localhost:8321", **headers}
        client = client_of()
        path = f"studies/{client.post('studies', json=a_spec).json()['id']}"
        for method, url in (
            ("POST", "studies"),
            ("POST", f"{path}/clone"),
            ("POST", f"{path}/cancel"),
            ("PATCH", path),
            ("DELETE", path),
        ):
            answer = client.request(method, url, headers=foreign)
            assert codes(answer) == (403, "forbidden"), (method, url)
            assert "web page of another site" in answer.json()["detail"]
        for method in ("GET", "HEAD", "OPTIONS"):  # a browser lets no other site read the answer
            assert client.request(method, path, headers=foreign).status_code in (200, 405)
        (study,) = client.get("studies").json()["studies"]
        assert study["state"] == "QUEUED"
        proxied = client_of(allow_open_access=True)
        assert codes(proxied.post(f"{path}/cancel", headers=foreign)) == (403, "forbidden")
        assert client_of(token_for()).post("studies", json=a_spec, headers=foreign).status_code == 201

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "http://localhost:8321", "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
            {"Origin": "http://localhost:8321"},
            {"Origin": "http://LOCALHOST:8321"},
            {"Host": "localhost:80", "Origin": "http://localhost"},
            {"Origin": "https://samstudy.example", "Sec-Fetch-Site": "same-origin"},
        ],
        ids=[
            "a program",
            "its own page",
            "the address bar",
            "an old browser",
            "in capitals",
            "the usual port",
            "behind a proxy",
        ],
    )
    def test_programs_and_its_own_pages_change_what_they_like(
        self, client_of: Callable[..., TestClient], a_spec: Any, headers: dict[str, str]
    ) -> None:
        answer = client_of().post("studies", json=a_spec, headers={"Host": "localhost:8321", **headers})
        assert answer.status_code == 201

    def test_elsewhere_the_api_does_not_start(self, keys: KeyStore) -> None:
        with pytest.raises(RefusedToStartError, match="samstudy keys create"):
            check_keys(Settings(host="0.0.0.0"), keys)
        check_keys(Settings(host="127.0.0.1"), keys)
        check_keys(Settings(host="0.0.0.0", allow_open_access=True), keys)

    def test_elsewhere_it_starts_with_a_key(self, keys: KeyStore, token_for: Callable[..., str]) -> None:
        token_for()
        check_keys(Settings(host="0.0.0.0"), keys)

    def test_elsewhere_it_does_not_start_where_nobody_could_get_in(
        self, keys: KeyStore, token_for: Callable[..., str]
    ) -> None:
        keys.revoke(token_for().split("_")[1])
        with pytest.raises(RefusedToStartError, match="no valid key"):
            check_keys(Settings(host="0.0.0.0"), keys)

    def test_elsewhere_it_does_not_start_while_nobody_can_tell(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path / 'without-tables.db'}")
        with pytest.raises(RefusedToStartError, match="cannot be told"):
            check_keys(Settings(host="0.0.0.0"), KeyStore(database))
        database.dispose()


@on_sqlite
class TestWithKeys:
    def test_the_right_one_opens(self, client_of: Callable[..., TestClient], token_for: Callable[..., str]) -> None:
        assert client_of(token_for()).get("studies").status_code == 200

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Basic {token}",
            "{token}",
            "Bearer {token}x",
            "Bearer {token} {token}",
            "Bearer sam_{id}_" + "0" * 64,
            "Bearer sam_aaaaaaaaaaaa_{secret}",
            "Bearer \xe9",
        ],
    )
    def test_none_and_every_wrong_one_are_the_same_401(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], header: str | None
    ) -> None:
        token = token_for()
        _, key_id, secret = token.split("_")
        said = {}
        if header is not None:
            said["Authorization"] = header.format(token=token, id=key_id, secret=secret).encode("latin-1")
        answer = client_of().get("studies", headers=said)  # type: ignore[arg-type]
        assert codes(answer) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert "SAMSTUDY_API_KEY" in answer.json()["detail"]
        assert secret not in answer.text
        assert key_id not in answer.text

    def test_an_unknown_id_and_a_wrong_secret_cannot_be_told_apart(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str]
    ) -> None:
        token = KeyToken.parse(token_for())
        assert token is not None
        answers = [
            client_of(wrong.text).get("studies", headers={"X-Request-ID": "same"})
            for wrong in (KeyToken(token.key_id, "0" * 64), KeyToken("aaaaaaaaaaaa", token.secret))
        ]
        assert answers[0].content == answers[1].content

    def test_the_scheme_is_written_as_one_likes(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str]
    ) -> None:
        token = token_for()
        assert client_of().get("studies", headers={"Authorization": f"bearer  {token}"}).status_code == 200

    def test_two_keys_at_once_are_none(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str]
    ) -> None:
        both = [("Authorization", f"Bearer {token_for()}")] * 2
        assert client_of().get("studies", headers=both).status_code == 401

    def test_a_key_opens_nothing_from_the_moment_it_is_revoked(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], keys: KeyStore
    ) -> None:
        token_for("bob")
        token = token_for()
        client = client_of(token)
        assert client.get("studies").status_code == 200
        keys.revoke(token.split("_")[1])
        assert codes(client.get("studies")) == (401, "unauthenticated")

    @pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0", "allow_open_access": True}])
    def test_nobody_gets_in_because_the_last_key_was_revoked(
        self,
        client_of: Callable[..., TestClient],
        token_for: Callable[..., str],
        keys: KeyStore,
        settings: dict[str, Any],
    ) -> None:
        token = token_for()
        keys.revoke(token.split("_")[1])
        assert codes(client_of(**settings).get("studies")) == (401, "unauthenticated")
        assert codes(client_of(token, **settings).get("studies")) == (401, "unauthenticated")
        assert client_of(token_for(), **settings).get("studies").status_code == 200

    @pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
    def test_probes_and_documentation_stay_open(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], host: str
    ) -> None:
        token_for()
        client = client_of(host=host)
        for path in ("/healthz", "/readyz", "/api/v1/healthz", "/api/v1/readyz", *documentation.PATHS):
            assert client.get(f"http://testserver{path}").status_code == 200, path

    @pytest.mark.parametrize("path", ["/metrics", "/api/v1/metrics"])
    def test_metrics_are_open_on_loopback_and_need_any_key_elsewhere(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], path: str
    ) -> None:
        viewer = token_for(role=Role.VIEWER)
        url = f"http://testserver{path}"
        assert client_of().get(url).status_code == 200
        assert client_of(host="0.0.0.0").get(url).status_code == 401
        assert client_of(viewer, host="0.0.0.0").get(url).status_code == 200

    @pytest.mark.parametrize("path", ["//healthz", "/healthz/", "/healthz/../api/v1/studies", "/HEALTHZ", "/docs/x"])
    def test_what_merely_looks_like_an_open_path_is_not_open(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], path: str
    ) -> None:
        token_for()
        assert client_of().get(f"http://testserver{path}").status_code == 401

    def test_a_path_that_is_not_there_needs_a_key_too(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str]
    ) -> None:
        token = token_for()
        assert client_of().get("nonsense").status_code == 401
        assert client_of(token).get("nonsense").status_code == 404

    def test_its_use_is_noted(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], keys: KeyStore
    ) -> None:
        client_of(token_for()).get("studies")
        assert keys.all()[0].last_used_at is not None

    def test_a_use_that_cannot_be_noted_harms_no_request(
        self,
        client_of: Callable[..., TestClient],
        token_for: Callable[..., str],
        database: Database,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        client = client_of(token_for())
        with database.writing() as connection:
            if not database.is_sqlite:
                pytest.skip("a trigger of SQLite's")
            connection.exec_driver_sql(
                "CREATE TRIGGER busy BEFORE UPDATE ON api_keys BEGIN SELECT RAISE(ROLLBACK, 'database is locked'); END"
            )
        with caplog.at_level(logging.ERROR):
            assert client.get("studies").status_code == 200
            assert client.get("studies").status_code == 200

    def test_a_store_that_is_away_is_503_and_not_open(
        self, client_of: Callable[..., TestClient], tmp_path: Path
    ) -> None:
        database = Database(f"sqlite:///{tmp_path / 'without-tables.db'}")
        client = TestClient(create_app(database, Settings(home=tmp_path)))
        assert codes(client.get("/api/v1/models")) == (503, "store_unavailable")
        database.dispose()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestLock:
    """Whether a key is needed is asked once a second at most."""

    def test_a_first_key_locks_and_the_last_ones_end_does_not_open(self, keys: KeyStore) -> None:
        clock = Clock()
        lock = Lock(keys, opens=True, clock=clock)
        assert not lock.is_locked()
        key, _ = keys.create(NewKey(owner="ada", role=Role.USER))
        clock.now += 0.9
        assert not lock.is_locked()
        clock.now += 0.2
        assert lock.is_locked()
        keys.revoke(key.id)
        clock.now += 1.1
        assert lock.is_locked()
        assert Lock(keys, opens=True).is_locked()

    def test_one_that_never_opens_stays_shut_without_asking(self, keys: KeyStore) -> None:
        assert Lock(keys, opens=False).is_locked()


class TestRoles:
    def test_a_viewer_reads_and_changes_nothing(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: dict[str, Any]
    ) -> None:
        viewer, user = client_of(token_for(role=Role.VIEWER)), client_of(token_for())
        study_id = user.post("studies", json=a_spec).json()["id"]
        assert viewer.get(f"studies/{study_id}").status_code == 200
        assert codes(viewer.post("studies", json=a_spec)) == (403, "forbidden")
        assert codes(viewer.post(f"studies/{study_id}/cancel")) == (403, "forbidden")
        assert codes(viewer.put("nonsense")) == (403, "forbidden")

    def test_an_admin_sees_all_owners_and_can_ask_for_one(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: dict[str, Any]
    ) -> None:
        for owner in ("ada", "bob"):
            client_of(token_for(owner)).post("studies", json=a_spec)
        admin = client_of(token_for("root", Role.ADMIN))
        owners = [study["owner"] for study in admin.get("studies").json()["studies"]]
        assert sorted(owners) == ["ada", "bob"]
        found = admin.get("studies", params={"owner": "bob"}).json()["studies"]
        assert [study["owner"] for study in found] == ["bob"]

    def test_asking_for_another_owner_finds_nothing(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: dict[str, Any]
    ) -> None:
        client_of(token_for("ada")).post("studies", json=a_spec)
        bob = client_of(token_for("bob"))
        assert bob.get("studies", params={"owner": "ada"}).json() == {"studies": [], "next_page_token": None}

    def test_a_page_token_of_another_owner_shows_nothing_of_theirs(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: dict[str, Any]
    ) -> None:
        ada = client_of(token_for("ada"))
        for _ in range(2):
            ada.post("studies", json=a_spec)
        token = ada.get("studies", params={"page_size": 1}).json()["next_page_token"]
        found = client_of(token_for("bob")).get("studies", params={"page_token": token}).json()
        assert found["studies"] == []

    def test_anothers_study_cannot_be_compared(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: dict[str, Any]
    ) -> None:
        of_ada = client_of(token_for("ada")).post("studies", json=a_spec).json()["id"]
        bob = client_of(token_for("bob"))
        of_bob = bob.post("studies", json=a_spec).json()["id"]
        for ids in (f"{of_bob},{of_ada}", f"{of_ada},{of_bob}"):
            assert codes(bob.get("http://testserver/api/v1/studies:compare", params={"ids": ids})) == (
                404,
                "study_not_found",
            )

    def test_anothers_idempotency_key_is_free(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], a_spec: dict[str, Any]
    ) -> None:
        ids = set()
        for owner in ("ada", "bob"):
            answer = client_of(token_for(owner)).post("studies", json=a_spec, headers={"Idempotency-Key": "k"})
            assert (answer.status_code, answer.json()["owner"]) == (201, owner)
            ids.add(answer.json()["id"])
        assert len(ids) == 2


class TestKeysOverRest:
    @pytest.fixture
    def admin(self, client_of: Callable[..., TestClient], token_for: Callable[..., str]) -> TestClient:
        return client_of(token_for("root", Role.ADMIN))

    def test_an_admin_makes_one_that_opens_lists_it_and_ends_it(
        self, admin: TestClient, client_of: Callable[..., TestClient]
    ) -> None:
        made = admin.post("keys", json={"owner": "ada", "role": "user", "name": "notebook"})
        assert made.status_code == 201
        key = made.json()
        ada = client_of(key.pop("token"))
        assert ada.get("studies").status_code == 200
        listed = {shown["id"]: shown for shown in admin.get("keys").json()["keys"]}
        assert {**listed[key["id"]], "last_used_at": None} == key
        assert admin.delete(f"keys/{key['id']}").json()["revoked_at"] is not None
        assert ada.get("studies").status_code == 401
        assert admin.delete(f"keys/{key['id']}").status_code == 200

    def test_no_list_has_a_secret_or_its_hash(self, admin: TestClient, keys: KeyStore) -> None:
        _, token = keys.create(NewKey(owner="ada", role=Role.USER))
        text = admin.get("keys").text
        assert token.secret not in text
        assert token.secret_hash not in text

    @pytest.mark.parametrize("role", [Role.USER, Role.VIEWER])
    def test_nobody_else_does(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str], role: Role
    ) -> None:
        client = client_of(token_for(role=role))
        assert codes(client.get("keys")) == (403, "forbidden")
        assert codes(client.post("keys", json={"owner": "ada", "role": "admin"})) == (403, "forbidden")
        assert codes(client.delete("keys/x")) == (403, "forbidden")

    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ({}, ["owner", "role"]),
            ({"owner": "a b", "role": "root"}, ["owner", "role"]),
            ({"owner": "ada", "role": "user", "secret": "mine"}, ["secret"]),
            ({"owner": 3, "role": "user"}, ["owner"]),
            ({"owner": "ada", "role": "user", "name": "\ud800"}, ["name"]),
            ([], ["body"]),
            (None, ["body"]),
        ],
    )
    def test_what_is_wrong_is_said_by_its_field(
        self, admin: TestClient, keys: KeyStore, body: object, fields: list[str]
    ) -> None:
        before = len(keys.all())
        answer = admin.post("keys", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert codes(answer) == (422, "invalid_request")
        assert sorted(problem["field"] for problem in answer.json()["errors"]) == fields
        assert len(keys.all()) == before

    def test_what_is_not_there_cannot_be_revoked(self, admin: TestClient) -> None:
        assert codes(admin.delete("keys/nowhere")) == (404, "key_not_found")


@on_sqlite
class TestRateLimit:
    def test_a_key_has_so_many_requests_a_minute(
        self, client_of: Callable[..., TestClient], token_for: Callable[..., str]
    ) -> None:
        client = client_of(token_for("ada"), requests_per_minute=3)
        assert [client.get("models").status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = client.get("models")
        assert codes(answer) == (429, "too_many_requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        other = {"Authorization": f"Bearer {token_for('ada')}"}
        assert client.get("models", headers=other).status_code == 200

    def test_without_keys_an_address_has(self, client_of: Callable[..., TestClient]) -> None:
        client = client_of(requests_per_minute=1)
        assert [client.get("models").status_code for _ in range(2)] == [200, 429]

    def test_probes_and_metrics_are_not_counted(self, client_of: Callable[..., TestClient]) -> None:
        client = client_of(requests_per_minute=1)
        for _ in range(3):
            for path in ("/healthz", "/readyz", "/metrics"):
                assert client.get(f"http://testserver{path}").status_code == 200
        assert client.get("models").status_code == 200

    def test_zero_is_no_limit(self, client_of: Callable[..., TestClient]) -> None:
        client = client_of(requests_per_minute=0)
        assert {client.get("models").status_code for _ in range(50)} == {200}


@on_sqlite
def test_openapi_says_where_a_key_is_needed(client_of: Callable[..., TestClient]) -> None:
    document = client_of().get("http://testserver/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in ("/healthz", "/readyz"):
                assert "security" not in operation, path
            elif path != "/metrics":
                assert operation["security"] == [{"key": []}], path
                assert operation["responses"].keys() >= {"401", "403", "429"}, path
