from __future__ import annotations

import http.server
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.errors import ServiceUnavailableError
from service.supervision import Part
from tests.service.proxy import proxy_of_the_environment

WAITS = "while :; do sleep 60; done"


@pytest.fixture
def a_part(tmp_path: Path) -> Iterator[Callable[..., Part]]:
    parts: list[Part] = []

    def make(script: str, *, ready_url: str | None = None, **options: Any) -> Part:
        command = ["/bin/sh", "-c", script.replace("DIR", str(tmp_path))]
        options = {"start_deadline_s": 10, "stop_deadline_s": 5, **options}
        part = Part(
            "part", command, environment={"PATH": os.environ["PATH"]}, logs=tmp_path, ready_url=ready_url, **options
        )
        parts.append(part)
        return part

    yield make
    for part in parts:
        part.stop()


@pytest.fixture
def answering_url() -> Iterator[str]:
    """Answers 200 to whoever has the token, from the second request on."""
    requests: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            has_token = self.headers["Authorization"] == "Bearer secret"
            self.send_response(200 if has_token and len(requests) > 1 else 503)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/ready"
        server.shutdown()
        thread.join()


@pytest.fixture
def pid_in(tmp_path: Path, wait_until: Callable[..., None]) -> Callable[[str], int]:
    """The process id that a script wrote into this file."""

    def read(name: str) -> int:
        path = tmp_path / name
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
        return int(path.read_text())

    return read


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_part_is_ready_once_it_answers(a_part: Callable[..., Part], answering_url: str) -> None:
    part = a_part(WAITS, ready_url=answering_url, token="secret")
    part.start()
    part.wait_until_ready(threading.Event())


def test_a_part_that_was_ready_is_not_started_again_for_an_answer_it_owes(
    a_part: Callable[..., Part], answering_url: str
) -> None:
    """The others of `samstudy up` are waited for meanwhile, each as long as it takes."""
    part = a_part(WAITS, ready_url=answering_url, token="secret", start_deadline_s=0.5)
    part.start()
    part.wait_until_ready(threading.Event())
    time.sleep(0.6)
    part._headers = {}  # from now on it does not answer
    assert part.keep_up() is None


def test_without_an_address_a_part_is_ready_at_once(a_part: Callable[..., Part]) -> None:
    part = a_part(WAITS)
    part.start()
    part.wait_until_ready(threading.Event())
    assert not part.keep_up()


def test_an_early_end_names_the_log(a_part: Callable[..., Part]) -> None:
    part = a_part("echo no such option; exit 3", ready_url="http://127.0.0.1:1/")
    part.start()
    with pytest.raises(ServiceUnavailableError, match="part ended while it started") as caught:
        part.wait_until_ready(threading.Event())
    assert str(part.log_file) in str(caught.value)
    assert part.log_file.read_text() == "no such option\n"


def test_a_part_that_never_answers_is_given_up(a_part: Callable[..., Part]) -> None:
    part = a_part(WAITS, ready_url="http://127.0.0.1:1/", start_deadline_s=0.2)
    part.start()
    with pytest.raises(ServiceUnavailableError, match="did not answer within"):
        part.wait_until_ready(threading.Event())


def test_nobody_waits_for_a_part_while_everything_stops(a_part: Callable[..., Part]) -> None:
    part = a_part(WAITS, ready_url="http://127.0.0.1:1/")
    part.start()
    stopping = threading.Event()
    stopping.set()
    part.wait_until_ready(stopping)


def test_a_killed_part_starts_again_without_its_orphans(
    a_part: Callable[..., Part], pid_in: Callable[[str], int], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    part = a_part(f"({WAITS}) & echo $! > DIR/child; echo $$ > DIR/leader; {WAITS}")
    part.start()
    leader, child = pid_in("leader"), pid_in("child")
    (tmp_path / "leader").unlink()
    psutil.Process(leader).kill()
    wait_until(part.keep_up)
    assert has_ended(child)
    assert pid_in("leader") != leader
    assert not part.keep_up()


def test_a_part_that_came_back_without_answering_starts_once_more(
    a_part: Callable[..., Part], answering_url: str, pid_in: Callable[[str], int], wait_until: Callable[..., None]
) -> None:
    """As Ray's head, where somebody else had its dashboard's port at that moment."""
    part = a_part(f"echo $$ > DIR/pid; {WAITS}", ready_url=answering_url, start_deadline_s=1.5)
    part.start()
    first = pid_in("pid")
    said = []
    wait_until(lambda: bool(said.append(part.keep_up()) or said[-1]))
    assert said[-1] == "did not answer within 2 s"
    assert not psutil.pid_exists(first)
    part._headers = {"Authorization": "Bearer secret"}  # from now on it answers
    wait_until(lambda: part._has_answered or bool(part.keep_up()))
    second = pid_in("pid")
    assert second != first
    time.sleep(2)
    assert part.keep_up() is None


def test_stopping_ends_the_whole_family(a_part: Callable[..., Part], pid_in: Callable[[str], int]) -> None:
    deaf = f"trap '' TERM; echo $$ > DIR/deaf; {WAITS}"
    part = a_part(f'sh -c "{deaf.replace("$", chr(92) + "$")}" & echo $$ > DIR/leader; {WAITS}')
    part.start()
    family = [pid_in("leader"), pid_in("deaf")]
    part.stop()
    assert all(has_ended(pid) for pid in family)
    part.stop()  # once more is nothing


def test_a_part_that_does_not_end_when_asked_is_ended(
    a_part: Callable[..., Part], pid_in: Callable[[str], int]
) -> None:
    part = a_part(f"trap '' TERM; echo $$ > DIR/leader; {WAITS}", stop_deadline_s=0.1)
    part.start()
    leader = pid_in("leader")
    part.stop()
    assert has_ended(leader)


def test_a_part_may_end_its_work_when_asked(a_part: Callable[..., Part], pid_in: Callable[[str], int]) -> None:
    part = a_part("trap 'echo bye; exit 0' TERM; echo $$ > DIR/leader; while :; do sleep 0.01; done")
    part.start()
    pid_in("leader")
    part.stop()
    assert part.log_file.read_text() == "bye\n"


def test_stopping_touches_nobody_else(a_part: Callable[..., Part], tmp_path: Path) -> None:
    bystander = psutil.Popen([sys.executable, "-c", "input()"], stdin=-1)
    part = a_part(WAITS)
    part.start()
    part.stop()
    assert bystander.poll() is None
    bystander.communicate(b"\n")


def test_a_part_that_never_started_can_be_stopped(a_part: Callable[..., Part]) -> None:
    part = a_part(WAITS)
    part.stop()
    assert not part.keep_up()


def test_a_part_on_this_machine_is_asked_past_every_proxy(
    a_part: Callable[..., Part], answering_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = a_part(WAITS, ready_url=answering_url, token="secret")
    part.start()
    with proxy_of_the_environment(monkeypatch) as asked:
        part.wait_until_ready(threading.Event())
    assert asked == []
