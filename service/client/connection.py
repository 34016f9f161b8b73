"""The connection to a samstudy service: its address, its key, questions asked again while nothing answers, streams."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from service.addresses import on_this_machine, running_addresses
from service.answers import STREAM_END, Problem
from service.errors import (
    FieldProblem,
    SamstudyError,
    ServiceUnavailableError,
    StoppingError,
    StoreUnavailableError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from service.event_stream import ServerMessage, server_messages
from service.settings import HOW_TO_ESCAPE, settings, without_user
from service.study import Event

DEFAULT_URL = "http://127.0.0.1:8321"

_PREFIX = "/api/v1"
_EVENT_STREAM = "text/event-stream"
_SILENCE_S = 40.0  # the service writes something into an event stream every 15 s
_RECONNECT_S = 60.0
_SETTLED_S = 1.0  # a connection that lasted as long was to the service; others may be cut off by what is in between
_UNANSWERED = (
    httpx.TransportError,
    ServiceUnavailableError,
    StoppingError,
    StoreUnavailableError,
    TooManyRequestsError,
)

Answer = TypeVar("Answer")


class Connection:
    """Where a service is and how it is asked. Requests are tried again for `patience_s` while it does not answer.

    `url` is shown in errors and links: without the user name and password that it may have been given with.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 2.0,
    ) -> None:
        given = (url or _default_url()).rstrip("/").removesuffix(_PREFIX)
        self.url = without_user(given)
        if "://" not in given:
            raise ServiceUnavailableError(
                f"{self.url!r} is no address of a service: it must begin with http:// or https://"
            )
        headers = _key_header(settings().api_key.get_secret_value() if api_key is None else api_key)
        try:
            httpx.URL(given).host.encode("idna")  # else it is looked at only when it is asked
            self._http = httpx.Client(
                base_url=given, headers=headers, timeout=timeout_s, trust_env=not on_this_machine(given)
            )
        except (httpx.InvalidURL, ValueError) as error:
            reason = str(error) if self.url == given else HOW_TO_ESCAPE  # the error may quote a part of it
            raise ServiceUnavailableError(f"{self.url!r} is no address of a service: {reason}") from None
        self.patience_s = patience_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def events(self, study_id: str, *, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """What happened to a study after the event with this id, as it happens, until the study has ended.

        A connection that breaks is taken up again where it broke. Raises TimeoutError after `timeout_s`, and once there
        has been none for a minute ServiceUnavailableError, or what the service refuses it for: TooManyRequestsError,
        StoreUnavailableError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        away_since: float | None = None
        while True:
            failure: Exception | str = "the stream broke off"
            opened_at = math.inf
            try:
                for message in self._stream(study_id, after, deadline):
                    if message is not None or opened_at < math.inf:  # more than that it is open
                        away_since = None
                    opened_at = min(opened_at, time.monotonic())
                    if message is None:
                        continue
                    if message.name == STREAM_END:
                        return
                    event = Event.model_validate_json(message.data)
                    after = event.id
                    yield event
            except _UNANSWERED as error:
                failure = error
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"study {study_id} has not ended within {timeout_s:g} s")
            if away_since is None or now - opened_at >= _SETTLED_S:
                away_since = now
            if now - away_since > _RECONNECT_S:
                if isinstance(failure, SamstudyError) and not isinstance(failure, StoppingError):
                    raise failure
                raise _unavailable(self.url, str(failure))
            time.sleep(min(2.0, 0.1 + (now - away_since) / 4))

    def _stream(self, study_id: str, after: int, deadline: float | None) -> Iterator[ServerMessage | None]:
        """The messages of one connection; None where it is open, and for each later sign of life."""
        left = _SILENCE_S if deadline is None else max(0.001, min(_SILENCE_S, deadline - time.monotonic()))
        timeout = httpx.Timeout(self._http.timeout.connect, read=left)
        headers = {"Last-Event-ID": str(after), "Accept": _EVENT_STREAM}
        path = f"{_PREFIX}{study_path(study_id)}/events"
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code != 200 or not response.headers.get("content-type", "").startswith(_EVENT_STREAM):
                response.read()
                raise _error_of(response, self.url)
            yield None
            for message in server_messages(response.iter_bytes()):
                yield message
                if deadline is not None and time.monotonic() >= deadline:
                    return

    @contextmanager
    def _opened(self, path: str, params: Mapping[str, str]) -> Iterator[httpx.Response]:
        """An answer while it comes in. Raises the error that it says, ServiceUnavailableError where it breaks off."""
        timeout = httpx.Timeout(self._http.timeout.connect, read=_RECONNECT_S)  # a training may be silent for long
        try:
            with self._http.stream("GET", _PREFIX + path, params=dict(params), timeout=timeout) as response:
                if response.status_code != 200:
                    response.read()
                    raise _error_of(response, self.url)
                yield response
        except httpx.TransportError as error:
            raise _unavailable(self.url, str(error) or type(error).__name__) from error

    def _ask(self, answer: type[Answer], method: str, path: str, *, once_only: bool = False, **request: Any) -> Answer:
        """Asks, again while nothing answers, unless that could do harm; no content is None."""

        def once() -> httpx.Response:
            response = self._http.request(method, _PREFIX + path, **request)
            if not response.is_success:
                raise _error_of(response, self.url)
            return response

        response = self._patiently(once, patience_s=0 if once_only else self.patience_s)
        try:
            return TypeAdapter(answer).validate_json(response.content or b"null")
        except ValidationError as error:
            raise ServiceUnavailableError(f"what answers at {self.url} is not a samstudy service") from error

    def _patiently(self, once: Callable[[], httpx.Response], *, patience_s: float) -> httpx.Response:
        retrying = Retrying(
            retry=retry_if_exception_type(_UNANSWERED),
            stop=stop_after_delay(patience_s),
            wait=wait_exponential_jitter(multiplier=0.05, max=0.5, jitter=0.05),
            reraise=True,
        )
        try:
            return retrying(once)
        except httpx.TransportError as error:
            raise _unavailable(self.url, str(error) or type(error).__name__) from error


def study_path(study_id: str) -> str:
    """The path of a study, below the prefix."""
    return f"/studies/{quoted(study_id)}"


def quoted(part: str) -> str:
    """The part as it may stand in a path: also one that would name this folder or the one above."""
    return quote(part, safe="") if part.strip(".") else part.replace(".", "%2E")


def _default_url() -> str:
    found = settings().url or running_addresses(settings().home)
    return found if isinstance(found, str) else found.api_url if found else DEFAULT_URL


def _key_header(api_key: str) -> dict[str, str]:
    """The header that carries the key. Raises UnauthenticatedError for what cannot be one, without showing it."""
    api_key = api_key.strip()
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise UnauthenticatedError("SAMSTUDY_API_KEY is no key: it has characters that no key has")
    return {"Authorization": f"Bearer {api_key}"}


def _unavailable(url: str, reason: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"no samstudy service answers at {url} ({reason}): start one with `samstudy up`, or set SAMSTUDY_URL"
    )


def _error_of(response: httpx.Response, url: str) -> SamstudyError:
    """The error that the service answered with: of the class that has its code, where there is one."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return _unavailable(url, f"HTTP {response.status_code}")
    known = {error.code: error for error in SamstudyError.__subclasses__()}
    error_type = known.get(problem.code, SamstudyError)
    error = error_type.__new__(error_type)
    problems = [FieldProblem(item.field, item.message) for item in problem.errors]
    SamstudyError.__init__(error, problem.detail, problems=problems)
    error.status, error.code, error.title = problem.status, problem.code, problem.title
    return error
