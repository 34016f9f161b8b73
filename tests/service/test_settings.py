from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.cli import main
from service.cli.examining_services import api_url
from service.settings import Settings, settings, unknown_variables


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


@pytest.mark.parametrize(
    "storage",
    [
        "s3://KEY:abc/def@bucket/p",
        "s3://KEY:abcdef@bucket",
        "gs://b/p?access_token=abcdef",
        "abfs://c@account.dfs.core.windows.net/p?client_secret=abcdef",
    ],
)
def test_the_storages_uri_has_no_credentials(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.setenv("SAMSTUDY_STORAGE", storage)
    with pytest.raises(ValidationError, match=r"must not contain credentials.*AWS_SECRET_ACCESS_KEY") as caught:
        Settings()
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "storage",
    [
        "s3://b/p?endpoint_override=minio:9000&scheme=http&region=us-east-1&allow_delayed_open=true",
        "gs://anonymous@bucket/p",
        "abfs://container@account.dfs.core.windows.net/p",
        "file:///data/a:b@c",
        "/data",
    ],
)
def test_a_storage_without_credentials_is_taken(storage: str) -> None:
    assert Settings(storage=storage).storage_uri == storage


@pytest.mark.parametrize("proxies", ["192.0.2.1", "192.0.2.1, 2001:db8::/32,127.0.0.1", ""])
def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, proxies: str) -> None:
    monkeypatch.setenv("SAMSTUDY_TRUSTED_PROXIES", proxies)
    assert Settings().trusted_proxies == proxies


@pytest.mark.parametrize("proxies", ["*", "proxy.example", "192.0.2.1/24", "192.0.2.1,,192.0.2.2"])
def test_what_is_no_address_of_a_proxy_is_refused(monkeypatch: pytest.MonkeyPatch, proxies: str) -> None:
    monkeypatch.setenv("SAMSTUDY_TRUSTED_PROXIES", proxies)
    with pytest.raises(ValidationError, match="must be addresses or networks"):
        Settings()


@pytest.mark.parametrize("name", ["LEASE_S", "STARTUP_LEASE_S"])
def test_no_lease_is_longer_than_the_longest(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"SAMSTUDY_{name}", "600.1")
    with pytest.raises(ValidationError, match="600"):
        Settings()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:s3cret@mlflow.test:5000/at/x?y=1#z", "http://mlflow.test:5000/at/x?y=1#z"),
        ("https://token@mlflow.test", "https://mlflow.test"),
        ("https://me@corp:p@ss@mlflow.test", "https://mlflow.test"),
        ("https://u:pa/ss@mlflow.test/x", "https://mlflow.test/x"),
        ("https://u:pa?s#s@[2001:db8::1]:80/x", "https://[2001:db8::1]:80/x"),
        ("http://mlflow.test:5000/of/@team?who=a@b", "http://mlflow.test:5000/of/@team?who=a@b"),
        ("http://[::1]:5000/@team", "http://[::1]:5000/@team"),
        ("http://mlflow.test/a:b@c", "http://mlflow.test/a:b@c"),
    ],
)
def test_addresses_that_others_are_shown_have_no_password_and_all_else(url: str, shown: str) -> None:
    assert Settings(mlflow_url=url).browser_mlflow_url == shown
    assert Settings(mlflow_public_url=url, mlflow_url="http://mlflow.test").browser_mlflow_url == shown
    assert Settings(url=url).api_url == shown
    assert Settings(mlflow_url=url).mlflow_url == url


@pytest.mark.parametrize(
    "name", ["database_url", "url", "public_url", "mlflow_url", "mlflow_public_url", "ray_jobs_url"]
)
@pytest.mark.parametrize("character", [" ", '"', "\\", "\n", "\u2003"])
def test_what_hides_the_end_of_a_password_is_escaped(name: str, character: str) -> None:
    with pytest.raises(ValidationError, match="must have no blank") as refused:
        Settings(**{name: f"postgresql+psycopg://u:s3{character}cret@h/db"})
    assert "cret" not in str(refused.value)


def test_blanks_that_hide_nothing_are_none_of_our_business() -> None:
    with_options = "postgresql+psycopg://u@h/db?options=-c search_path=sam"
    assert Settings(database_url=with_options).store_url == with_options
    assert Settings(mlflow_url=" http://mlflow.test\n").mlflow_url == "http://mlflow.test"
    with pytest.raises(ValidationError, match="must have no blank"):
        Settings(database_url="postgresql+psycopg://h/db?user=u&password=a b")


def test_the_path_of_a_database_file_may_have_a_blank() -> None:
    assert Settings(database_url="sqlite:////home/a b/x.db").store_url == "sqlite:////home/a b/x.db"


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:8321"), ("::1", "http://[::1]:8321")])
def test_the_address_of_its_own_can_be_asked(host: str, url: str) -> None:
    assert Settings(host=host).own_url == Settings(host=host).api_url == url
    assert api_url(Settings(host=host), None) == url


@pytest.mark.parametrize("name", ["heartbeat_s", "poll_s"])
def test_a_lease_that_nobody_could_renew_in_time_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"SAMSTUDY_{name.upper()}", "6")
    settings.cache_clear()
    assert main(["doctor", "--settings"]) == 2
    rule = "must be at most half of SAMSTUDY_LEASE_S, which is 10"
    assert capsys.readouterr().err == f"error: SAMSTUDY_{name.upper()}: {rule}\n"
    settings.cache_clear()
    assert Settings(lease_s=12, **{name: 6.0}).lease_s == 12
    with pytest.raises(ValidationError):  # and nothing else of a lease that is none itself
        Settings(lease_s=-1, **{name: 5.0})


def test_variables_that_nobody_reads_are_named_with_those_that_may_be_meant() -> None:
    environment = dict.fromkeys(
        ("SAMSTUDY_PORT", "SAMSTUDY_DATA_DIR", "SAMSTUDY_RAY_AUTH_TOKEN", "SAMSTUDY_PROT", "PATH"), ""
    )
    assert unknown_variables(environment) == {
        "SAMSTUDY_RAY_AUTH_TOKEN": "RAY_AUTH_TOKEN",
        "SAMSTUDY_PROT": "SAMSTUDY_PORT",
    }
