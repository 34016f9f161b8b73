"""The client against a real server, also one that goes away, and through a connection that is cut."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from service.addresses import Addresses, holding, publish
from service.api.app import create_app
from service.client import Client
from service.errors import (
    AttemptNotFoundError,
    ConfigurationNotFoundError,
    IdempotencyConflictError,
    InvalidRequestError,
    InvalidSpecError,
    InvalidTransitionError,
    NotEnoughResultsError,
    SamstudyError,
    ServiceUnavailableError,
    StoreUnavailableError,
    StudyNotFoundError,
    TooManyRequestsError,
    TrialNotFoundError,
    VersionConflictError,
)
from service.event_stream import ServerMessage, server_messages
from service.settings import Settings, settings
from service.spec import parse_spec
from service.store import tables
from service.store.database import Database
from service.store.studies import StudyFilter
from service.study import Origin, StudyState, TrialState
from service.trial_logs import TrialLog
from tests.service.proxy import proxy_of_the_environment

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi

ACCURACIES = {(0.0, 0.1): (0.90, 0.92), (1.0, 0.1): (0.95, 0.97)}


@pytest.fixture
def client(running_api: RunningApi) -> Iterator[Client]:
    with Client(running_api.url, patience_s=5) as client:
        yield client


@pytest.fixture
def clean_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings read anew, of a home of their own."""
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAMSTUDY_URL", raising=False)
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


class CuttingProxy:
    """Forwards connections, and cuts the nth of them after so many bytes of the answer."""

    def __init__(self, port: int, cut_after_bytes: list[int]) -> None:
        self._port, self._limits = port, list(cut_after_bytes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                downstream, _ = self._listener.accept()
            except OSError:
                return
            limit = self._limits[self.connections] if self.connections < len(self._limits) else None
            self.connections += 1
            thread = threading.Thread(target=self._forward, args=(downstream, limit))
            thread.start()
            self._threads.append(thread)

    def _forward(self, downstream: socket.socket, limit: int | None) -> None:
        with downstream, socket.create_connection(("127.0.0.1", self._port)) as upstream:
            upwards = threading.Thread(target=self._relay, args=(downstream, upstream, None))
            upwards.start()
            self._relay(upstream, downstream, limit)
            for end in (upstream, downstream):
                self._shut(end)
            upwards.join()

    def _relay(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        left = math.inf if limit is None else limit
        try:
            while left > 0 and (data := source.recv(65536)):
                target.sendall(data[: int(min(left, len(data)))])
                left -= len(data)
        except OSError:
            pass
        self._shut(target)

    @staticmethod
    def _shut(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._shut(self._listener)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def cutting_proxy(running_api: RunningApi) -> Iterator[Callable[[list[int]], CuttingProxy]]:
    proxies: list[CuttingProxy] = []

    def start(cut_after_bytes: list[int]) -> CuttingProxy:
        proxies.append(CuttingProxy(running_api.port, cut_after_bytes))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.mark.parametrize("form", ["mapping", "spec", "yaml", "json"])
def test_a_spec_can_be_submitted_in_every_form(
    client: Client, a_spec: dict[str, Any], tmp_path: Path, form: str
) -> None:
    forms: dict[str, Any] = {
        "mapping": a_spec,
        "spec": parse_spec(a_spec),
        "yaml": tmp_path / "a.yaml",
        "json": str(tmp_path / "a.json"),
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(a_spec))
    (tmp_path / "a.json").write_text(json.dumps(a_spec))
    study = client.submit(forms[form]).detail()
    assert (study.name, study.state) == (a_spec["name"], StudyState.QUEUED)
    assert study.spec == parse_spec(a_spec).to_mapping()


def test_numbers_of_numpys_are_numbers_and_other_things_are_named(client: Client, a_spec: dict[str, Any]) -> None:
    space = {"lambda": {"type": "categorical", "choices": list(np.linspace(0, 1, 3))}, "rho": {"type": "categorical"}}
    space["rho"]["choices"] = np.array([0.1, 0.2])
    study = client.submit({**a_spec, "search_space": space})
    assert study.detail().spec["search_space"]["lambda"]["choices"] == [0.0, 0.5, 1.0]
    assert study.enqueue({"lambda": np.float64(0.5), "rho": 0.2}).configuration.point == {"lambda": 0.5, "rho": 0.2}
    with pytest.raises(InvalidRequestError, match=r"must be numbers, text, .* of set"):
        client.submit({**a_spec, "labels": {"a", "b"}})
    clone = client.clone(study.id, {"budget": {"max_trials": np.int64(4)}, "replicates": {"seeds": np.arange(2)}})
    assert clone.detail().spec["replicates"]["seeds"] == [0, 1]
    changed = client.update(clone.id, budget={"max_trials": np.int64(6)}, labels=MappingProxyType({"a": "b"}))
    assert (changed.spec["budget"]["max_trials"], changed.labels) == (6, {"a": "b"})
    for value in (np.longdouble(6), {np.int64(1): 2}):
        with pytest.raises(InvalidRequestError):
            client.update(clone.id, budget={"max_trials": value})


def test_a_plan_stores_nothing(client: Client, a_spec: dict[str, Any]) -> None:
    plan = client.plan(a_spec)
    assert (plan.configurations, plan.trials) == (20, 40)
    assert list(client.studies()) == []


def test_everything_about_a_study_comes_as_models(client: Client, life: Life) -> None:
    study = client.handle(life.finished(ACCURACIES).id)
    assert study.detail().state is StudyState.SUCCEEDED
    assert study.detail().progress.trials_done == 4
    best = study.best()
    assert best is not None
    assert best.configuration.point == {"lambda": 1.0, "rho": 0.1}
    assert best.by_seed == {0: 0.95, 1: 0.97}
    assert [result.configuration.number for result in study.configurations()] == [1, 2]
    assert [result.configuration.number for result in study.configurations(order_by="objective")] == [2, 1]
    assert client.configuration(study.id, best.configuration.id) == best
    assert [trial.number for trial in study.trials()] == [1, 2, 3, 4]
    assert study.trials(states=[TrialState.FAILED]) == []
    trial = client.trial(study.id, study.trials()[0].id)
    assert [attempt.number for attempt in trial.attempts] == [1]
    assert [result.epoch for result in client.results(study.id, trial.id)] == [1, 2, 3]
    surface = study.surface()
    assert surface.best is not None
    assert (surface.best.x, surface.best.y) == (1.0, 0.1)


def test_what_there_is_comes_as_models(client: Client) -> None:
    assert "paper_lambda_rho" in [space.name for space in client.search_spaces()]
    assert "mlp" in [model.name for model in client.models()]
    assert "digits" in [dataset.name for dataset in client.datasets()]
    client.check_ready()


def test_studies_come_page_after_page(client: Client, life: Life) -> None:
    there = [life.create().id for _ in range(5)][::-1]
    other = life.create(name="other", labels={"a": "b:c"})
    assert [study.id for study in client.studies(page_size=2)] == [other.id, *there]
    assert [study.id for study in client.studies(labels={"a": "b:c"})] == [other.id]
    assert [study.id for study in client.studies(name="other", states=[StudyState.QUEUED])] == [other.id]


def test_studies_can_be_compared(client: Client, life: Life) -> None:
    a, b = life.finished(ACCURACIES), life.finished(ACCURACIES)
    comparison = client.compare([a.id, b.id])
    assert comparison.differences[0].difference == 0


def test_a_study_is_steered_by_its_handle(client: Client, life: Life) -> None:
    study = client.handle(life.create().id)
    assert study.pause().state is StudyState.PAUSED
    assert study.resume().state is StudyState.QUEUED
    enqueued = study.enqueue({"lambda": 1.0, "rho": 0.1})
    assert enqueued.configuration.origin is Origin.USER
    assert study.stop().state is StudyState.CANCELLED
    assert study.stop().state is StudyState.CANCELLED, "it is asked again where the answer was lost"
    with pytest.raises(InvalidTransitionError):
        study.retry()
    assert client.archive(study.id).archived_at is not None
    assert list(client.studies()) == []
    assert [found.id for found in client.studies(archived=True)] == [study.id]
    assert client.unarchive(study.id).archived_at is None
    clone = client.clone(study.id, {"name": "clone"})
    assert (clone.submitted.name, clone.submitted.cloned_from) == ("clone", study.id)
    with pytest.raises(InvalidTransitionError, match="MLflow does not show"):
        client.delete(study.id)
    client.delete(study.id, delete_runs=True)
    with pytest.raises(StudyNotFoundError):
        study.detail()


def test_a_change_is_meant_for_the_version_that_was_read(client: Client, life: Life) -> None:
    study = client.study(life.create().id)
    changed = client.update(study.id, labels={"a": "b"}, budget={"max_failed_trials": None}, version=study.version)
    assert (changed.labels, changed.spec["budget"]["max_failed_trials"]) == ({"a": "b"}, None)
    with pytest.raises(VersionConflictError):
        client.update(study.id, description="late", version=study.version)
    assert client.update(study.id, description="whatever it is").description == "whatever it is"
    with pytest.raises(InvalidSpecError) as invalid:
        client.update(study.id, budget={"max_trials": 3})
    assert [problem.field for problem in invalid.value.problems] == ["budget.max_trials"]


def test_lists_are_read_page_after_page(client: Client, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.client._LARGEST_PAGE", 2)
    study = life.finished({(lam, rho): (0.5, 0.6) for lam in (0.0, 1.0) for rho in (0.1, 0.2, 0.3)})
    assert [trial.number for trial in client.trials(study.id)] == list(range(1, 13))
    assert [trial.number for trial in client.trials(study.id, order_by="-number", limit=5)] == [12, 11, 10, 9, 8]
    assert [result.configuration.number for result in client.configurations(study.id)] == [1, 2, 3, 4, 5, 6]
    assert [result.configuration.number for result in client.configurations(study.id, limit=3)] == [1, 2, 3]


def test_a_table_of_all_trials_can_be_taken_away(client: Client, life: Life) -> None:
    study = life.finished(ACCURACIES)
    table = json.loads(b"".join(client.export(study.id, table_format="json")))
    assert [row["objective"] for row in table] == [0.90, 0.92, 0.95, 0.97]
    with pytest.raises(StudyNotFoundError):
        list(client.export("nowhere"))
    with pytest.raises(NotEnoughResultsError):
        client.importances(study.id)
    assert not client.export_again(study.id).is_exported


def test_waiting_for_a_study_that_is_deleted_ends(client: Client, life: Life, database: Database) -> None:
    study = client.handle(life.create().id)
    raised: list[StudyNotFoundError] = []

    def wait() -> None:
        try:
            study.wait(timeout_s=20)
        except StudyNotFoundError as error:
            raised.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    with database.writing() as connection:
        connection.execute(tables.studies.delete().where(tables.studies.c.id == study.id))
    waiter.join(10)
    assert len(raised) == 1


def test_waiting_ends_when_the_study_has_ended_however_it_did(client: Client, life: Life) -> None:
    study = client.handle(life.create().id)
    ended = []
    waiter = threading.Thread(target=lambda: ended.append(study.wait(timeout_s=20)))
    waiter.start()
    assert study.cancel().state is StudyState.CANCELLED
    waiter.join(10)
    assert ended[0].state is StudyState.CANCELLED
    assert study.wait().state is StudyState.CANCELLED


def test_waiting_can_be_limited(client: Client, life: Life) -> None:
    study = client.handle(life.create().id)
    with pytest.raises(TimeoutError, match=r"0\.3 s"):
        study.wait(timeout_s=0.3)
    assert study.detail().state is StudyState.QUEUED


def test_errors_come_back_as_what_they_were(client: Client, a_spec: dict[str, Any], life: Life) -> None:
    study = life.finished(ACCURACIES)
    with pytest.raises(InvalidSpecError) as invalid:
        client.submit({**a_spec, "name": "", "budget": {"max_trials": 3}})
    assert {problem.field for problem in invalid.value.problems} == {"name", "budget.max_trials"}
    with pytest.raises(StudyNotFoundError, match="no study has the id 'nowhere'"):
        client.study("nowhere")
    with pytest.raises(ConfigurationNotFoundError):
        client.configuration(study.id, "c")
    with pytest.raises(TrialNotFoundError):
        client.results(study.id, "t")
    with pytest.raises(InvalidTransitionError):
        client.cancel(study.id)
    with pytest.raises(InvalidRequestError) as request:
        client.surface(study.id, x="lr")
    assert [problem.field for problem in request.value.problems] == ["x"]
    client.submit(a_spec, idempotency_key="k")
    with pytest.raises(IdempotencyConflictError):
        client.submit({**a_spec, "name": "b"}, idempotency_key="k")
    with pytest.raises(StudyNotFoundError):
        list(client.events("nowhere"))


def test_every_documented_code_has_its_class_in_a_process_that_has_only_the_client(
    database: Database, api_settings: Settings
) -> None:
    document = json.dumps(create_app(database, api_settings).openapi())
    codes = sorted(set(re.findall(r"\(`([a-z_]+)`\)", document)))
    code = """
import sys
import httpx
from service.client import connection
for code in sys.argv[1:]:
    problem = {"type": "", "title": "", "status": 400, "detail": "", "code": code, "errors": [], "request_id": None}
    print(type(connection._error_of(httpx.Response(400, json=problem), "")).__name__)
"""
    named = subprocess.run([sys.executable, "-c", code, *codes], capture_output=True, text=True, check=True).stdout
    classes = dict(zip(codes, named.split(), strict=True))
    assert classes["body_too_large"] == "BodyTooLargeError"
    assert [code for code, name in classes.items() if name == "SamstudyError"] == []


def test_an_error_of_an_unknown_code_keeps_its_code_and_status(running_api: RunningApi) -> None:
    with Client(f"{running_api.url}/nowhere") as client, pytest.raises(SamstudyError) as error:
        client.study("x")
    assert type(error.value) is SamstudyError
    assert (error.value.status, error.value.code) == (404, "not_found")


def test_a_spec_of_numbers_that_are_none_is_the_services_to_refuse(client: Client, a_spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError) as invalid:
        client.submit({**a_spec, "train": {"lr": math.nan}})
    assert [problem.field for problem in invalid.value.problems] == ["train.lr"]


def test_a_service_that_is_not_there_is_said_with_what_to_do(unused_port: int) -> None:
    with (
        Client(f"http://127.0.0.1:{unused_port}", patience_s=0.1) as client,
        pytest.raises(ServiceUnavailableError, match="samstudy up"),
    ):
        client.study("x")


def test_a_store_that_does_not_answer_is_said_as_that(running_api: RunningApi, database: Database) -> None:
    with database.writing() as connection:
        for table in ("events", "results", "attempts", "trials", "configurations", "studies"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    with Client(running_api.url, patience_s=0.1) as client, pytest.raises(StoreUnavailableError):
        client.study("x")


def test_a_service_that_is_being_stopped_is_asked_again(unused_port: int) -> None:
    """As a rolling restart lets one process go and another one come."""
    content = json.dumps(
        {"type": "t", "title": "t", "status": 503, "detail": "d", "code": "stopping", "errors": []}
    ).encode()
    gone = json.dumps(
        {"type": "t", "title": "t", "status": 404, "detail": "d", "code": "study_not_found", "errors": []}
    ).encode()
    answers = [(503, content), (503, content), (404, gone)]

    def serve() -> None:
        with socket.create_server(("127.0.0.1", unused_port)) as server:
            for status, body in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
                    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    thread = threading.Thread(target=serve)
    thread.start()
    with Client(f"http://127.0.0.1:{unused_port}", patience_s=20) as client, pytest.raises(StudyNotFoundError):
        client.study("x")
    thread.join(10)


def test_another_service_on_the_port_is_noticed(unused_port: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"

    def serve_once() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", unused_port)) as listener:
        thread = threading.Thread(target=serve_once)
        thread.start()
        with (
            Client(f"http://127.0.0.1:{unused_port}", patience_s=0) as client,
            pytest.raises(ServiceUnavailableError, match="not a samstudy service"),
        ):
            client.study("x")
        thread.join(10)


def test_a_request_waits_for_a_service_that_is_being_restarted(
    client: Client, running_api: RunningApi, life: Life
) -> None:
    study = life.create()
    running_api.stop()
    asked = []
    asking = threading.Thread(target=lambda: asked.append(client.study(study.id)))
    asking.start()
    running_api.start()
    asking.join(10)
    assert asked[0].id == study.id


def test_a_post_whose_answer_was_lost_makes_one_study(
    cutting_proxy: Callable[[list[int]], CuttingProxy], life: Life, a_spec: dict[str, Any]
) -> None:
    proxy = cutting_proxy([20])
    with Client(proxy.url, patience_s=5) as client:
        study = client.submit(a_spec)
    assert proxy.connections == 2
    assert [found.id for found in life.studies.page(StudyFilter(), page_size=10).studies] == [study.id]


@pytest.mark.parametrize("cut_after_bytes", [[600, 900, 1200], [300, 301, 302, 303], [1500]])
def test_events_go_on_where_a_connection_was_cut(
    cutting_proxy: Callable[[list[int]], CuttingProxy], life: Life, cut_after_bytes: list[int]
) -> None:
    study = life.finished(ACCURACIES)
    with Client(cutting_proxy(cut_after_bytes).url) as client:
        told = [event.id for event in client.events(study.id)]
    assert told == [event.id for event in life.studies.events(study.id)]


def test_events_go_on_after_the_service_was_restarted(client: Client, running_api: RunningApi, life: Life) -> None:
    study = life.create()
    told: list[int] = []
    first = threading.Event()

    def listen() -> None:
        for event in client.events(study.id):
            told.append(event.id)
            first.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert first.wait(10)
    running_api.stop()
    driver = life.start(study)
    life.train(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0], 0.9)
    running_api.start()
    life.succeed(driver)
    listener.join(10)
    assert told == [event.id for event in life.studies.events(study.id)]


class FakeTime:
    """A clock that moves when somebody sleeps, or when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The clock by which the client counts how long a service has been away."""
    clock = FakeTime()
    clock_module = SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.pass_by)
    monkeypatch.setattr("service.client.connection.time", clock_module)
    return clock


@pytest.fixture
def serve_streams() -> Iterator[Callable[..., str]]:
    """Starts a service that answers everything with a stream of this type; the nth connection has these bytes."""
    servers = []

    def start(media_type: str, content: Callable[[int], bytes], status: int = 200) -> str:
        connections = 0

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                nonlocal connections
                connections += 1
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.end_headers()
                self.wfile.write(content(connections))

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_quiet_connection_is_a_service_that_is_there(fake_time: FakeTime, serve_streams: Callable[..., str]) -> None:
    """Two connections break off; between the breaks the service is there for longer than it may be away."""

    def content(connection: int) -> bytes:
        if connection == 2:
            fake_time.pass_by(600)
            return b": a sign of life\n\n"
        return b"event: stream.end\ndata: {}\n\n" if connection == 3 else b""

    with Client(serve_streams("text/event-stream", content)) as client:
        assert list(client.events("s")) == []


@pytest.mark.parametrize(
    ("media_type", "content", "words"),
    [
        ("text/event-stream", b"", "the stream broke off"),
        ("text/html", b"hello", "no samstudy service answers"),
    ],
    ids=["a stream that opens and breaks off at once", "no stream of events"],
)
def test_what_only_opens_or_is_no_stream_of_events_is_no_service(
    fake_time: FakeTime,
    serve_streams: Callable[..., str],
    media_type: str,
    content: bytes,
    words: str,
) -> None:
    url = serve_streams(media_type, lambda _: content)
    with Client(url) as client, pytest.raises(ServiceUnavailableError, match=words):
        list(client.events("s"))
    assert 60 < fake_time.now < 70


def test_a_service_that_refuses_a_stream_says_why(fake_time: FakeTime, serve_streams: Callable[..., str]) -> None:
    """And is not said to be away."""
    detail = "at most 20 event streams and followed logs may be open"
    problem = {
        "type": "about:blank",
        "title": "no",
        "status": 429,
        "detail": detail,
        "code": "too_many_requests",
        "errors": [],
    }
    url = serve_streams("application/problem+json", lambda _: json.dumps(problem).encode(), 429)
    with Client(url) as client, pytest.raises(TooManyRequestsError, match=detail):
        list(client.events("s"))
    assert 60 < fake_time.now < 70


def test_events_after_the_last_one_of_an_ended_study_are_none(client: Client, life: Life) -> None:
    study = life.finished(ACCURACIES)
    last = life.studies.events(study.id)[-1].id
    assert list(client.events(study.id, after=last)) == []
    assert [event.id for event in client.events(study.id, after=last - 1)] == [last]


def test_the_address_comes_from_the_settings_else_from_the_running_service_else_is_the_usual_one(
    clean_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Client().url == "http://127.0.0.1:8321"
    clean_settings.mkdir()
    with holding(clean_settings):
        publish(Addresses("http://127.0.0.1:9", "", "", str(clean_settings), os.getpid()))
        assert Client().url == "http://127.0.0.1:9"
    monkeypatch.setenv("SAMSTUDY_URL", "http://api.example/")
    settings.cache_clear()
    assert Client().url == "http://api.example"


@pytest.mark.parametrize("password", ["s3cret", "s3/cret", "s3?cret"])
def test_no_error_and_no_name_of_a_client_shows_a_password(password: str, unused_port: int) -> None:
    def ask() -> None:
        with Client(f"http://u:{password}@127.0.0.1:{unused_port}", patience_s=0) as client:
            assert client.url == f"http://127.0.0.1:{unused_port}"
            client.check_ready()

    with pytest.raises(ServiceUnavailableError, match=r"127\.0\.0\.1") as caught:
        ask()
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


def test_the_user_of_an_address_is_sent_to_it_all_the_same(running_api: RunningApi) -> None:
    with Client(running_api.url.replace("://", "://u:s3cret@")) as client:
        assert client._http.base_url.userinfo == b"u:s3cret"
        client.check_ready()


def test_a_service_on_this_machine_is_asked_past_every_proxy(
    running_api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_of_the_environment(monkeypatch) as asked, Client(running_api.url) as client:
        client.check_ready()
    assert asked == []


class TestServerMessages:
    def test_messages_may_be_cut_anywhere(self) -> None:
        stream = b"event: a\nid: 1\ndata: {}\n\n: ping\n\ndata: x\r\ndata: y\r\n\r\n"
        whole = [ServerMessage("a", "{}"), None, ServerMessage("message", "x\ny")]
        assert list(server_messages([stream])) == whole
        assert list(server_messages(bytes([byte]) for byte in stream)) == whole

    def test_only_line_feeds_end_a_line(self) -> None:
        text = "a\u2028b\x85c\x0bd\x1ee"
        assert list(server_messages([f"data: {text}\n\n".encode()])) == [ServerMessage("message", text)]

    def test_a_message_that_was_cut_off_is_left_out(self) -> None:
        assert list(server_messages([b"data: 1\n\ndata: 2\n"])) == [ServerMessage("message", "1")]


class TestLogs:
    """A trial's log, also through a connection that is cut."""

    WHOLE = "λ=½\n" * 3_000 + "the end\n"

    @pytest.fixture
    def running(self, life: Life, api_settings: Settings) -> tuple[str, str, Callable[[], None]]:
        """The study's and the trial's id, and what ends its attempt; its log is there."""
        study = life.create()
        driver = life.start(study)
        trial = life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0]
        life.begin(driver, trial)
        log = TrialLog(api_settings.storage_uri, study.id, trial.id, 1)
        log.clear()
        log.write(0, self.WHOLE.encode()[:5_001])
        log.write(5_001, self.WHOLE.encode()[5_001:])

        def end() -> None:
            log.finish()
            life.lose(driver, trial)

        return study.id, trial.id, end

    def test_it_comes_as_text(self, client: Client, running: tuple[str, str, Callable[[], None]]) -> None:
        study_id, trial_id, _ = running
        assert "".join(client.logs(study_id, trial_id)) == self.WHOLE
        assert "".join(client.logs(study_id, trial_id, tail=2)) == "λ=½\nthe end\n"

    def test_an_attempt_that_is_not_there_is_an_error(
        self, client: Client, running: tuple[str, str, Callable[[], None]]
    ) -> None:
        with pytest.raises(AttemptNotFoundError, match="no attempt 7"):
            list(client.logs(*running[:2], attempt=7))

    @pytest.mark.parametrize("follow", [True, False])
    @pytest.mark.parametrize("tail", [None, 2_001])
    def test_connections_that_are_cut_leave_no_gap_and_no_duplicate(
        self,
        cutting_proxy: Callable[[list[int]], CuttingProxy],
        running: tuple[str, str, Callable[[], None]],
        follow: bool,
        tail: int | None,
    ) -> None:
        study_id, trial_id, end = running
        end()
        proxy = cutting_proxy([700, 900, 3_003, 10, 7_000])
        with Client(proxy.url, patience_s=10) as client:
            text = "".join(client.logs(study_id, trial_id, follow=follow, tail=tail))
        assert text == (self.WHOLE if tail is None else "λ=½\n" * 2_000 + "the end\n")
        assert proxy.connections >= 6

    def test_it_is_followed_over_a_restart_of_the_service(
        self, running_api: RunningApi, client: Client, running: tuple[str, str, Callable[[], None]]
    ) -> None:
        study_id, trial_id, end = running
        texts = client.logs(study_id, trial_id, follow=True)
        heard = next(texts)
        while len(heard) < len(self.WHOLE):
            heard += next(texts)
        running_api.stop()
        restart = threading.Timer(0.3, lambda: (end(), running_api.start()))
        restart.start()
        assert heard + "".join(texts) == self.WHOLE
        restart.join(10)

    def test_a_service_that_is_not_there_is_said_soon(self, unused_port: int) -> None:
        with (
            Client(f"http://127.0.0.1:{unused_port}", patience_s=0.2) as client,
            pytest.raises(ServiceUnavailableError, match="no samstudy service answers"),
        ):
            list(client.logs("s", "s-1-0"))
