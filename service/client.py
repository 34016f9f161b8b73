"""The Python client: the REST surface as methods that answer with the service's own models.

with Client() as client:
    study = client.submit("study.yaml").wait()
    print(study.best)
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
from pydantic import TypeAdapter, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from service.addresses import running_addresses
from service.analysis.aggregation import ConfigurationResult
from service.analysis.surface import Surface
from service.answers import (
    STREAM_END,
    BestConfiguration,
    ConfigurationList,
    DatasetList,
    ModelList,
    Problem,
    ResultList,
    SearchSpaceAnswer,
    SearchSpaceList,
    Status,
    StudyComparison,
    StudyDetail,
    StudyList,
    StudyOverview,
    TrialDetail,
    TrialList,
)
from service.errors import FieldProblem, SamstudyError, ServiceUnavailableError, StoreUnavailableError
from service.event_stream import ServerMessage, server_messages
from service.settings import settings
from service.spec import Plan, StudySpec, load_spec
from service.study import Event, Result, Study, StudyState, Trial, TrialState
from trainers.catalog import DatasetFacts, ModelFacts

Spec = StudySpec | Mapping[str, Any] | str | Path
"""A study spec, the same as plain data, or the YAML or JSON file that holds it."""

DEFAULT_URL = "http://127.0.0.1:8321"

_PREFIX = "/api/v1"
_SILENCE_S = 40.0  # the service writes something into an event stream every 15 s
_RECONNECT_S = 60.0
_UNANSWERED = (httpx.TransportError, ServiceUnavailableError, StoreUnavailableError)

_JSON = {"Content-Type": "application/json"}

Answer = TypeVar("Answer")


class Client:
    """A samstudy service. Requests are tried again for `patience_s` while it does not answer.

    url: by default SAMSTUDY_URL, else the service that `samstudy up` runs here, else http://127.0.0.1:8321.
    Every method raises the SamstudyError that the service answered with, by its code, with its field problems, and
    ServiceUnavailableError where none answers.
    """

    def __init__(self, url: str | None = None, *, timeout_s: float = 30.0, patience_s: float = 2.0) -> None:
        self.url = (url or _default_url()).rstrip("/")
        try:
            self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=not _is_loopback(self.url))
        except (httpx.InvalidURL, ValueError) as error:
            raise ServiceUnavailableError(f"{self.url!r} is no address of a service: {error}") from error
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

    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> StudyHandle:
        """Posts a study. A key of its own makes sure that a request sent twice never makes two."""
        headers = {**_JSON, "Idempotency-Key": idempotency_key or uuid4().hex}
        return StudyHandle(self, self._ask(Study, "POST", "/studies", content=_as_json(spec), headers=headers))

    def plan(self, spec: Spec) -> Plan:
        """How much the study would run; nothing is stored."""
        return self._ask(
            Plan, "POST", "/studies", content=_as_json(spec), headers=_JSON, params={"validate_only": True}
        )

    def studies(
        self,
        *,
        states: Sequence[StudyState] = (),
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        page_size: int = 50,
    ) -> Iterator[StudyOverview]:
        """Studies, newest first, page after page as they are asked for."""
        params: dict[str, Any] = {"page_size": page_size, "state": list(states)}
        params["label"] = [f"{key}:{value}" for key, value in (labels or {}).items()]
        if name is not None:
            params["name"] = name
        while True:
            page = self._ask(StudyList, "GET", "/studies", params=params)
            yield from page.studies
            if page.next_page_token is None:
                return
            params["page_token"] = page.next_page_token

    def handle(self, study_id: str) -> StudyHandle:
        """The handle of a study that is there already. Raises StudyNotFoundError."""
        return StudyHandle(self, self.study(study_id))

    def study(self, study_id: str) -> StudyDetail:
        """The study as a whole. Raises StudyNotFoundError."""
        return self._ask(StudyDetail, "GET", _study(study_id))

    def cancel(self, study_id: str) -> Study:
        """Ends a study now. Raises StudyNotFoundError, and InvalidTransitionError where it has ended."""
        return self._ask(Study, "POST", f"{_study(study_id)}/cancel")

    def configurations(
        self, study_id: str, *, order_by: Literal["number", "objective"] = "number"
    ) -> list[ConfigurationResult]:
        """Every configuration with its results over seeds."""
        path = f"{_study(study_id)}/configurations"
        return self._ask(ConfigurationList, "GET", path, params={"order_by": order_by}).configurations

    def configuration(self, study_id: str, configuration_id: str) -> ConfigurationResult:
        """One configuration. Raises ConfigurationNotFoundError."""
        path = f"{_study(study_id)}/configurations/{_quoted(configuration_id)}"
        return self._ask(ConfigurationResult, "GET", path)

    def trials(self, study_id: str, *, states: Sequence[TrialState] = ()) -> list[Trial]:
        """Trials in the order of their numbers."""
        return self._ask(TrialList, "GET", f"{_study(study_id)}/trials", params={"state": list(states)}).trials

    def trial(self, study_id: str, trial_id: str) -> TrialDetail:
        """One trial with its attempts. Raises TrialNotFoundError."""
        return self._ask(TrialDetail, "GET", f"{_study(study_id)}/trials/{_quoted(trial_id)}")

    def results(self, study_id: str, trial_id: str) -> list[Result]:
        """What a trial has reported, epoch by epoch. Raises TrialNotFoundError."""
        return self._ask(ResultList, "GET", f"{_study(study_id)}/trials/{_quoted(trial_id)}/results").results

    def best(self, study_id: str) -> ConfigurationResult | None:
        """The best configuration whose trials all succeeded; None while there is none."""
        return self._ask(BestConfiguration, "GET", f"{_study(study_id)}/best").best

    def surface(self, study_id: str, *, x: str = "lambda", y: str = "rho", panel: str | None = None) -> Surface:
        """The objective over two parameters. Raises InvalidRequestError where the space lacks one of them."""
        params = {"x": x, "y": y, **({} if panel is None else {"panel": panel})}
        return self._ask(Surface, "GET", f"{_study(study_id)}/surface", params=params)

    def compare(self, study_ids: Sequence[str], *, metric: str | None = None) -> StudyComparison:
        """The best configurations of several studies, each later one against the first."""
        params = {"ids": ",".join(study_ids), **({} if metric is None else {"metric": metric})}
        return self._ask(StudyComparison, "GET", "/studies:compare", params=params)

    def search_spaces(self) -> list[SearchSpaceAnswer]:
        """Every named search space."""
        return self._ask(SearchSpaceList, "GET", "/search-spaces").search_spaces

    def models(self) -> list[ModelFacts]:
        """Every model."""
        return self._ask(ModelList, "GET", "/models").models

    def datasets(self) -> list[DatasetFacts]:
        """Every dataset."""
        return self._ask(DatasetList, "GET", "/datasets").datasets

    def check_ready(self) -> None:
        """Raises ServiceUnavailableError or StoreUnavailableError unless the service can work."""
        self._ask(Status, "GET", "/readyz")

    def events(self, study_id: str, *, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """What happened to a study after the event with this id, as it happens, until the study has ended.

        A connection that breaks is taken up again where it broke. Raises TimeoutError after `timeout_s`, and
        ServiceUnavailableError once the service has been away for a minute.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        away_since: float | None = None
        while True:
            failure = "the stream broke off"
            try:
                for message in self._stream(study_id, after, deadline):
                    away_since = None
                    if message.name == STREAM_END:
                        return
                    event = Event.model_validate_json(message.data)
                    after = event.id
                    yield event
            except _UNANSWERED as error:
                failure = str(error)
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"study {study_id} has not ended within {timeout_s:g} s")
            away_since = now if away_since is None else away_since
            if now - away_since > _RECONNECT_S:
                raise _unavailable(self.url, failure)
            time.sleep(min(2.0, 0.1 + (now - away_since) / 4))

    def _stream(self, study_id: str, after: int, deadline: float | None) -> Iterator[ServerMessage]:
        left = _SILENCE_S if deadline is None else max(0.001, min(_SILENCE_S, deadline - time.monotonic()))
        timeout = httpx.Timeout(self._http.timeout.connect, read=left)
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        path = f"{_PREFIX}{_study(study_id)}/events"
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                raise _error_of(response, self.url)
            for message in server_messages(response.iter_bytes()):
                if message is not None:
                    yield message
                if deadline is not None and time.monotonic() >= deadline:
                    return

    def _ask(self, answer: type[Answer], method: str, path: str, **request: Any) -> Answer:
        """Asks, again while nothing answers: every request of this client can be sent twice without harm."""

        def once() -> httpx.Response:
            response = self._http.request(method, _PREFIX + path, **request)
            if not response.is_success:
                raise _error_of(response, self.url)
            return response

        response = self._patiently(once)
        try:
            return TypeAdapter(answer).validate_json(response.content)
        except ValidationError as error:
            raise ServiceUnavailableError(f"what answers at {self.url} is not a samstudy service") from error

    def _patiently(self, once: Callable[[], httpx.Response]) -> httpx.Response:
        retrying = Retrying(
            retry=retry_if_exception_type(_UNANSWERED),
            stop=stop_after_delay(self.patience_s),
            wait=wait_exponential_jitter(multiplier=0.05, max=0.5, jitter=0.05),
            reraise=True,
        )
        try:
            return retrying(once)
        except httpx.TransportError as error:
            raise _unavailable(self.url, str(error) or type(error).__name__) from error


class StudyHandle:
    """One study of a service."""

    def __init__(self, client: Client, study: Study) -> None:
        self.id = study.id
        self._client = client
        self.submitted = study

    def __repr__(self) -> str:
        return f"StudyHandle({self.id!r}, url={self._client.url!r})"

    def detail(self) -> StudyDetail:
        """The study as it is now."""
        return self._client.study(self.id)

    def wait(self, timeout_s: float | None = None) -> StudyDetail:
        """Waits until the study has ended, however. Raises TimeoutError after `timeout_s`; the study goes on then."""
        for _ in self._client.events(self.id, timeout_s=timeout_s):
            pass
        return self.detail()

    def cancel(self) -> Study:
        """Ends the study now. Raises InvalidTransitionError where it has ended."""
        return self._client.cancel(self.id)

    def configurations(self, *, order_by: Literal["number", "objective"] = "number") -> list[ConfigurationResult]:
        """Every configuration with its results over seeds."""
        return self._client.configurations(self.id, order_by=order_by)

    def trials(self, *, states: Sequence[TrialState] = ()) -> list[Trial]:
        """Trials in the order of their numbers."""
        return self._client.trials(self.id, states=states)

    def best(self) -> ConfigurationResult | None:
        """The best configuration whose trials all succeeded; None while there is none."""
        return self._client.best(self.id)

    def surface(self, *, x: str = "lambda", y: str = "rho", panel: str | None = None) -> Surface:
        """The objective over two parameters."""
        return self._client.surface(self.id, x=x, y=y, panel=panel)

    def events(self, *, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """What happened after the event with this id, as it happens, until the study has ended."""
        return self._client.events(self.id, after=after, timeout_s=timeout_s)


def _as_json(spec: Spec) -> bytes:
    if isinstance(spec, (str, Path)):
        spec = load_spec(spec)
    return json.dumps(spec.to_mapping() if isinstance(spec, StudySpec) else spec).encode()


def _study(study_id: str) -> str:
    return f"/studies/{_quoted(study_id)}"


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _default_url() -> str:
    found = settings().url or running_addresses(settings().home)
    return found if isinstance(found, str) else found.api_url if found else DEFAULT_URL


def _is_loopback(url: str) -> bool:
    """Whether the address is this machine's own, which no proxy stands in front of."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
