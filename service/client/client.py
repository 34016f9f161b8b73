"""What can be asked of a service: the REST surface as methods that answer with the service's own models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from search_spaces.checking import shown
from service.analysis.aggregation import ConfigurationResult
from service.analysis.importances import ImportanceMethod
from service.analysis.surface import Surface
from service.analysis.trial_tables import TableFormat
from service.answers import (
    BestConfiguration,
    ConfigurationList,
    ConfigurationSortOrder,
    CreatedWebhook,
    DatasetList,
    Importances,
    ModelList,
    ResultList,
    SearchSpaceAnswer,
    SearchSpaceList,
    Status,
    StudyComparison,
    StudyDetail,
    StudyList,
    StudyOverview,
    StudySortOrder,
    TrialDetail,
    TrialList,
    TrialOverview,
    TrialSortOrder,
    WebhookDetail,
    WebhookList,
)
from service.client.connection import Connection, quoted, study_path
from service.client.handle import StudyHandle
from service.errors import FieldProblem, InvalidRequestError
from service.log_stream import log_text
from service.spec import Plan, StudySpec, load_spec
from service.spec_sections import WhichCheckpoint
from service.study import Origin, Purpose, Result, Scalar, Study, StudyState, TrialState
from service.webhook import Webhook
from trainers.facts import DatasetFacts, ModelFacts

Spec = StudySpec | Mapping[str, Any] | str | Path
"""A study spec, the same as plain data, or the YAML or JSON file that holds it."""

_JSON = {"Content-Type": "application/json"}
_LARGEST_PAGE = 1_000


class _Page(Protocol):
    @property
    def next_page_token(self) -> str | None: ...


PageType = TypeVar("PageType", bound=_Page)


class Client(Connection):
    """A samstudy service. Requests are tried again for `patience_s` while it does not answer.

    url: by default SAMSTUDY_URL, else the service that `samstudy up` runs here, else http://127.0.0.1:8321.
    api_key: by default SAMSTUDY_API_KEY; empty: none is sent.
    Every method raises the SamstudyError that the service answered with, by its code, with its field problems, and
    ServiceUnavailableError where none answers.
    """

    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> StudyHandle:
        """Posts a study. A key of its own makes sure that a request sent twice never makes two."""
        headers = {**_JSON, "Idempotency-Key": _sendable(idempotency_key)}
        return StudyHandle(self, self._ask(Study, "POST", "/studies", content=_as_json(spec), headers=headers))

    def plan(self, spec: Spec) -> Plan:
        """How much the study would run; nothing is stored."""
        return self._ask(
            Plan, "POST", "/studies", content=_as_json(spec), headers=_JSON, params={"validate_only": True}
        )

    def clone(
        self, study_id: str, changes: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> StudyHandle:
        """Posts a new study with the spec of this one, but for the sections in `changes`. Raises StudyNotFoundError."""
        headers = {**_JSON, "Idempotency-Key": _sendable(idempotency_key)}
        content = _encoded(dict(changes or {}))
        path = f"{study_path(study_id)}/clone"
        return StudyHandle(self, self._ask(Study, "POST", path, content=content, headers=headers))

    def studies(
        self,
        *,
        states: Sequence[StudyState] = (),
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        owner: str | None = None,
        archived: bool = False,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        order_by: StudySortOrder = "-created_at",
        page_size: int = 50,
    ) -> Iterator[StudyOverview]:
        """Studies, newest first, page after page as they are asked for. owner: for admins, who see those of all.

        created_after, created_before: with a time zone.
        """
        params: dict[str, Any] = {"page_size": page_size, "state": list(states), "order_by": order_by}
        params["label"] = [f"{key}:{value}" for key, value in (labels or {}).items()]
        given = {"name": name, "name_contains": name_contains, "owner": owner, "archived": archived or None}
        params |= {key: value for key, value in given.items() if value is not None}
        moments = {"created_after": created_after, "created_before": created_before}
        params |= {key: moment.isoformat() for key, moment in moments.items() if moment is not None}
        for page in self._pages(StudyList, "/studies", params):
            yield from page.studies

    def handle(self, study_id: str) -> StudyHandle:
        """The handle of a study that is there already. Raises StudyNotFoundError."""
        return StudyHandle(self, self.study(study_id))

    def study(self, study_id: str) -> StudyDetail:
        """The study as a whole. Raises StudyNotFoundError."""
        return self._ask(StudyDetail, "GET", study_path(study_id))

    def pause(self, study_id: str) -> Study:
        """Begins no new trials; running ones save their state and leave. Raises InvalidTransitionError."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/pause")

    def resume(self, study_id: str) -> Study:
        """Lets a paused study go on. Raises InvalidTransitionError."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/resume")

    def stop(self, study_id: str) -> Study:
        """Begins no new trials and lets those that have begun end. Raises InvalidTransitionError."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/stop")

    def cancel(self, study_id: str) -> Study:
        """Ends a study now. Raises StudyNotFoundError, and InvalidTransitionError where it has ended."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/cancel")

    def retry(self, study_id: str) -> Study:
        """Runs the failed trials of a finished study again. Raises InvalidTransitionError. Not asked twice."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/retry", once_only=True)

    def archive(self, study_id: str) -> Study:
        """Puts a finished study out of sight. Raises InvalidTransitionError."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/archive")

    def unarchive(self, study_id: str) -> Study:
        """Puts a study back into sight."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/unarchive")

    def delete(self, study_id: str, *, delete_runs: bool = False) -> None:
        """Forgets a finished study and its results; delete_runs: its runs in MLflow too. Not asked twice.

        Raises StudyNotFoundError, InvalidTransitionError.
        """
        params = {"runs": "delete" if delete_runs else "keep"}
        self._ask(type(None), "DELETE", study_path(study_id), once_only=True, params=params)

    def update(
        self,
        study_id: str,
        *,
        budget: Mapping[str, Any] | None = None,
        confirm: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        description: str | None = None,
        version: int | None = None,
    ) -> Study:
        """Changes limits of the budget, all of confirm, all labels, or the description.

        A higher limit reopens a finished study, and so does another confirm, to run its best again on fresh seeds:
        {"top_k": 3, "seeds": [100, 101, 102]}.
        version: of the study as you have seen it; None changes it however it is by now. Not asked twice.
        Raises VersionConflictError, InvalidSpecError, InvalidTransitionError.
        """
        given = {"budget": budget, "confirm": confirm, "labels": labels, "description": description}
        content = _encoded({name: value for name, value in given.items() if value is not None})
        headers = {**_JSON, "If-Match": "*" if version is None else f'"{version}"'}
        return self._ask(Study, "PATCH", study_path(study_id), once_only=True, content=content, headers=headers)

    def enqueue(self, study_id: str, point: Mapping[str, Scalar]) -> ConfigurationResult:
        """Has the study try a point of its space before what its search proposes. Not asked twice.

        Raises InvalidPointError, ConfigurationExistsError, InvalidTransitionError.
        """
        content = _encoded({"point": dict(point)})
        path = f"{study_path(study_id)}/configurations"
        return self._ask(ConfigurationResult, "POST", path, once_only=True, content=content, headers=_JSON)

    def configurations(
        self,
        study_id: str,
        *,
        origin: Origin | None = None,
        complete: bool | None = None,
        order_by: ConfigurationSortOrder = "number",
        limit: int | None = None,
    ) -> list[ConfigurationResult]:
        """Configurations with their results over seeds: all, or the first ones in this order.

        origin: only those that the search proposed, or that a user enqueued. complete: only those of which every search
        trial has a result, or of which one lacks it.
        """
        params: dict[str, Any] = {"order_by": order_by, "page_size": min(limit or _LARGEST_PAGE, _LARGEST_PAGE)}
        params |= {key: value for key, value in {"origin": origin, "complete": complete}.items() if value is not None}
        pages = self._pages(ConfigurationList, f"{study_path(study_id)}/configurations", params)
        return list(islice((result for page in pages for result in page.configurations), limit))

    def configuration(self, study_id: str, configuration_id: str) -> ConfigurationResult:
        """One configuration. Raises ConfigurationNotFoundError."""
        path = f"{study_path(study_id)}/configurations/{quoted(configuration_id)}"
        return self._ask(ConfigurationResult, "GET", path)

    def trials(
        self,
        study_id: str,
        *,
        states: Sequence[TrialState] = (),
        purpose: Purpose | None = None,
        configuration_id: str | None = None,
        order_by: TrialSortOrder = "number",
        limit: int | None = None,
    ) -> list[TrialOverview]:
        """Trials in the order of their numbers: all, or the first ones; those that wait say why."""
        params: dict[str, Any] = {"state": list(states), "order_by": order_by}
        params["page_size"] = min(limit or _LARGEST_PAGE, _LARGEST_PAGE)
        given = {"purpose": purpose, "configuration_id": configuration_id}
        params |= {name: value for name, value in given.items() if value is not None}
        pages = self._pages(TrialList, f"{study_path(study_id)}/trials", params)
        return list(islice((trial for page in pages for trial in page.trials), limit))

    def trial(self, study_id: str, trial_id: str) -> TrialDetail:
        """One trial with its attempts. Raises TrialNotFoundError."""
        return self._ask(TrialDetail, "GET", f"{study_path(study_id)}/trials/{quoted(trial_id)}")

    def results(self, study_id: str, trial_id: str) -> list[Result]:
        """What a trial has reported, epoch by epoch. Raises TrialNotFoundError."""
        path = f"{study_path(study_id)}/trials/{quoted(trial_id)}/results"
        return [one for page in self._pages(ResultList, path, {"page_size": _LARGEST_PAGE}) for one in page.results]

    def logs(
        self, study_id: str, trial_id: str, *, attempt: int | None = None, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        """What an attempt of the trial has printed, piece by piece as text; by default of the newest attempt.

        tail: begin with so many of the last lines. follow: until the attempt has ended. A connection that breaks is
        taken up again where it broke. Raises TrialNotFoundError, AttemptNotFoundError, StorageUnavailableError, and
        ServiceUnavailableError once the service has been away for a minute.
        """
        path = f"{study_path(study_id)}/trials/{quoted(trial_id)}/logs"
        open_log = partial(self._opened, path)
        return log_text(open_log, attempt=attempt, tail=tail, follow=follow, patience_s=self.patience_s)

    def checkpoint(self, study_id: str, trial_id: str, *, which: WhichCheckpoint = "latest") -> Iterator[bytes]:
        """A checkpoint of the trial, piece by piece; `trainers.checkpoint.loads` reads them joined.

        which: of its newest epoch that has one, or of its best one where the study's checkpoint.keep has that. Raises
        CheckpointNotFoundError, StorageUnavailableError, and ServiceUnavailableError where it breaks off.
        """
        path = f"{study_path(study_id)}/trials/{quoted(trial_id)}/checkpoint"
        with self._opened(path, {"which": which}) as response:
            yield from response.iter_bytes()

    def best(self, study_id: str) -> ConfigurationResult | None:
        """The best confirmed configuration, else the best whose search trials all succeeded, else that of most seeds.

        None where no trial succeeded.
        """
        return self._ask(BestConfiguration, "GET", f"{study_path(study_id)}/best").best

    def surface(
        self,
        study_id: str,
        *,
        x: str = "lambda",
        y: str = "rho",
        panel: str | None = None,
        metric: str | None = None,
    ) -> Surface:
        """The objective over two parameters, or another metric of the last epoch.

        Raises InvalidRequestError where the space lacks one of them, or no trial reports the metric.
        """
        chosen = {"panel": panel, "metric": metric}
        params = {"x": x, "y": y, **{name: value for name, value in chosen.items() if value is not None}}
        return self._ask(Surface, "GET", f"{study_path(study_id)}/surface", params=params)

    def importances(self, study_id: str, *, method: ImportanceMethod = "fanova") -> Importances:
        """Which parameters matter to the objective. Raises NotEnoughResultsError."""
        return self._ask(Importances, "GET", f"{study_path(study_id)}/importances", params={"method": method})

    def export(self, study_id: str, *, table_format: TableFormat = "csv") -> Iterator[bytes]:
        """Every trial as a row of one table, piece by piece. Raises ServiceUnavailableError where it breaks off."""
        with self._opened(f"{study_path(study_id)}/export", {"format": table_format}) as response:
            yield from response.iter_bytes()

    def export_again(self, study_id: str) -> Study:
        """Has the study's runs in MLflow written anew."""
        return self._ask(Study, "POST", f"{study_path(study_id)}/export-again")

    def compare(self, study_ids: Sequence[str], *, metric: str | None = None) -> StudyComparison:
        """The best configurations of several studies, each later one against the first."""
        params = {"ids": ",".join(study_ids), **({} if metric is None else {"metric": metric})}
        return self._ask(StudyComparison, "GET", "/studies:compare", params=params)

    def create_webhook(self, url: str, *, states: Sequence[StudyState] = ()) -> CreatedWebhook:
        """Makes a webhook; its secret is shown only now. Raises TooManyWebhooksError.

        Not tried again: what was not answered may have made one, which `webhooks` then shows.
        """
        content = json.dumps({"url": url, "states": list(states)}).encode()
        return self._ask(CreatedWebhook, "POST", "/webhooks", once_only=True, content=content, headers=_JSON)

    def webhooks(self) -> list[Webhook]:
        """Every webhook, in the order in which they were made."""
        return self._ask(WebhookList, "GET", "/webhooks").webhooks

    def webhook(self, webhook_id: str) -> WebhookDetail:
        """A webhook with its latest deliveries. Raises WebhookNotFoundError."""
        return self._ask(WebhookDetail, "GET", f"/webhooks/{quoted(webhook_id)}")

    def delete_webhook(self, webhook_id: str) -> None:
        """Deletes a webhook. Raises WebhookNotFoundError."""
        self._ask(type(None), "DELETE", f"/webhooks/{quoted(webhook_id)}", once_only=True)

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

    def _pages(self, page_type: type[PageType], path: str, params: Mapping[str, Any]) -> Iterator[PageType]:
        """Page after page of a list, as they are asked for."""
        token: str | None = None
        while True:
            page = self._ask(page_type, "GET", path, params={**params, **({"page_token": token} if token else {})})
            yield page
            token = page.next_page_token
            if token is None:
                return


def _as_json(spec: Spec) -> bytes:
    if isinstance(spec, (str, Path)):
        spec = load_spec(spec)
    return _encoded(spec.to_mapping() if isinstance(spec, StudySpec) else spec)


def _encoded(body: object) -> bytes:
    """As JSON. Raises InvalidRequestError for what has no form there."""
    try:
        return json.dumps(body, default=_plain).encode()
    except (TypeError, ValueError) as error:  # keys that are no text; something that contains itself
        raise InvalidRequestError(f"{error}", problems=[FieldProblem("body", f"{error}")]) from error


def _plain(value: Any) -> Any:
    """A value of NumPy's or torch's, or another mapping than a dict, as JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    plain = value.tolist() if hasattr(value, "tolist") else value
    if type(plain) is not type(value):
        return plain
    message = f"must be numbers, text, truth values, lists and mappings, got {shown(value)} of {type(value).__name__}"
    raise InvalidRequestError(message, problems=[FieldProblem("body", message)])


def _sendable(idempotency_key: str | None) -> str:
    """The key, one of its own where none is given. Raises InvalidRequestError for what no header can carry."""
    if idempotency_key is None:
        return uuid4().hex
    key = idempotency_key
    if not (key and key == key.strip() and key.isascii() and key.isprintable()):
        message = f"must be printable ASCII, not empty and without blanks around it, got {shown(key)}"
        raise InvalidRequestError(message, problems=[FieldProblem("Idempotency-Key", message)])
    return idempotency_key
