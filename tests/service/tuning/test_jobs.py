"""Drivers as Ray Jobs, against a small HTTP server that answers as Ray's Jobs API does."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from service.errors import ServiceUnavailableError
from service.store.reconciling import DriverClaim
from service.tuning.jobs import DriverJobs
from tests.service.proxy import proxy_of_the_environment

CLAIM = DriverClaim("study", 2)


class JobsApi:
    """What Ray's dashboard was asked, and the jobs that it has."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.tokens: set[str | None] = set()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def _answer(self, body: bytes) -> None:
                api.asked.append((self.command, self.path))
                api.tokens.add(self.headers["Authorization"])
                status, answer = api.answer(self.command, self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/version":
            return 200, {"version": "4"}
        if (method, path) == ("POST", "/api/jobs/"):
            job = json.loads(body)
            if job["submission_id"] in self.jobs:
                return 500, {"error": "the submission id was used before"}
            self.jobs[job["submission_id"]] = {**job, "status": "RUNNING"}
            return 200, {"submission_id": job["submission_id"]}
        known = self.jobs.get(path.split("/")[3])
        if known is None:
            return 404, {}
        if method == "POST":
            known["status"] = "STOPPED"
        return 200, known


@pytest.fixture
def api() -> Iterator[JobsApi]:
    api = JobsApi()
    thread = Thread(target=api.server.serve_forever, daemon=True)
    thread.start()
    yield api
    api.server.shutdown()
    api.server.server_close()
    thread.join(10)


@pytest.fixture
def jobs(api: JobsApi) -> DriverJobs:
    return DriverJobs(api.url, token="secret")


def test_a_driver_is_a_job_of_its_study_and_number_that_needs_no_cpu(api: JobsApi, jobs: DriverJobs) -> None:
    jobs.check()
    jobs.start(CLAIM)
    job = api.jobs["study-2"]
    assert job["entrypoint"].endswith("service.tuning.driver study 2")
    assert job["entrypoint_num_cpus"] == 0
    assert api.tokens == {"Bearer secret"}


def test_a_driver_that_ray_refuses_is_said_with_rays_reason(jobs: DriverJobs) -> None:
    jobs.start(CLAIM)
    with pytest.raises(ServiceUnavailableError, match="used before"):
        jobs.start(CLAIM)


def test_a_running_driver_is_stopped_once(api: JobsApi, jobs: DriverJobs) -> None:
    jobs.start(CLAIM)
    assert not jobs.stop(CLAIM)
    assert jobs.stop(CLAIM)
    assert api.asked.count(("POST", "/api/jobs/study-2/stop")) == 1


def test_a_driver_that_the_cluster_does_not_know_is_stopped_already(api: JobsApi, jobs: DriverJobs) -> None:
    assert jobs.stop(CLAIM)
    assert api.asked == [("GET", "/api/jobs/study-2")]


def test_a_cluster_that_accepts_and_never_answers_does_not_hold_the_controller_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        jobs = DriverJobs(f"http://127.0.0.1:{silent.getsockname()[1]}", token="", timeout_s=0.2)
        with pytest.raises(ServiceUnavailableError, match="does not answer"):
            jobs.check()


def test_what_is_no_cluster_is_said_so() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        jobs = DriverJobs(f"http://127.0.0.1:{unused.getsockname()[1]}", token="")
        for ask in (jobs.check, lambda: jobs.start(CLAIM), lambda: jobs.stop(CLAIM)):
            with pytest.raises(ServiceUnavailableError):
                ask()


def test_the_token_of_a_cluster_on_this_machine_goes_to_no_proxy(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_of_the_environment(monkeypatch) as asked:
        DriverJobs(api.url, token="secret").check()
    assert (asked, api.asked) == ([], [("GET", "/api/version")])


@pytest.mark.parametrize("password", ["s3cret", "s3/cret"])
def test_no_error_shows_a_password_of_the_clusters_address(password: str) -> None:
    with pytest.raises(ServiceUnavailableError, match=r"http://ray\.invalid") as caught:
        DriverJobs(f"http://u:{password}@ray.invalid", token="").check()
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
