"""Several API processes over one store, as behind a balancer: which of them answers makes no difference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.service.processes import DEADLINE_S, Process, answers


@pytest.fixture(params=["sqlite", "postgresql"])
def store_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def apis(start: Callable[..., Process], wait_until: Callable[..., None]) -> Iterator[list[httpx.Client]]:
    """Clients of two API processes."""
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    for url in urls:
        start("api", PORT=url.rpartition(":")[2])
    for url in urls:
        wait_until(lambda url=url: answers(f"{url}/readyz"), DEADLINE_S)
    with ExitStack() as stack:
        yield [
            stack.enter_context(httpx.Client(base_url=f"{url}/api/v1/", timeout=DEADLINE_S, trust_env=False))
            for url in urls
        ]


def test_which_api_answers_makes_no_difference(
    apis: list[httpx.Client], a_spec: dict[str, Any], wait_until: Callable[..., None]
) -> None:
    first, second = apis
    created: list[httpx.Response] = []

    def post(api: httpx.Client) -> None:
        created.append(api.post("studies", json=a_spec, headers={"Idempotency-Key": "once"}))

    posting = [threading.Thread(target=post, args=(api,)) for api in apis * 4]
    for thread in posting:
        thread.start()
    for thread in posting:
        thread.join(DEADLINE_S)
    assert sorted(answer.status_code for answer in created) == [200] * 7 + [201]
    (study_id,) = {answer.json()["id"] for answer in created}
    path = f"studies/{study_id}"

    told: list[str] = []

    def follow() -> None:
        with second.stream("GET", f"{path}/events") as stream:
            told.extend(line for line in stream.iter_lines() if line.startswith(("id:", "event:")))

    following = threading.Thread(target=follow)
    following.start()
    wait_until(lambda: bool(told), DEADLINE_S)

    read = second.get(path)
    tag = {"If-Match": read.headers["ETag"]}
    assert first.patch(path, json={"description": "new"}, headers=tag).status_code == 200
    assert second.patch(path, json={"description": "late"}, headers=tag).status_code == 412
    assert second.get(path).json()["description"] == "new"
    assert first.post(f"{path}/pause").status_code == 200
    assert second.post(f"{path}/cancel").json()["state"] == "CANCELLED"
    following.join(DEADLINE_S)
    assert not following.is_alive(), "the stream ends with the study, whoever ended it"
    with first.stream("GET", f"{path}/events") as stream:
        assert told == [line for line in stream.iter_lines() if line.startswith(("id:", "event:"))]
    assert len({line for line in told if line.startswith("id:")}) >= 3

    key = first.post("keys", json={"owner": "ops", "role": "admin"}).json()
    wait_until(lambda: second.get("studies").status_code == 401, 5)
    with_key = {"Authorization": f"Bearer {key['token']}"}
    assert second.get("studies", headers=with_key).status_code == 200
    assert second.delete(f"keys/{key['id']}", headers=with_key).is_success
    wait_until(lambda: first.get("studies", headers=with_key).status_code == 401, 5)
