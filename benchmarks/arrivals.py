"""Requests that arrive at a constant rate, whether or not those before are answered: an open model, for locust.

`api_load.py` starts it; ARRIVALS names a file with the plan, and the answers go into the file that the plan names.

Each request has a moment at which it is due. What is measured is the time from that moment to the whole answer, so that
an API which holds up the callers does not hide how long those waited who would have come meanwhile (coordinated
omission); locust's own statistics begin when a request is sent.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from locust import FastHttpUser, constant, events, task

_plan: dict[str, Any] = json.loads(Path(os.environ["ARRIVALS"]).read_text())
_total = round(_plan["rate"] * _plan["seconds"])
_chance = random.Random(_plan["seed"])
_numbers = itertools.count()
_begin = time.perf_counter() + 2.0  # by then every caller waits for its first request
_page_tokens: dict[tuple[str, str], str | None] = {}
_answers: list[dict[str, Any]] = []


class Request(NamedTuple):
    """What is asked. kind: by which its time is reported. pages: whether the next one goes on from its answer."""

    kind: str
    method: str
    path: str
    token: str
    body: dict[str, Any] | None = None
    pages: bool = False


def _owner() -> tuple[str, str]:
    return _chance.choice(list(_plan["tokens"].items()))


def _list() -> Request:
    _, token = _owner()
    everything = _chance.random() < 0.2
    filters = _chance.choice(
        (
            "",
            "",
            "?state=SUCCEEDED&state=RUNNING",
            "?label=team:vision",
            "?name_contains=rho-1&order_by=name",
            "?page_size=20&created_after=2026-03-01T00:00:00Z",
        )
    )
    kind = "list studies, filtered" if filters else "list studies"
    return Request(kind, "GET", f"/studies{filters}", _plan["admin_token"] if everything else token, pages=True)


def _study() -> tuple[str, str, str]:
    """A study, in one of five cases the large one: which it is in words, its path, and the key of its owner."""
    if _chance.random() < 0.2:
        return " of 10,000 trials", f"/studies/{_plan['large_study']}", _plan["tokens"][_plan["large_owner"]]
    owner, token = _owner()
    return "", f"/studies/{_chance.choice(_plan['studies'][owner])}", token


def _show() -> Request:
    which, path, token = _study()
    return Request(f"show a study{which}", "GET", path, token)


def _best() -> Request:
    which, path, token = _study()
    return Request(f"best{which}", "GET", f"{path}/best", token)


def _trials() -> Request:
    which, path, token = _study()
    filters = _chance.choice(("", "", "?state=FAILED&state=EARLY_STOPPED", "?order_by=-number&page_size=50"))
    return Request(f"trials page{which}", "GET", f"{path}/trials{filters}", token, pages=True)


def _post() -> Request:
    _, token = _owner()
    return Request("post a study", "POST", "/studies", token, body=_plan["spec"])


_MIX: dict[Callable[[], Request], int] = {_list: 30, _show: 25, _best: 15, _trials: 20, _post: 10}


class Caller(FastHttpUser):
    """One of many who take the requests in turn; there are enough that one is always free."""

    host = _plan["url"]
    wait_time = constant(0)
    network_timeout = connection_timeout = 30.0

    @task
    def ask(self) -> None:
        """The next request, at the moment when it is due."""
        number = next(_numbers)
        if number >= _total:
            gevent.sleep(3600)
        request = _chance.choices(list(_MIX), weights=list(_MIX.values()))[0]()
        due = _begin + number / _plan["rate"]
        gevent.sleep(max(0.0, due - time.perf_counter()))
        path, key = request.path, (request.token, request.path)
        if request.pages and _page_tokens.get(key):
            path += f"{'&' if '?' in path else '?'}page_token={_page_tokens[key]}"
        sent = time.perf_counter()
        answer = self.client.request(
            request.method,
            path,
            name=request.kind,
            json=request.body,
            headers={"Authorization": f"Bearer {request.token}"},
        )
        now = time.perf_counter()
        _answers.append(
            {
                "kind": request.kind,
                "due_s": due - _begin,
                "late_s": sent - due,
                "seconds": now - due,
                "status": answer.status_code,
                "bytes": len(answer.content or b""),
            }
        )
        if request.pages and answer.status_code == 200:
            _page_tokens[key] = answer.json()["next_page_token"]
        if len(_answers) == _total:
            gevent.spawn(self.environment.runner.quit)  # which ends this caller too


@events.quitting.add_listener
def _write(**_: object) -> None:
    Path(_plan["out"]).write_text(json.dumps(_answers))
