"""Studies: posting one, finding them, one as a whole, its best, its surface, cancelling it, comparing several."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from service.analysis.aggregation import best
from service.analysis.surface import Surface, surface
from service.answers import BestConfiguration, StudyComparison, StudyDetail, StudyList
from service.api import reading
from service.api.problems import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError, documented
from service.api.requests import NO_NUL, OWNER, JsonBody, Studies, StudyId, TheSettings
from service.errors import (
    FieldProblem,
    IdempotencyConflictError,
    InvalidRequestError,
    InvalidSpecError,
    InvalidTransitionError,
    StudyNotFoundError,
)
from service.spec import Plan, parse_spec, plan
from service.store.studies import NewStudy, StudyFilter
from service.study import Study, StudyState

MAX_COMPARED = 20

router = APIRouter(tags=["studies"])


def _checked_label(label: str) -> str:
    key, colon, _ = label.partition(":")
    if not key or not colon or "\x00" in label:
        raise PydanticCustomError("rule", "{text}", {"text": "must be key:value"})
    return label


Label = Annotated[str, AfterValidator(_checked_label)]
Parameter = Annotated[str, Query(min_length=1, max_length=64, pattern=NO_NUL)]
_SPEC_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/StudySpec"}}},
}


@router.post(
    "/studies",
    status_code=201,
    response_model=Study,
    responses={
        200: {
            "model": Study | Plan,
            "description": "the study that this Idempotency-Key has already made; with validate_only, the plan",
        },
        **documented(
            MalformedBodyError,
            IdempotencyConflictError,
            BodyTooLargeError,
            UnsupportedMediaTypeError,
            InvalidSpecError,
            InvalidRequestError,
        ),
    },
    openapi_extra={"requestBody": _SPEC_BODY},
)
def create_study(
    body: JsonBody,
    request: Request,
    studies: Studies,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x20-\x7e]*$",
            description="makes it safe to send the same study again: the second time answers 200 with the first study",
        ),
    ] = None,
    validate_only: Annotated[bool, Query(description="answers how much would be run and stores nothing")] = False,
) -> Response:
    """Records a study, which waits as QUEUED until the controller starts its driver."""
    spec = parse_spec(body)
    if validate_only:
        planned = plan(spec)
        return JSONResponse({"configurations": planned.configurations, "trials": planned.trials})
    accepted = spec.to_mapping()
    study, created = studies.create(
        NewStudy(
            name=spec.name,
            description=spec.description,
            labels=spec.labels,
            spec=accepted,
            owner=OWNER,
            request_digest=_digest(accepted),
            idempotency_key=idempotency_key,
        )
    )
    location = request.url_for("read_study", study_id=study.id).path
    return Response(
        study.model_dump_json(),
        201 if created else 200,
        {"Location": location},
        media_type="application/json",
    )


@router.get("/studies", responses=documented(InvalidRequestError))
def list_studies(
    studies: Studies,
    state: Annotated[list[StudyState] | None, Query(description="any of these")] = None,
    label: Annotated[
        list[Label] | None,
        Query(description="key:value; a study must have all that are given", examples=["team:vision"]),
    ] = None,
    name: Annotated[str | None, Query(max_length=200, pattern=NO_NUL)] = None,
    page_size: Annotated[int, Query(ge=1, le=200)] = 50,
    page_token: Annotated[str | None, Query(max_length=500, description="next_page_token of the page before")] = None,
) -> StudyList:
    """Studies, newest first. Pages stay stable while studies are added."""
    labels = dict(pair.split(":", 1) for pair in label or ())
    page = studies.page(StudyFilter(state or (), labels, name), page_size=page_size, page_token=page_token)
    return StudyList(studies=reading.overviews(studies, page.studies), next_page_token=page.next_page_token)


@router.get("/studies:compare", responses=documented(StudyNotFoundError, InvalidRequestError))
def compare_studies(
    studies: Studies,
    ids: Annotated[str, Query(max_length=2_000, pattern=NO_NUL, description="two or more study ids", examples=["a,b"])],
    metric: Annotated[str | None, Query(max_length=100, description="by default the objective they share")] = None,
) -> StudyComparison:
    """The best configurations of several studies, each later study against the first, paired over shared seeds."""
    wanted = list(dict.fromkeys(study_id.strip() for study_id in ids.split(",") if study_id.strip()))
    if not 2 <= len(wanted) <= MAX_COMPARED:
        message = f"ids must name 2 to {MAX_COMPARED} different studies, got {len(wanted)}"
        raise InvalidRequestError(message, problems=[FieldProblem("ids", message)])
    return reading.compare_studies(studies, wanted, metric)


@router.get("/studies/{study_id}", responses=documented(StudyNotFoundError))
def read_study(study_id: StudyId, studies: Studies, settings: TheSettings) -> StudyDetail:
    """A study: its trials by state, its progress, its best configuration, why it waits where it does."""
    return reading.study_detail(studies, study_id, mlflow_url=settings.browser_mlflow_url)


@router.post(
    "/studies/{study_id}/cancel",
    response_model=Study,
    responses={
        202: {"model": Study, "description": "asked for: its running trials are being ended"},
        **documented(StudyNotFoundError, InvalidTransitionError),
    },
)
def cancel_study(study_id: StudyId, studies: Studies, response: Response) -> Study:
    """Ends a study now, running trials included. Cancelling a cancelled study changes nothing."""
    study = studies.request_cancel(study_id)
    response.status_code = 200 if study.state.is_final else 202
    return study


@router.get("/studies/{study_id}/best", responses=documented(StudyNotFoundError))
def read_best(study_id: StudyId, studies: Studies) -> BestConfiguration:
    """The best of the configurations whose trials all succeeded."""
    study = studies.get(study_id)
    objective = reading.objective_of(study)
    results = reading.configuration_results(studies, study_id)
    return BestConfiguration(metric=objective.metric, mode=objective.mode, best=best(results, objective.mode))


@router.get("/studies/{study_id}/surface", responses=documented(StudyNotFoundError, InvalidRequestError))
def read_surface(
    study_id: StudyId,
    studies: Studies,
    x: Parameter = "lambda",
    y: Parameter = "rho",
    panel: Annotated[
        str | None,
        Query(max_length=64, pattern=NO_NUL, description="tells the panels apart; empty: one panel; by default chosen"),
    ] = None,
) -> Surface:
    """The objective over two parameters, such as λ × ρ, one panel for each value of a third."""
    study = studies.get(study_id)
    if x == y:
        message = f"x and y must be different parameters, got {x!r} twice"
        raise InvalidRequestError(message, problems=[FieldProblem("y", message)])
    known = parse_spec(study.spec).space.parameters
    unknown = [
        FieldProblem(field, f"the study's space has no parameter {name!r}; it has {', '.join(known)}")
        for field, name in (("x", x), ("y", y), ("panel", panel))
        if name and name not in known
    ]
    if unknown:
        raise InvalidRequestError("; ".join(problem.message for problem in unknown), problems=unknown)
    results = reading.configuration_results(studies, study_id)
    return surface(results, mode=reading.objective_of(study).mode, x=x, y=y, panel=panel)


def _digest(accepted: dict[str, Any]) -> str:
    """Of the accepted spec: however the same study is written, it has the same digest."""
    canonical = json.dumps(accepted, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
