from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SAMSTUDY_{name.upper()}", raising=False)


def test_everything_has_a_default_under_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.store_url == f"sqlite:///{tmp_path}/samstudy.db"
    assert settings.storage_uri == f"file://{tmp_path}/storage"
    assert settings.browser_mlflow_url == settings.mlflow_url


def test_the_service_is_bound_to_loopback_unless_told_otherwise() -> None:
    assert Settings().host == "127.0.0.1"


def test_a_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSTUDY_DATABASE_URL", "postgresql+psycopg://db/samstudy")
    monkeypatch.setenv("SAMSTUDY_STORAGE", "s3://bucket/prefix")
    monkeypatch.setenv("SAMSTUDY_MLFLOW_PUBLIC_URL", "https://mlflow.example")
    monkeypatch.setenv("SAMSTUDY_LEASE_S", "2.5")
    settings = Settings()
    assert settings.store_url == "postgresql+psycopg://db/samstudy"
    assert settings.storage_uri == "s3://bucket/prefix"
    assert settings.browser_mlflow_url == "https://mlflow.example"
    assert settings.lease_s == 2.5


@pytest.mark.parametrize(("name", "value"), [("LEASE_S", "0"), ("PORT", "65536"), ("POLL_S", "-1"), ("PORT", "http")])
def test_a_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SAMSTUDY_{name}", value)
    with pytest.raises(ValidationError):
        Settings()
