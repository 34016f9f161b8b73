"""No route takes a large body, whether it reads one or not, and none works before it knows."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.testclient import TestClient

from service.api.requests import MAX_BODY_BYTES
from service.study import Intent
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi

pytestmark = on_sqlite
"""A body is refused before a store sees it."""


def pieces(size_bytes: int) -> Iterator[bytes]:
    """A body whose length is not said before."""
    yield size_bytes * b"x"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("verb", ["pause", "resume", "stop", "cancel", "retry", "archive", "unarchive"])
def test_a_large_body_is_refused_where_none_is_read(
    running_api: RunningApi, life: Life, verb: str, chunked: bool
) -> None:
    study = life.create()
    url = f"{running_api.url}/api/v1/studies/{study.id}/{verb}"
    content = pieces(MAX_BODY_BYTES + 1) if chunked else (MAX_BODY_BYTES + 1) * b"x"
    answer = httpx.post(url, content=content, timeout=20, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert life.studies.get(study.id) == study


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/api/v1/studies", "/nowhere"])
def test_no_path_takes_a_large_body(api: TestClient, path: str) -> None:
    for content in ((MAX_BODY_BYTES + 1) * b"x", pieces(MAX_BODY_BYTES + 1)):
        answer = api.request("GET", f"http://testserver{path}", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_nobody_reads_does_no_harm(running_api: RunningApi, life: Life, chunked: bool) -> None:
    study = life.create()
    url = f"{running_api.url}/api/v1/studies/{study.id}/pause"
    content = pieces(MAX_BODY_BYTES) if chunked else MAX_BODY_BYTES * b"x"
    assert httpx.post(url, content=content, timeout=20, trust_env=False).status_code == 200
    assert life.studies.get(study.id).intent is Intent.PAUSE


def test_a_body_in_pieces_arrives_whole(api: TestClient, a_spec: dict[str, object]) -> None:
    text = json.dumps(a_spec).encode()
    headers = {"Content-Type": "application/json"}
    answer = api.post("studies", content=iter([text[:10], text[10:]]), headers=headers)
    assert (answer.status_code, answer.json()["name"]) == (201, a_spec["name"])


@pytest.mark.parametrize("length", ["9" * 10, "9" * 30, f"{MAX_BODY_BYTES + 1}"])
def test_a_length_that_is_too_large_is_believed(api: TestClient, life: Life, length: str) -> None:
    study = life.create()
    answer = api.post(f"studies/{study.id}/pause", headers={"Content-Length": length})
    assert answer.status_code == 413
    assert life.studies.get(study.id) == study


def test_a_body_on_its_way_takes_nobodys_time(running_api: RunningApi, life: Life) -> None:
    study = life.create()
    head = f"POST /api/v1/studies/{study.id}/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", running_api.port), timeout=20) as slow:
        slow.sendall(head + b"12345")
        answer = httpx.get(f"{running_api.url}/api/v1/studies/{study.id}", timeout=20, trust_env=False)
        assert answer.json()["intent"] != "PAUSE", "the route begins once the body is whole"
        slow.sendall(b"67890")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert life.studies.get(study.id).intent is Intent.PAUSE
