"""docker-compose.yml and the Dockerfile against what the code really has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli.app import app
from service.settings import Settings
from service.supervision import Part

ROOT = Path(__file__).parent.parent


@pytest.fixture
def services() -> dict[str, Any]:
    document: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document["services"]


def test_every_variable_of_ours_in_the_compose_file_is_a_setting(services: dict[str, Any]) -> None:
    names = {name for service in services.values() for name in service.get("environment", {})}
    ours = {name.removeprefix("SAMSTUDY_").lower() for name in names if name.startswith("SAMSTUDY_")}
    assert ours
    assert ours <= Settings.model_fields.keys()


def test_every_command_of_ours_in_the_compose_file_exists(services: dict[str, Any]) -> None:
    commands = {service["command"][1] for service in services.values() if service.get("command", [""])[0] == "samstudy"}
    assert commands == {"migrate", "api", "controller"}
    assert commands <= {command.callback.__name__ for command in app.registered_commands if command.callback}


def test_no_password_is_an_argument_that_others_on_the_machine_can_read(services: dict[str, Any]) -> None:
    commands = [argument for service in services.values() for argument in service.get("command", [])]
    assert commands
    assert not [argument for argument in commands if "PASSWORD" in argument or "TOKEN" in argument]


def test_nobody_has_a_secret_that_it_does_not_need(services: dict[str, Any]) -> None:
    def told(name: str) -> str:
        return str(services[name]["environment"])

    assert "SAMSTUDY_DATABASE_URL" not in told("mlflow")
    assert "RAY_AUTH_TOKEN" not in told("mlflow")
    assert "POSTGRES_PASSWORD" not in told("ray-worker")
    assert "RAY_AUTH_TOKEN" not in told("api")
    assert list(services["migrate"]["environment"]) == ["SAMSTUDY_DATABASE_URL"]
    assert all("RAY_AUTH_TOKEN" in told(name) for name in ("controller", "ray-head"))
    assert all(name in told("ray-worker") for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"))
    assert all("SAMSTUDY_STORAGE" in told(name) for name in ("api", "controller", "ray-head"))


def test_no_log_grows_without_end(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert name == "buckets" or {"max-size", "max-file"} <= service["logging"]["options"].keys(), name


def test_only_loopback_is_published(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_nothing_is_open_without_a_key(services: dict[str, Any]) -> None:
    assert services["api"]["environment"]["SAMSTUDY_HOST"] == "0.0.0.0"
    assert "SAMSTUDY_ALLOW_OPEN_ACCESS" not in services["api"]["environment"]


def test_the_controller_has_the_time_to_give_up_its_lead(services: dict[str, Any]) -> None:
    """Less than 8 s, as tests/service/test_stopping.py has it."""
    assert services["controller"]["stop_grace_period"] == "20s"
    assert inspect.signature(Part).parameters["stop_deadline_s"].default == 20


def test_what_a_service_waits_for_is_there(services: dict[str, Any]) -> None:
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()


def test_the_image_copies_only_what_is_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert copied
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
