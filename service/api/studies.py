"""Studies: posting one, cloning one, finding them, one as a whole."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from service.answers import StudyDetail, StudyList, StudySortOrder
from service.api import reading
from service.api.bodies import body_of
from service.api.problems import documented
from service.api.requests import (
    NO_NUL,
    JsonBody,
    OptionalJsonBody,
    PageToken,
    Studies,
    StudyId,
    ThePrincipal,
    TheSettings,
)
from service.api.versions import ETAG, etag
from service.errors import (
    BodyTooLargeError,
    IdempotencyConflictError,
    InvalidRequestError,
    InvalidSpecError,
    MalformedBodyError,
    StudyNotFoundError,
    UnsupportedMediaTypeError,
)
from service.spec import Plan, StudySpec, parse_spec, plan
from service.store.filters import StudyFilter
from service.store.studies import NewStudy, StudyStore
from service.study import Study, StudyState
from service.text_rules import refusal

router = APIRouter(tags=["studies"])

_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})"
)


def _checked_label(label: str) -> str:
    key, colon, _ = label.partition(":")
    if not key or not colon or "\x00" in label:
        raise refusal("must be key:value")
    return label


def _written_as_moment(text: str) -> str:
    """The text itself, before pydantic takes a number, such as a year, for the seconds since 1970."""
    if not _MOMENT.fullmatch(text):
        raise refusal("must be an ISO 8601 date and time with its zone, such as 2026-01-31T12:00:00Z")
    return text


def _checked_moment(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise refusal(f"must lie in the years 1 to 9999, got {moment.isoformat()}") from None


Label = Annotated[str, AfterValidator(_checked_label)]
Moment = Annotated[AwareDatetime, BeforeValidator(_written_as_moment), AfterValidator(_checked_moment)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]*$",
        description="makes it safe to send the same study again: the second time answers 200 with the first study, "
        "until that is deleted",
    ),
]
ValidateOnly = Annotated[bool, Query(description="answers how much would be run and stores nothing")]
_WHEN = "an ISO 8601 date and time with its zone, such as 2026-01-31T12:00:00Z; not included"

_CREATED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Study | Plan,
        "description": "the study that this Idempotency-Key has already made; with validate_only, the plan",
        "headers": ETAG,
    },
    201: {"headers": ETAG},
}
_REFUSED = (
    MalformedBodyError,
    IdempotencyConflictError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    InvalidSpecError,
    InvalidRequestError,
)


@router.post(
    "/studies",
    status_code=201,
    response_model=Study,
    responses={**_CREATED, **documented(*_REFUSED)},
    openapi_extra=body_of(StudySpec),
)
def create_study(
    body: JsonBody,
    request: Request,
    studies: Studies,
    principal: ThePrincipal,
    idempotency_key: IdempotencyKey = None,
    validate_only: ValidateOnly = False,
) -> Response:
    """Records a study, which waits as QUEUED until the controller starts its driver."""
    spec = parse_spec(body)
    if validate_only:
        return _planned(spec)
    accepted = spec.to_mapping()
    return _recorded(request, studies, _new(spec, principal.owner, _digest(accepted), idempotency_key))


@router.post(
    "/studies/{study_id}/clone",
    status_code=201,
    response_model=Study,
    responses={**_CREATED, **documented(StudyNotFoundError, *_REFUSED)},
    openapi_extra={
        "requestBody": {
            "required": False,
            "description": "sections of a spec, which replace those of the original as a whole: what a section leaves "
            "out has its default",
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"name": "once more", "replicates": {"seeds": [0, 1, 2, 3, 4]}},
                }
            },
        }
    },
)
def clone_study(
    study_id: StudyId,
    body: OptionalJsonBody,
    request: Request,
    studies: Studies,
    principal: ThePrincipal,
    idempotency_key: IdempotencyKey = None,
    validate_only: ValidateOnly = False,
) -> Response:
    """Records a new study with the spec of this one, but for the sections that are given, each as a whole.

    It takes no results over, and no points that were enqueued by hand.
    """
    made_before = None
    if idempotency_key is not None and not validate_only:
        made_before = studies.clone_made_by(principal.owner, idempotency_key, of=study_id)
    base = made_before or studies.get(study_id)  # the original may have changed since it was cloned, or be gone
    spec = parse_spec({**base.spec, **body} if isinstance(body, dict) else body)
    if validate_only:
        return _planned(spec)
    given = body if isinstance(body, dict) else {}
    changes = {name: value for name, value in spec.to_mapping().items() if name in given}
    digest = _digest({"cloned_from": study_id, "changes": changes})
    return _recorded(request, studies, _new(spec, principal.owner, digest, idempotency_key, cloned_from=study_id))


@router.get("/studies", responses=documented(InvalidRequestError))
def list_studies(
    studies: Studies,
    state: Annotated[list[StudyState] | None, Query(max_length=len(StudyState), description="any of these")] = None,
    label: Annotated[
        list[Label] | None,
        Query(max_length=32, description="key:value; a study must have all that are given", examples=[["team:vision"]]),
    ] = None,
    name: Annotated[str | None, Query(max_length=200, pattern=NO_NUL)] = None,
    name_contains: Annotated[
        str | None,
        Query(max_length=200, pattern=NO_NUL, description="a part of the name; ASCII letters in whatever case"),
    ] = None,
    owner: Annotated[str | None, Query(max_length=100, pattern=NO_NUL, description="for admins, who see all")] = None,
    archived: Annotated[bool, Query(description="those that were put out of sight, instead of the others")] = False,
    created_after: Annotated[Moment | None, Query(description=_WHEN)] = None,
    created_before: Annotated[Moment | None, Query(description=_WHEN)] = None,
    order_by: Annotated[StudySortOrder, Query(description="a minus: the last first")] = "-created_at",
    page_size: Annotated[int, Query(ge=1, le=200)] = 50,
    page_token: PageToken = None,
) -> StudyList:
    """Studies, by default the newest first. Pages stay stable while studies are added."""
    wanted = StudyFilter(
        states=state or (),
        labels=[(key, value) for key, _, value in (pair.partition(":") for pair in label or ())],
        name=name,
        owner=owner,
        name_contains=name_contains,
        archived=archived,
        created_after=created_after,
        created_before=created_before,
    )
    page = studies.page(wanted, order_by=order_by, page_size=page_size, page_token=page_token)
    return StudyList(studies=reading.overviews(studies, page.studies), next_page_token=page.next_page_token)


@router.get("/studies/{study_id}", responses={200: {"headers": ETAG}, **documented(StudyNotFoundError)})
def read_study(study_id: StudyId, studies: Studies, settings: TheSettings, response: Response) -> StudyDetail:
    """A study: its trials by state, its progress, its best configuration, why it waits where it does."""
    study = reading.study_detail(studies, study_id, mlflow_url=settings.browser_mlflow_url)
    response.headers["ETag"] = etag(study)
    return study


def _new(
    spec: StudySpec, owner: str, digest: str, idempotency_key: str | None, cloned_from: str | None = None
) -> NewStudy:
    return NewStudy(
        name=spec.name,
        description=spec.description,
        labels=spec.labels,
        spec=spec.to_mapping(),
        owner=owner,
        request_digest=digest,
        idempotency_key=idempotency_key,
        cloned_from=cloned_from,
    )


def _planned(spec: StudySpec) -> Response:
    planned = plan(spec)
    return JSONResponse(
        {
            "configurations": planned.configurations,
            "trials": planned.trials,
            "confirming_trials": planned.confirming_trials,
        }
    )


def _recorded(request: Request, studies: StudyStore, new: NewStudy) -> Response:
    study, created = studies.create(new)
    headers = {"Location": request.url_for("read_study", study_id=study.id).path, "ETag": etag(study)}
    return Response(study.model_dump_json(), 201 if created else 200, headers, media_type="application/json")


def _digest(accepted: dict[str, Any]) -> str:
    """Of the accepted spec: however the same study is written, it has the same digest."""
    canonical = json.dumps(accepted, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
