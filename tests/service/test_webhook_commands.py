"""Webhooks by the Python client and by `samstudy webhooks`, against a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.cli import main
from service.client import Client
from service.errors import InvalidRequestError, ServiceUnavailableError, WebhookNotFoundError
from service.settings import Settings, settings
from service.study import StudyState

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi

URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def api_settings(api_settings: Settings) -> Settings:
    return api_settings.model_copy(update={"allow_private_webhooks": True})


@pytest.fixture(autouse=True)
def environment(running_api: RunningApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("SAMSTUDY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAMSTUDY_URL", running_api.url)
    monkeypatch.setenv("COLUMNS", "160")
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_the_client_makes_shows_and_deletes_webhooks(life: Life) -> None:
    with Client() as client:
        made = client.create_webhook(URL, states=[StudyState.QUEUED])
        life.create()
        (listed,) = client.webhooks()
        shown = client.webhook(made.id)
        assert listed.model_dump() == made.model_dump(exclude={"secret"}) == shown.model_dump(exclude={"deliveries"})
        assert [delivery.study_state for delivery in shown.deliveries] == ["QUEUED"]
        client.delete_webhook(made.id)
        with pytest.raises(WebhookNotFoundError):
            client.webhook(made.id)
        with pytest.raises(InvalidRequestError, match="must begin with https"):
            client.create_webhook("ftp://example.org/")


def test_a_creation_that_nobody_answered_is_not_sent_a_second_time(running_api: RunningApi) -> None:
    running_api.stop()
    with Client(patience_s=60) as client, pytest.raises(ServiceUnavailableError):
        client.create_webhook(URL)
    running_api.start()


def test_the_command_shows_the_secret_alone_on_stdout_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webhooks", "create", URL, "--state", "SUCCEEDED", "--state", "FAILED"]) == 0
    made = capsys.readouterr()
    assert made.out.startswith("whsec_")
    assert len(made.out.split()) == 1
    assert made.out.strip() not in made.err
    assert main(["webhooks", "list"]) == 0
    listed = capsys.readouterr().out
    assert URL in listed
    assert "SUCCEEDED FAILED" in listed
    assert "whsec_" not in listed


def test_the_command_shows_what_went_wrong(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    with Client() as client:
        webhook = client.create_webhook(URL)
    assert main(["webhooks", "deliveries", webhook.id]) == 0
    assert "nothing was to be sent" in capsys.readouterr().out
    study = life.create()
    assert main(["webhooks", "deliveries", webhook.id]) == 0
    shown = capsys.readouterr().out
    assert study.id in shown
    assert "PENDING" in shown


def test_the_command_deletes(capsys: pytest.CaptureFixture[str]) -> None:
    with Client() as client:
        webhook = client.create_webhook(URL)
    assert main(["webhooks", "delete", webhook.id]) == 0
    assert main(["webhooks", "delete", webhook.id]) == 2
    assert f"no webhook has the id '{webhook.id}'" in capsys.readouterr().err
    assert main(["webhooks", "list"]) == 0
    assert "no webhooks" in capsys.readouterr().out


def test_a_url_that_must_not_be_is_said_with_its_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webhooks", "create", "http://ada:key@example.org/"]) == 2
    assert "url: must not contain a user name or password" in capsys.readouterr().err
