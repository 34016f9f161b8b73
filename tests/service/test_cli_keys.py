"""`samstudy keys`, and what the other commands do where the service needs a key."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from service.access import KeyToken, NewKey, Role
from service.cli.app import main
from service.cli.doctor import examine
from service.cli.findings import Verdict
from service.client import Client
from service.embedded import embedded_service
from service.errors import TooManyRequestsError, UnauthenticatedError
from service.settings import Settings, settings
from service.store.database import Database
from service.store.keys import KeyStore
from tests.service.processes import DEADLINE_S

if TYPE_CHECKING:
    from tests.service.conftest import RunningApi


@pytest.fixture(autouse=True)
def environment(api_settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store of `database` is the one that the commands act on."""
    for name in [name for name in os.environ if name.startswith("SAMSTUDY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMSTUDY_HOME", str(api_settings.home))
    monkeypatch.setenv("SAMSTUDY_DATABASE_URL", api_settings.store_url)
    monkeypatch.setenv("COLUMNS", "160")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def locked(running_api: RunningApi, database: Database, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A service that needs a key: its address and a key for it."""
    monkeypatch.setenv("SAMSTUDY_URL", running_api.url)
    settings.cache_clear()
    _, token = KeyStore(database).create(NewKey(owner="ada", role=Role.USER))
    return running_api.url, token.text


class TestKeys:
    def test_a_key_is_shown_once_and_alone_on_stdout(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["keys", "create", "--owner", "ada", "--role", "user", "--name", "notebook"]) == 0
        said = capsys.readouterr()
        token = KeyToken.parse(said.out.strip())
        assert token is not None
        assert f"key {token.key_id} of ada, role user" in said.err
        assert token.secret not in said.err
        key = KeyStore(database).authenticate(token)
        assert key is not None
        assert (key.owner, key.role, key.name) == ("ada", Role.USER, "notebook")
        assert main(["keys", "list"]) == 0
        listed = capsys.readouterr().out
        assert token.key_id in listed
        assert "notebook" in listed
        assert token.secret not in listed

    def test_an_owner_that_is_none_is_said_with_the_rule(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["keys", "create", "--owner", "a b", "--role", "user"]) == 2
        assert "owner: must match ^[A-Za-z0-9][A-Za-z0-9._@+-]*$, got 'a b'" in capsys.readouterr().err

    def test_a_revoked_key_is_listed_as_such(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        key, token = KeyStore(database).create(NewKey(owner="ada", role=Role.USER))
        assert main(["keys", "revoke", key.id]) == 0
        said = capsys.readouterr()
        assert said.out == f"key {key.id} is revoked\n"
        assert "no valid key left" in said.err
        assert KeyStore(database).authenticate(token) is None

    def test_a_key_that_is_not_there_is_bad_input(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["keys", "revoke", "nowhere"]) == 2
        assert "no key has the id 'nowhere'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (["--owner", "a b", "--role", "user"], "owner"),
            (["--owner", "", "--role", "user"], "owner"),
            (["--owner", "ada", "--role", "user", "--name", "a\u202eb"], "name"),
        ],
    )
    def test_what_is_wrong_is_said_by_its_field(
        self, database: Database, arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["keys", "create", *arguments]) == 2
        assert f"  {field}: " in capsys.readouterr().err
        assert not KeyStore(database).any_valid()

    def test_an_unknown_role_is_bad_input(self) -> None:
        assert main(["keys", "create", "--owner", "ada", "--role", "root"]) == 2

    def test_no_keys_are_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["keys", "list"]) == 0
        assert "no keys" in capsys.readouterr().out

    def test_a_store_that_is_not_there_yet_is_said_with_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SAMSTUDY_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
        settings.cache_clear()
        for command in (["create", "--owner", "ada", "--role", "user"], ["list"]):
            assert main(["keys", *command]) == 1
            assert "none.db is not there yet: samstudy up, or samstudy migrate, makes it" in capsys.readouterr().err
        assert not (tmp_path / "none.db").exists()


class TestClient:
    def test_a_key_given_opens(self, locked: tuple[str, str]) -> None:
        url, token = locked
        with Client(url, api_key=token) as client:
            assert list(client.studies()) == []

    def test_a_key_of_the_environment_opens(self, locked: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        url, token = locked
        monkeypatch.setenv("SAMSTUDY_API_KEY", f" {token}\n")
        settings.cache_clear()
        with Client(url) as client:
            assert list(client.studies()) == []
        assert main(["list"]) == 0

    @pytest.mark.parametrize("api_key", ["", "sam_wrong"])
    def test_none_and_a_wrong_one_say_where_the_key_goes(self, locked: tuple[str, str], api_key: str) -> None:
        with (
            Client(locked[0], api_key=api_key) as client,
            pytest.raises(UnauthenticatedError, match="SAMSTUDY_API_KEY") as refused,
        ):
            list(client.studies())
        assert refused.value.status == 401

    @pytest.mark.parametrize("api_key", ["sam_é", "sam_a\r\nX-Evil: 1", "sam_\x00"])
    def test_what_cannot_be_a_key_is_refused_and_not_shown(self, api_key: str) -> None:
        with pytest.raises(UnauthenticatedError) as refused:
            Client("http://127.0.0.1:1", api_key=api_key)
        assert api_key not in str(refused.value)

    def test_an_event_stream_without_a_key_is_refused_at_once(self, locked: tuple[str, str]) -> None:
        with Client(locked[0]) as client, pytest.raises(UnauthenticatedError):
            list(client.events("study"))

    def test_one_that_asks_too_often_is_told_so_after_its_patience(
        self, running_api: RunningApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(_: httpx.Request) -> httpx.Response:
            problem = {"type": "x", "title": "Too many requests", "status": 429, "detail": "wait"}
            return httpx.Response(429, json={**problem, "code": "too_many_requests", "errors": []})

        with Client(running_api.url, patience_s=0.2) as client:
            monkeypatch.setattr(client._http, "_transport", httpx.MockTransport(answer))
            monkeypatch.setattr(client._http, "_mounts", {})
            with pytest.raises(TooManyRequestsError):
                list(client.studies())

    def test_the_key_is_in_no_text_about_the_client(self, locked: tuple[str, str]) -> None:
        url, token = locked
        with Client(url, api_key=token) as client:
            assert token not in repr(client.__dict__)
            assert token not in repr(client._http.headers)


class TestCommands:
    def test_without_a_key_they_say_what_to_set(
        self, locked: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["list"]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "SAMSTUDY_API_KEY" in said.err

    def test_doctor_says_what_to_set(self, locked: tuple[str, str]) -> None:
        (api,) = [finding for finding in examine(settings()) if finding.what == "API"]
        assert api.verdict is Verdict.WRONG
        assert "SAMSTUDY_API_KEY" in api.remedy

    def test_doctor_is_content_with_the_key_and_does_not_show_it(
        self, locked: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SAMSTUDY_API_KEY", locked[1])
        settings.cache_clear()
        (api,) = [finding for finding in examine(settings()) if finding.what == "API"]
        assert api.verdict is Verdict.WELL
        main(["doctor"])
        assert locked[1].split("_")[2] not in capsys.readouterr().out


def test_a_key_is_given_to_no_process_of_the_service() -> None:
    assert "SAMSTUDY_API_KEY" not in Settings(api_key="sam_x_y").to_environment()  # type: ignore[arg-type]


def test_the_embedded_service_comes_up_where_there_are_keys(api_settings: Settings, database: Database) -> None:
    _, token = KeyStore(database).create(NewKey(owner="ada", role=Role.ADMIN))
    with embedded_service(api_settings, log=print, stopping=threading.Event(), only=["api"]) as (addresses, _):
        with Client(addresses.api_url, api_key=token.text) as client:
            assert list(client.studies()) == []
        with Client(addresses.api_url) as client, pytest.raises(UnauthenticatedError):
            list(client.studies())


def test_secrets_are_in_no_log_and_no_table(
    api_settings: Settings, database: Database, unused_port: int, a_spec: dict[str, object], tmp_path: Path
) -> None:
    """The real process, asked with good keys, bad keys, and keys where they do not belong."""
    keys = KeyStore(database)
    _, good = keys.create(NewKey(owner="ada", role=Role.ADMIN))
    bad = KeyToken.new()
    url = f"http://127.0.0.1:{unused_port}"
    log = tmp_path / "api.log"
    with log.open("wb") as output:
        serving = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "api"],
            env={**os.environ, "SAMSTUDY_PORT": str(unused_port), "SAMSTUDY_API_KEY": good.text},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            with Client(url, api_key=good.text, patience_s=DEADLINE_S) as client:
                client.check_ready()
                study = client.submit(a_spec)
                client.cancel(study.id)
            for token in (good, bad):
                with httpx.Client(base_url=f"{url}/api/v1", trust_env=False) as asking:
                    bearer = {"Authorization": f"Bearer {token.text}"}
                    asking.get("/studies", headers=bearer)
                    asking.get(f"/studies/{study.id}/trials/x", headers=bearer)
                    asking.get("/studies", headers={"Authorization": f"Basic {token.text}"})
                    asking.post("/studies", headers={**bearer, "X-Request-ID": "mine"}, content=b"{")
            made = httpx.post(
                f"{url}/api/v1/keys",
                json={"owner": "bob", "role": "user"},
                headers={"Authorization": f"Bearer {good.text}"},
                trust_env=False,
            ).json()["token"]
        finally:
            serving.terminate()
            serving.wait(DEADLINE_S)
    secrets = [good.secret, bad.secret, made.split("_")[2]]
    with database.reading() as connection:
        stored = repr(
            [
                connection.exec_driver_sql(f"SELECT * FROM {table}").all()
                for (table,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").all()
            ]
        )
    assert study.id in stored
    for place, text in (("the log", log.read_text()), ("the store", stored)):
        assert [secret for secret in secrets if secret in text] == [], place
