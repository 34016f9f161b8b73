"""A POST whose client hangs up: the study is there once or not at all, and the same key asks for the same study."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.store.database import Database
from service.store.filters import StudyFilter
from service.store.studies import StudyStore
from service.study import Study
from tests.embedded_service import wait_until
from tests.faults.conftest import study_spec
from tests.ports import free_port


class Api:
    """`samstudy api` in a process of its own, on a store without a controller: what is posted waits as QUEUED."""

    def __init__(self, store_url: str, home: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        self.log = home / "api.log"
        self.database = Database(store_url)
        self.database.migrate()
        self.studies = StudyStore(self.database)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SAMSTUDY_")}
        ours = {"SAMSTUDY_HOME": str(home), "SAMSTUDY_DATABASE_URL": store_url, "SAMSTUDY_PORT": str(self.port)}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "api"],
                env={**inherited, **ours},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/studies", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def post(self, name: str, key: str | None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return httpx.post(f"{self.url}/studies", json=study_spec(name), headers=headers, timeout=30)

    def hang_up(self, name: str, key: str | None, *, of_body: float, reset: bool) -> None:
        """Sends a POST and leaves without reading the answer.

        of_body: how much of the body is sent, 1 for all of it. reset: with RST, as a client that was killed with
        unread data does.
        """
        body = json.dumps(study_spec(name)).encode()
        head = f"POST /api/v1/studies HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n" + (f"Idempotency-Key: {key}\r\n" if key else "") + "\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(head.encode() + body[: int(of_body * len(body))])

    def found(self, name: str) -> list[Study]:
        return self.studies.page(StudyFilter(name=name), page_size=100).studies

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(30)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("hung-up")
    store_url = f"sqlite:///{home / 'samstudy.db'}"
    if request.param == "postgresql":
        store_url = request.getfixturevalue("databases").create()
    api = Api(store_url, home)
    try:
        wait_until(api.answers, deadline_s=60, what="samstudy api")
        yield api
    finally:
        api.database.dispose()
        assert api.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in api.log.read_text()


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("key", [True, False], ids=["with-key", "without-key"])
def test_a_whole_request_makes_one_study_or_none_and_repeated_with_its_key_the_same(
    key: bool, reset: bool, api: Api
) -> None:
    for number in range(10):
        name = f"whole-{key}-{reset}-{number}"
        api.hang_up(name, name if key else None, of_body=1, reset=reset)
        if not key:
            continue
        answer = api.post(name, name)
        assert answer.status_code in (200, 201), answer.text
        (only,) = api.found(name)
        assert answer.json()["id"] == only.id
        again = api.post(name, name)
        assert (again.status_code, again.json()["id"]) == (200, only.id)
    if not key:
        assert api.post("after", None).status_code == 201  # one after the others: what they did is done
        assert {len(api.found(f"whole-{key}-{reset}-{number}")) for number in range(10)} <= {0, 1}


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("key", [True, False], ids=["with-key", "without-key"])
def test_half_a_request_makes_none_and_its_key_is_free(key: bool, reset: bool, api: Api) -> None:
    for of_body in (0.0, 0.3, 0.99):
        name = f"half-{key}-{reset}-{of_body}"
        api.hang_up(name, name if key else None, of_body=of_body, reset=reset)
        assert api.found(name) == []
        answer = api.post(name, name if key else None)
        assert answer.status_code == 201
        assert [study.id for study in api.found(name)] == [answer.json()["id"]]
