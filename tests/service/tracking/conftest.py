"""MLflow's real server on SQLite, a client that reads what was written there, and an exporter that writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from service.store.database import Database
from service.store.exporting import ExportStore
from service.tracking import files
from service.tracking.exporter import Exporter
from tests.service.conftest import Life
from tests.service.mlflow_server import MlflowServer
from tests.service.tracking.shown import NAMES, Clock, Network


@pytest.fixture(autouse=True)
def undrawn() -> Iterator[pytest.MonkeyPatch]:
    """Empty pictures: to draw and send them takes longer than all else. `undo()` where they matter."""
    with pytest.MonkeyPatch.context() as changes:
        changes.setattr(files, "heat_map_png", lambda *_, **__: b"")
        changes.setattr(files, "heat_map_html", lambda *_, **__: "")
        yield changes


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_server.url)


@pytest.fixture
def a_spec(a_spec: dict[str, Any]) -> dict[str, Any]:
    """Every test has an experiment of its own."""
    return {**a_spec, "name": next(NAMES)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database) -> ExportStore:
    return ExportStore(database)


@pytest.fixture
def exporter(store: ExportStore, life: Life, mlflow_server: MlflowServer, clock: Clock) -> Exporter:
    return Exporter(store, life.studies, mlflow_server.url, min_interval_s=2.0, clock=clock)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """What is put in here gets every request: the last part of its path, its body as text, and how to send it."""
    between: Network = []
    send = requests.Session.request

    def request(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        path, body = url.split("?")[0].rsplit("/", 1)[-1], json.dumps(options.get("json"))
        if not between:
            return send(session, method, url, **options)
        return between[0](path, body, lambda: send(session, method, url, **options))

    monkeypatch.setattr(requests.Session, "request", request)
    return between
