"""Health, metrics, the OpenAPI document, who may reach the API, and what it imports."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from starlette.testclient import TestClient

from service.access import NewKey, Role
from service.api.app import RefusedToStartError, create_app, serve
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyStore
from tests.service.conftest import RunningApi

if TYPE_CHECKING:
    from tests.service.conftest import Life


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_probes_answer_at_the_root_and_under_the_prefix(
    database: Database, api_settings: Settings, prefix: str
) -> None:
    client = TestClient(create_app(database, api_settings))
    assert client.get(f"{prefix}/healthz").json() == {"status": "ok"}
    assert client.get(f"{prefix}/readyz").json() == {"status": "ok"}


def test_a_schema_that_is_not_this_versions_is_not_ready(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    client = TestClient(create_app(database, Settings(home=tmp_path)))
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert "samstudy migrate" in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200
    assert "samstudy_store_up 0.0" in client.get("/metrics").text
    database.dispose()


def test_metrics_count_requests_by_route_and_studies_by_state(
    database: Database, api_settings: Settings, life: Life
) -> None:
    client = TestClient(create_app(database, api_settings))
    life.finished({(0.0, 0.1): (0.9, 0.8)})
    ids = [life.create().id for _ in range(3)]
    for study_id in (*ids, "nowhere"):
        client.get(f"/api/v1/studies/{study_id}")
    client.get("/nonsense")
    text = client.get("/metrics").text
    route = 'method="GET",route="/api/v1/studies/{study_id}"'
    assert f'samstudy_http_request_duration_seconds_count{{{route},status="200"}} 3.0' in text
    assert f'samstudy_http_request_duration_seconds_count{{{route},status="404"}} 1.0' in text
    assert 'route="none",status="404"' in text
    assert "nonsense" not in text
    assert 'samstudy_studies{state="QUEUED"} 3.0' in text
    assert 'samstudy_studies{state="SUCCEEDED"} 1.0' in text
    assert 'samstudy_studies{state="FAILED"} 0.0' in text


def test_the_root_leads_to_the_documentation(database: Database, api_settings: Settings) -> None:
    client = TestClient(create_app(database, api_settings))
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"


@pytest.mark.parametrize(("page", "elements"), [("/docs", 3), ("/redoc", 2)])
def test_the_documentation_needs_nothing_from_elsewhere(
    database: Database, api_settings: Settings, page: str, elements: int
) -> None:
    KeyStore(database).create(NewKey(owner="ada", role=Role.USER))  # from now on all else needs one
    client = TestClient(create_app(database, api_settings))
    said = client.get(page).text
    assert "://" not in said
    needed = re.findall(r"""(?:src|href|url|spec-url)(?:=|: )["'](.+?)["']""", said)
    assert len(needed) == elements + 1, "an icon, the script, its style where it has one, and the document itself"
    policy = client.get(page).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "http" not in policy
    assert all(client.get(path).status_code == 200 for path in needed), needed
    assert client.get("/docs/assets/../../core.py").status_code == 401  # not one of them


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    database = Database(f"sqlite:///{home / 'samstudy.db'}")
    document = create_app(database, Settings(home=home)).openapi()
    database.dispose()
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_openapi_has_no_dangling_references(document: dict[str, Any]) -> None:
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= names


def test_openapi_is_valid(document: dict[str, Any]) -> None:
    OPENAPI_31_VALIDATOR.validate(document)


def test_openapi_describes_what_comes_as_a_stream_or_is_sent_to_webhooks(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"id", "kind", "at", "data"} <= schemas["Event"]["properties"].keys()
    message = document["webhooks"]["study.state"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert message == {"$ref": "#/components/schemas/StudyStateMessage"}
    assert schemas["StudyStateMessage"]["required"] == ["type", "id", "created_at", "data"]


def test_openapi_has_no_default_for_what_a_change_leaves_out(document: dict[str, Any]) -> None:
    change = document["components"]["schemas"]["StudyPatch"]["properties"]
    assert not [name for name, schema in change.items() if "default" in schema]


def test_openapi_describes_the_spec_as_the_body_of_a_new_study(document: dict[str, Any]) -> None:
    post = document["paths"]["/api/v1/studies"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/StudySpec"}
    spec = document["components"]["schemas"]["StudySpec"]
    assert {"name", "search_space", "objective", "budget"} <= spec["properties"].keys()
    assert spec["required"] == ["name", "search_space", "objective"]
    assert {parameter["name"].lower() for parameter in post["parameters"]} == {"idempotency-key", "validate_only"}


def test_openapi_describes_answers_and_problems(document: dict[str, Any]) -> None:
    post = document["paths"]["/api/v1/studies"]["post"]["responses"]
    assert post.keys() >= {"200", "201", "400", "408", "409", "413", "415", "422", "429"}
    for status in ("400", "408", "409", "413", "415", "422"):
        content = post[status]["content"]
        assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "HTTPValidationError" not in json.dumps(operation), path
            if "{study_id}" in path:
                assert "404" in operation["responses"], path
    detail = document["paths"]["/api/v1/studies/{study_id}"]["get"]["responses"]["200"]
    assert detail["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/StudyDetail"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "api.example", ""])
def test_the_api_does_not_bind_where_others_reach_it(host: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedToStartError, match="SAMSTUDY_HOST"):
        serve(Settings(home=tmp_path, host=host))


class TestWhoAsks:
    """Of a real server, without keys: an address is counted that nobody can make up."""

    @pytest.fixture
    def api_settings(self, api_settings: Settings) -> Settings:
        return api_settings.model_copy(update={"requests_per_minute": 2})

    @pytest.fixture(autouse=True)
    def _uvicorn_would_believe_anybody(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")

    def ask(self, running_api: RunningApi) -> list[int]:
        """Statuses of four requests, each of which says that it comes from somebody else."""
        url = f"{running_api.url}/api/v1/models"
        with httpx.Client(trust_env=False) as client:
            return [client.get(url, headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code for n in range(4)]

    def clients(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return [vars(line)["client"] for line in caplog.records if line.name == "service.api.access_log"]

    def test_what_a_request_says_of_it_counts_for_nothing(
        self, running_api: RunningApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.ask(running_api) == [200, 200, 429, 429]
        assert set(self.clients(caplog)) == {"127.0.0.1"}

    @pytest.mark.parametrize(("proxies", "is_trusted"), [("192.0.2.1,127.0.0.0/8", True), ("192.0.2.1", False)])
    def test_a_proxy_is_believed_that_the_settings_name(
        self,
        database: Database,
        api_settings: Settings,
        stopping_servers: list[threading.Thread],
        caplog: pytest.LogCaptureFixture,
        wait_until: Callable[..., None],
        proxies: str,
        is_trusted: bool,
    ) -> None:
        running = RunningApi(database, api_settings.model_copy(update={"trusted_proxies": proxies}))
        try:
            assert self.ask(running) == ([200] * 4 if is_trusted else [200, 200, 429, 429])
        finally:
            stopping_servers.append(running.ask_to_stop())
        wait_until(lambda: len(self.clients(caplog)) == 4)  # a line comes after its answer has ended
        assert len(set(self.clients(caplog))) == (4 if is_trusted else 1)


def test_who_still_waits_when_the_server_stops_is_told_so(
    database: Database,
    running_api: RunningApi,
    a_spec: Any,
    caplog: pytest.LogCaptureFixture,
    wait_until: Callable[..., None],
) -> None:
    threads = set(threading.enumerate())
    lock = "SELECT 1" if database.is_sqlite else "LOCK TABLE studies"  # SQLite's one writer locks all
    with ThreadPoolExecutor(1) as pool:
        with database.writing() as connection:
            connection.exec_driver_sql(lock)
            url = f"{running_api.url}/api/v1/studies"
            asked = pool.submit(httpx.post, url, json=a_spec, timeout=20, trust_env=False)
            wait_until(lambda: running_api.waiting_requests == 1)
            running_api.stop()
        answer = asked.result(10)
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert [line for line in caplog.records if line.exc_info] == []
    wait_until(lambda: threads.issuperset(threading.enumerate()))  # what was asked for is done, and uses the store


def test_the_api_imports_neither_torch_nor_ray_nor_mlflow() -> None:
    code = (
        "import service.api.app, service.client, sys;"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_old_store_is_not_harmed_by_looking_whether_it_is_ready(migrated_store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store.db"
    shutil.copy(migrated_store, copy)
    database = Database(f"sqlite:///{copy}")
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
    assert TestClient(create_app(database, Settings(home=tmp_path))).get("/readyz").status_code == 503
    database.dispose()
