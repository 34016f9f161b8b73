"""GET …/logs over a real connection: whole, resumable at any byte, followed to the attempt's end and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.access import NewKey, Role
from service.api import logs
from service.api.app import create_app
from service.api.storage_reads import EACH, StorageReads
from service.settings import Settings
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.keys import KeyStore
from service.study import Study, Trial
from service.trial_logs import TrialLog
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi

WHOLE = "λ=½ begins\nepoch 1\nepoch 2\nthe end\n"


class Training:
    """A trial that runs, its study's driver, and the log that its worker writes."""

    def __init__(self, life: Life, storage_uri: str) -> None:
        self.life = life
        self.study: Study = life.create()
        self.driver: DrivingStore = life.start(self.study)
        self.trial: Trial = life.propose(self.driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0]
        life.begin(self.driver, self.trial)
        self._storage_uri = storage_uri
        self.path = f"studies/{self.study.id}/trials/{self.trial.id}/logs"

    def log(self, attempt: int = 1) -> TrialLog:
        log = TrialLog(self._storage_uri, self.study.id, self.trial.id, attempt)
        if not log.extent().pieces:
            log.clear()
        return log

    def end(self) -> None:
        self.life.lose(self.driver, self.trial)


@pytest.fixture
def training(life: Life, api_settings: Settings) -> Training:
    return Training(life, api_settings.storage_uri)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.01)


class Follower:
    """Reads a log in a thread, as it comes."""

    def __init__(self, running_api: RunningApi, path: str, *, key: str = "", **params: Any) -> None:
        self.heard = b""
        self.failure: Exception | None = None
        self._url = f"{running_api.url}/api/v1/{path}"
        self._params = {"follow": True, **params}
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._leaves = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream(
                "GET", self._url, params=self._params, headers=self._headers, timeout=20, trust_env=False
            ) as answer:
                for block in answer.iter_bytes():
                    self.heard += block
                    if self._leaves.is_set():
                        return
        except httpx.HTTPError as error:
            self.failure = error

    def leave(self) -> None:
        self._leaves.set()

    def wait(self) -> bytes:
        self._thread.join(15)
        assert not self._thread.is_alive()
        return self.heard


@pytest.fixture
def follow(running_api: RunningApi, quick: None) -> Iterator[Callable[..., Follower]]:
    return lambda path, **params: Follower(running_api, path, **params)


def test_a_log_comes_whole_as_text(api: TestClient, training: Training) -> None:
    training.log().write(0, WHOLE.encode())
    answer = api.get(training.path)
    assert (answer.status_code, answer.text) == (200, WHOLE)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (answer.headers["samstudy-attempt"], answer.headers["samstudy-log-offset"]) == ("1", "0")


@on_sqlite
@pytest.mark.parametrize("after", [0, 1, 5, 20, len(WHOLE.encode()), 10_000])
def test_a_reader_goes_on_after_any_byte(api: TestClient, training: Training, after: int) -> None:
    training.log().write(0, WHOLE.encode()[:7])
    training.log().write(7, WHOLE.encode()[7:])
    answer = api.get(training.path, params={"after": after})
    assert (answer.status_code, answer.content) == (200, WHOLE.encode()[after:])
    assert answer.headers["samstudy-log-offset"] == str(after)


def test_the_last_lines_say_where_they_begin(api: TestClient, training: Training) -> None:
    training.log().write(0, WHOLE.encode())
    answer = api.get(training.path, params={"tail": 2})
    assert answer.text == "epoch 2\nthe end\n"
    assert answer.headers["samstudy-log-offset"] == str(len(WHOLE.encode()) - len(answer.content))
    assert api.get(training.path, params={"tail": 0}).text == ""
    assert api.get(training.path, params={"tail": 99}).text == WHOLE


def test_the_newest_attempt_is_the_default(api: TestClient, training: Training) -> None:
    training.log(1).write(0, b"the first")
    training.end()
    training.life.begin(training.driver, training.trial, 2)
    training.log(2).write(0, b"the second")
    assert api.get(training.path).text == "the second"
    assert api.get(training.path, params={"attempt": 1}).text == "the first"


def test_an_attempt_that_wrote_nothing_has_an_empty_log(api: TestClient, training: Training) -> None:
    answer = api.get(training.path)
    assert (answer.status_code, answer.text) == (200, "")


def test_what_is_not_there_is_404(api: TestClient, life: Life, training: Training) -> None:
    other = life.propose(training.driver, {"lambda": 1.0, "rho": 0.1}, (0,))[0]
    waiting = training.path.replace(training.trial.id, other.id)
    for path, attempt, code, words in (
        (training.path, 2, "attempt_not_found", "has no attempt 2; its attempts: 1"),
        (waiting, None, "attempt_not_found", "has not been started yet: it is PENDING"),
        (training.path.replace(training.trial.id, "none"), None, "trial_not_found", "none"),
        (training.path.replace(training.study.id, "none", 1), None, "study_not_found", "none"),
    ):
        for follow in (False, True):
            answer = api.get(path, params={"follow": follow, **({"attempt": attempt} if attempt else {})})
            assert (answer.status_code, answer.json()["code"]) == (404, code)
            assert words in answer.json()["detail"]


@on_sqlite
@pytest.mark.parametrize(
    "query", ["attempt=0", "attempt=x", "attempt=99999999999", "after=-1", "tail=-1", "tail=1e9", "follow=maybe"]
)
def test_a_query_that_makes_no_sense_is_422(api: TestClient, training: Training, query: str) -> None:
    answer = api.get(f"{training.path}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_storage_that_does_not_answer_is_503(api: TestClient, training: Training, api_settings: Settings) -> None:
    api_settings.home.mkdir(exist_ok=True)
    (api_settings.home / "storage").symlink_to("storage")
    answer = api.get(training.path)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


def test_a_large_log_comes_whole(api: TestClient, training: Training) -> None:
    piece = b"0123456789abcde\n" * 65_536
    for number in range(10):
        training.log().write(number * len(piece), piece)
    assert api.get(training.path).content == 10 * piece


def test_a_follower_hears_it_all_and_leaves_with_the_attempt(
    training: Training,
    follow: Callable[..., Follower],
    wait_until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "GRACE_S", 60.0)  # it leaves because the log says that this was all
    follower = follow(training.path)
    log, content = training.log(), WHOLE.encode()
    for end in range(1, 20):  # also in the middle of a character
        log.write(0, content[:end])
        wait_until(lambda end=end: follower.heard == content[:end])
    training.end()
    log.write(0, content)  # the last words come after the store has heard of the end
    log.finish()
    assert follower.wait() == content
    assert follower.failure is None


def test_a_follower_waits_for_the_attempt_not_for_its_words(
    training: Training, follow: Callable[..., Follower], wait_until: Callable[..., None]
) -> None:
    training.log().write(0, b"said\n")
    follower = follow(training.path)
    wait_until(lambda: follower.heard == b"said\n")
    threading.Event().wait(0.3)
    assert follower._thread.is_alive()
    training.log().finish()
    training.end()
    assert follower.wait() == b"said\n"


def test_a_follower_of_a_killed_worker_does_not_wait_for_ever(
    training: Training, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "GRACE_S", 0.1)
    training.log().write(0, b"its last")
    training.end()
    assert follow(training.path).wait() == b"its last"


def test_an_attempt_that_has_ended_is_followed_to_its_end(training: Training, follow: Callable[..., Follower]) -> None:
    training.log().write(0, WHOLE.encode())
    training.log().finish()
    training.end()
    assert follow(training.path, tail=1).wait() == b"the end\n"
    assert follow(training.path, after=len(WHOLE.encode())).wait() == b""


def test_a_server_that_stops_does_not_make_it_look_like_the_end(
    running_api: RunningApi, training: Training, follow: Callable[..., Follower], wait_until: Callable[..., None]
) -> None:
    training.log().write(0, b"so far")
    follower = follow(training.path)
    wait_until(lambda: follower.heard == b"so far")
    running_api.stop()
    follower.wait()
    assert isinstance(follower.failure, httpx.RemoteProtocolError)


def test_a_key_that_is_revoked_hears_nothing_more(
    running_api: RunningApi,
    training: Training,
    follow: Callable[..., Follower],
    wait_until: Callable[..., None],
    database: Database,
) -> None:
    keys = KeyStore(database)
    key, token = keys.create(NewKey(owner=training.study.owner, role=Role.USER))
    training.log().write(0, b"so far")
    follower = follow(training.path, key=token.text)
    wait_until(lambda: follower.heard == b"so far")
    keys.revoke(key.id)
    assert follower.wait() == b"so far"
    assert isinstance(follower.failure, httpx.RemoteProtocolError)


def test_one_follower_too_many_is_refused_and_readers_are_not(
    database: Database, api_settings: Settings, training: Training
) -> None:
    app = create_app(database, api_settings.model_copy(update={"max_streams": 1}))
    with TestClient(app, "http://testserver/api/v1/") as client:
        training.log().write(0, b"all")
        with app.state.open_streams.one_more("address testclient"):
            answer = client.get(training.path, params={"follow": True})
            assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
            assert "SAMSTUDY_MAX_STREAMS" in answer.json()["detail"]
            assert client.get(training.path).text == "all"
        training.log().finish()
        training.end()
        for _ in range(2):
            assert client.get(training.path, params={"follow": True}).text == "all"


def test_storage_that_goes_away_does_not_make_it_look_like_the_end(
    training: Training, follow: Callable[..., Follower], wait_until: Callable[..., None], api_settings: Settings
) -> None:
    training.log().write(0, b"so far")
    follower = follow(training.path)
    wait_until(lambda: follower.heard == b"so far")
    storage = api_settings.home / "storage"
    storage.rename(storage.with_name("away"))
    storage.symlink_to("storage")
    follower.wait()
    assert isinstance(follower.failure, httpx.RemoteProtocolError)


def test_a_follower_that_leaves_while_nothing_is_said_frees_its_stream(
    running_api: RunningApi,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
    wait_until: Callable[..., None],
) -> None:
    looks: list[str] = []
    look = TrialLog.extent

    def counted(log: TrialLog) -> Any:
        looks.append("look")
        return look(log)

    monkeypatch.setattr(TrialLog, "extent", counted)
    with httpx.stream(
        "GET", f"{running_api.url}/api/v1/{training.path}", params={"follow": True}, trust_env=False
    ) as answer:
        assert answer.status_code == 200
        wait_until(lambda: len(looks) > 3)

    def quiet() -> bool:
        before = len(looks)
        threading.Event().wait(0.1)
        return len(looks) == before

    wait_until(quiet)


def test_followers_do_not_keep_others_waiting(running_api: RunningApi, training: Training) -> None:
    with httpx.Client(base_url=f"{running_api.url}/api/v1/", timeout=10, trust_env=False) as client:
        open_streams = [client.stream("GET", training.path, params={"follow": True}) for _ in range(20)]
        for stream in open_streams:
            assert stream.__enter__().status_code == 200
        assert client.get("/healthz").elapsed.total_seconds() < 5
        for stream in open_streams:
            stream.__exit__(None, None, None)


def test_the_openapi_document_describes_it(api: TestClient) -> None:
    document = api.get("http://testserver/openapi.json").json()
    route = document["paths"]["/api/v1/studies/{study_id}/trials/{trial_id}/logs"]["get"]
    assert set(route["responses"]["200"]["content"]) == {"text/plain"}
    assert {"Samstudy-Attempt", "Samstudy-Log-Offset"} == set(route["responses"]["200"]["headers"])
    assert {"404", "422", "429", "503"} <= set(route["responses"])
    assert [one["name"] for one in route["parameters"]] == [
        "study_id",
        "trial_id",
        "attempt",
        "follow",
        "tail",
        "after",
    ]


def test_a_storage_that_says_nothing_keeps_no_other_request_waiting(
    api: TestClient, training: Training, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    answers, asked = threading.Event(), []
    app: Any = api.app
    app.state.storage_reads = StorageReads(patience_s=2)

    def hang(_log: TrialLog) -> None:
        asked.append(1)
        assert answers.wait(30)
        raise OSError("at last")

    with monkeypatch.context() as patched, ThreadPoolExecutor(EACH + 1) as pool:
        patched.setattr(TrialLog, "extent", hang)
        reading = [pool.submit(api.get, training.path) for _ in range(EACH + 1)]
        wait_until(lambda: len(asked) == EACH)
        assert api.get("studies").status_code == 200
        said = sorted(answer.result(20).json()["detail"] for answer in reading)
    assert said == [
        *EACH * ["the log cannot be read: the storage has not answered within 2 s"],
        "the log cannot be read: the storage is busy with other reads, or does not answer them",
    ]
    answers.set()
    wait_until(lambda: api.get(training.path).status_code == 200)  # the places are free again
