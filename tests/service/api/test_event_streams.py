"""GET …/events over a real connection: complete, in order, resumable, and gone when its reader is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from starlette.testclient import TestClient

from service.access import NewKey, Role
from service.api import events
from service.settings import Settings
from service.store import tables
from service.store.changing import StudyChanges
from service.store.database import Database
from service.store.keys import KeyStore
from service.store.lifecycle import LifecycleStore

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi


class Message(NamedTuple):
    id: int | None
    event: str
    data: Any


def read(url: str, *, limit: int | None = None, **request: Any) -> list[Message]:
    """The stream's messages: all of them, or the first `limit`."""
    messages: list[Message] = []
    fields: dict[str, str] = {}
    with httpx.stream("GET", url, timeout=20, trust_env=False, **request) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
                continue
            number = int(fields["id"]) if "id" in fields else None
            messages.append(Message(number, fields["event"], json.loads(fields["data"])))
            fields = {}
            if len(messages) == limit:
                break
    return messages


def events_url(running_api: RunningApi, study_id: str) -> str:
    return f"{running_api.url}/api/v1/studies/{study_id}/events"


def test_a_finished_study_tells_its_whole_story_and_ends(running_api: RunningApi, life: Life) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.8)})
    *told, end = read(events_url(running_api, study.id))
    stored = life.studies.events(study.id)
    assert [message.id for message in told] == [event.id for event in stored]
    assert [message.event for message in told] == [event.kind for event in stored]
    assert [message.data for message in told] == [event.model_dump(mode="json") for event in stored]
    assert told[-1].data["data"]["state"] == "SUCCEEDED"
    assert end == Message(None, "stream.end", {})


def test_what_happens_while_somebody_reads_is_told(
    running_api: RunningApi, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.01)
    study = life.create()
    told: list[Message] = []
    reader = threading.Thread(target=lambda: told.extend(read(events_url(running_api, study.id))))
    reader.start()
    driver = life.start(study)
    life.train(driver, life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0,))[0], 0.9)
    life.succeed(driver)
    reader.join(10)
    assert [message.event for message in told] == [
        "study.state",
        "study.state",
        "trial.state",
        "trial.state",
        "study.state",
        "stream.end",
    ]


@pytest.mark.parametrize("how", ["header", "query", "header wins"])
def test_a_reader_resumes_without_a_gap_or_a_duplicate(running_api: RunningApi, life: Life, how: str) -> None:
    study = life.finished({(0.0, 0.1): (0.9, 0.8), (0.5, 0.1): (0.7, 0.6)})
    url = events_url(running_api, study.id)
    first = read(url, limit=3)
    last = first[-1].id
    requests: dict[str, dict[str, Any]] = {
        "header": {"headers": {"Last-Event-ID": str(last)}},
        "query": {"params": {"after": last}},
        "header wins": {"headers": {"Last-Event-ID": str(last)}, "params": {"after": 0}},
    }
    rest = read(url, **requests[how])[:-1]
    assert [message.id for message in first + rest] == [event.id for event in life.studies.events(study.id)]


def test_more_events_than_one_look_at_the_store_takes_come_whole(
    running_api: RunningApi, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BATCH", 3)
    study = life.finished({(0.0, rho): (0.9, 0.8) for rho in (0.1, 0.2, 0.3)})
    told = read(events_url(running_api, study.id))[:-1]
    assert [message.id for message in told] == [event.id for event in life.studies.events(study.id)]


@pytest.mark.parametrize("value", ["-1", "x", str(2**63)])
def test_a_last_event_id_that_is_none_is_422(api: TestClient, life: Life, value: str) -> None:
    study = life.create()
    for request in ({"headers": {"Last-Event-ID": value}}, {"params": {"after": value}}):
        answer = api.get(f"studies/{study.id}/events", **request)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_reader_that_leaves_frees_its_stream(
    running_api: RunningApi,
    life: Life,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    looks: list[str] = []
    look = events._news

    def counted(*arguments: Any) -> Any:
        looks.append("look")
        return look(*arguments)

    monkeypatch.setattr(events, "_news", counted)
    monkeypatch.setattr(events, "POLL_S", 0.02)
    study = life.create()
    read(events_url(running_api, study.id), limit=1)
    httpx.get(f"{running_api.url}/healthz", trust_env=False)

    def quiet() -> bool:
        before = len(looks)
        threading.Event().wait(0.1)
        return len(looks) == before

    wait_until(quiet)


def test_readers_do_not_keep_others_waiting(running_api: RunningApi, life: Life) -> None:
    study = life.create()
    with httpx.Client(base_url=running_api.url, timeout=10, trust_env=False) as client:
        open_streams = [client.stream("GET", events_url(running_api, study.id)) for _ in range(20)]
        for stream in open_streams:
            assert stream.__enter__().status_code == 200
        assert client.get("/healthz").elapsed.total_seconds() < 5
        for stream in open_streams:
            stream.__exit__(None, None, None)


class TestAccess:
    """A stream lasts no longer than the access of whoever reads it."""

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "POLL_S", 0.02)

    def listen(self, url: str, **request: Any) -> tuple[threading.Thread, list[Message], threading.Event]:
        told: list[Message] = []
        begun = threading.Event()

        def run() -> None:
            with httpx.stream("GET", url, timeout=20, trust_env=False, **request) as response:
                for line in response.iter_lines():
                    if line.startswith("event:"):
                        told.append(Message(None, line.removeprefix("event: "), None))
                        begun.set()

        reader = threading.Thread(target=run)
        reader.start()
        assert begun.wait(10)
        return reader, told, begun

    def test_a_key_that_is_revoked_hears_nothing_more(
        self, running_api: RunningApi, life: Life, database: Database
    ) -> None:
        study = life.create()
        keys = KeyStore(database)
        key, token = keys.create(NewKey(owner=study.owner, role=Role.USER))
        other = keys.create(NewKey(owner=study.owner, role=Role.USER))[1]
        url = events_url(running_api, study.id)
        ended, told, _ = self.listen(url, headers={"Authorization": f"Bearer {token.text}"})
        going_on, told_to_other, _ = self.listen(url, headers={"Authorization": f"Bearer {other.text}"})
        keys.revoke(key.id)
        ended.join(5)
        assert not ended.is_alive()
        LifecycleStore(database).cancel(study.id)
        going_on.join(10)
        assert [message.event for message in told] == ["study.state"]
        assert [message.event for message in told_to_other] == ["study.state", "study.state", "stream.end"]

    def test_the_first_key_ends_the_streams_that_were_opened_without_one(
        self, running_api: RunningApi, life: Life, database: Database
    ) -> None:
        reader, told, _ = self.listen(events_url(running_api, life.create().id))
        KeyStore(database).create(NewKey(owner="ada", role=Role.USER))
        reader.join(6)
        assert not reader.is_alive()
        assert [message.event for message in told] == ["study.state"]


class TestLimit:
    """How many streams one caller may have open."""

    @pytest.fixture
    def api_settings(self, api_settings: Settings) -> Settings:
        return api_settings.model_copy(update={"max_streams": 2})

    def test_one_stream_too_many_is_refused_until_another_ends(
        self, running_api: RunningApi, life: Life, database: Database, wait_until: Callable[..., None]
    ) -> None:
        study = life.create()
        url = events_url(running_api, study.id)
        ada, bob = (
            {"Authorization": f"Bearer {KeyStore(database).create(NewKey(owner=study.owner, role=Role.USER))[1].text}"}
            for _ in range(2)
        )
        with httpx.Client(timeout=10, trust_env=False) as client, ExitStack() as streams:
            first, _ = (streams.enter_context(client.stream("GET", url, headers=ada)) for _ in range(2))
            refused = client.get(url, headers=ada)
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
            assert refused.headers["content-type"] == "application/problem+json"
            assert "at most 2 event streams and followed logs" in refused.json()["detail"]
            assert streams.enter_context(client.stream("GET", url, headers=bob)).status_code == 200
            first.close()

            def there_is_room() -> bool:
                with client.stream("GET", url, headers=ada) as answer:
                    return answer.status_code == 200

            wait_until(there_is_room)

    def test_what_is_refused_or_has_ended_takes_no_place(self, api: TestClient, life: Life) -> None:
        ended = life.finished({(0.0, 0.1): (0.9, 0.8)})
        for _ in range(5):
            assert api.get("studies/nowhere/events").status_code == 404
            assert api.get(f"studies/{ended.id}/events?after=-1").status_code == 422
            assert api.get(f"studies/{ended.id}/events").status_code == 200


def test_an_idle_stream_takes_one_transaction_a_look(
    running_api: RunningApi,
    life: Life,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., None],
) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.02)
    monkeypatch.setattr(events, "LOOK_S", 1e9)
    looks: list[str] = []
    transactions: list[str] = []
    look, reading = events._news, database.reading
    monkeypatch.setattr(events, "_news", lambda *arguments: (looks.append("look"), look(*arguments))[1])
    monkeypatch.setattr(database, "reading", lambda: (transactions.append("reading"), reading())[1])
    study = life.create()
    with httpx.stream("GET", events_url(running_api, study.id), timeout=20, trust_env=False):
        wait_until(lambda: len(looks) >= 20)
        assert len(transactions) < 1.5 * len(looks)


def test_a_reader_who_knows_events_that_never_were_hears_of_the_end(
    running_api: RunningApi, life: Life, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOK_S", 0.1)
    study = life.create()
    told: list[Message] = []
    url = events_url(running_api, study.id)
    reader = threading.Thread(target=lambda: told.extend(read(url, params={"after": 10**9})))
    reader.start()
    LifecycleStore(database).cancel(study.id)
    reader.join(10)
    assert told == [Message(None, "stream.end", {})]


def test_a_server_that_stops_ends_its_streams_without_saying_the_study_ended(
    running_api: RunningApi, life: Life
) -> None:
    study = life.create()
    told: list[Message] = []
    first = threading.Event()

    def listen() -> None:
        with httpx.stream("GET", events_url(running_api, study.id), timeout=20, trust_env=False) as response:
            for line in response.iter_lines():
                if line.startswith("event:"):
                    told.append(Message(None, line.removeprefix("event: "), None))
                    first.set()

    reader = threading.Thread(target=listen)
    reader.start()
    assert first.wait(10)
    running_api.stop()
    reader.join(5)
    assert not reader.is_alive()
    assert [message.event for message in told] == ["study.state"]


def test_a_study_that_goes_on_after_its_end_can_be_followed_again(
    running_api: RunningApi, life: Life, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.01)
    study = life.finished({(0.0, 0.1): (0.9, 0.8)}, budget={"max_trials": 2})
    url = events_url(running_api, study.id)
    *before, end = read(url)
    assert end.event == "stream.end"
    lifecycle = LifecycleStore(database)
    lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 4}), if_version=None)
    after: list[Message] = []
    headers = {"Last-Event-ID": str(before[-1].id)}
    reader = threading.Thread(target=lambda: after.extend(read(url, headers=headers)))
    reader.start()
    life.succeed(life.start(study))
    reader.join(10)
    assert [message.event for message in after] == ["study.changed", *["study.state"] * 3, "stream.end"]
    assert [message.id for message in [*before, *after[:-1]]] == [event.id for event in life.studies.events(study.id)]


def test_a_paused_study_is_no_end(running_api: RunningApi, life: Life, database: Database) -> None:
    study = life.create()
    LifecycleStore(database).pause(study.id)
    told: list[Message] = []
    reader = threading.Thread(target=lambda: told.extend(read(events_url(running_api, study.id))))
    reader.start()
    reader.join(0.7)
    assert reader.is_alive()
    LifecycleStore(database).cancel(study.id)
    reader.join(10)
    assert [message.event for message in told] == [*["study.state"] * 3, "stream.end"]


def test_a_study_that_is_deleted_ends_its_streams(running_api: RunningApi, life: Life, database: Database) -> None:
    study = life.create()
    lines: list[str] = []
    with httpx.stream("GET", events_url(running_api, study.id), timeout=20, trust_env=False) as response:
        for line in response.iter_lines():
            lines.append(line)
            if line.startswith("data:"):  # deleted at once, so that the reader never sees the study's end
                with database.writing() as connection:
                    connection.execute(tables.studies.delete().where(tables.studies.c.id == study.id))
    assert [line for line in lines if line.startswith("event:")] == ["event: study.state"]
