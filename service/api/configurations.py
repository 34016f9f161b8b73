"""Configurations: the points that were tried, with mean, spread and interval over their seeds; enqueueing one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.analysis.aggregation import ConfigurationResult, aggregate
from service.answers import ConfigurationList, ConfigurationSortOrder
from service.api import reading
from service.api.bodies import NewPoint, body_of
from service.api.problems import documented
from service.api.requests import ConfigurationId, JsonBody, Lifecycle, PageToken, Studies, StudyId, read_as
from service.api.versions import GivenVersion
from service.errors import (
    BodyTooLargeError,
    ConfigurationExistsError,
    ConfigurationNotFoundError,
    InvalidPointError,
    InvalidRequestError,
    InvalidSpecError,
    InvalidTransitionError,
    MalformedBodyError,
    StudyNotFoundError,
    UnsupportedMediaTypeError,
    VersionConflictError,
)
from service.store.filters import ConfigurationFilter
from service.study import Origin

router = APIRouter(prefix="/studies/{study_id}/configurations", tags=["configurations"])


@router.get("", responses=documented(StudyNotFoundError, InvalidRequestError))
def list_configurations(
    study_id: StudyId,
    studies: Studies,
    origin: Annotated[Origin | None, Query(description="proposed by the search, or enqueued by a user")] = None,
    complete: Annotated[bool | None, Query(description="whether every search trial has a result")] = None,
    order_by: Annotated[
        ConfigurationSortOrder,
        Query(description="as they were proposed, the last first, or by the search mean, the complete ones first"),
    ] = "number",
    page_size: Annotated[int, Query(ge=1, le=1_000)] = 100,
    page_token: PageToken = None,
) -> ConfigurationList:
    """Configurations with their results over seeds.

    Pages stay stable while configurations are added; by objective also while results come in, except for the
    configurations whose own mean changes meanwhile.
    """
    wanted = ConfigurationFilter(origin, complete)
    return reading.configuration_list(
        studies.configuration_page(study_id, wanted, order_by=order_by, page_size=page_size, page_token=page_token)
    )


@router.post(
    "",
    status_code=201,
    responses=documented(
        MalformedBodyError,
        StudyNotFoundError,
        InvalidTransitionError,
        ConfigurationExistsError,
        VersionConflictError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        InvalidPointError,
        InvalidRequestError,
        InvalidSpecError,
    ),
    openapi_extra=body_of(NewPoint),
)
def enqueue_point(
    study_id: StudyId,
    if_version: GivenVersion,
    body: JsonBody,
    request: Request,
    response: Response,
    lifecycle: Lifecycle,
) -> ConfigurationResult:
    """Has the study try a point of its space, one trial for each seed, before what the search proposes."""
    configuration, trials = lifecycle.enqueue(study_id, read_as(NewPoint, body).point, if_version=if_version)
    place = request.url_for("read_configuration", study_id=study_id, configuration_id=configuration.id)
    response.headers["Location"] = place.path
    return aggregate([configuration], trials)[0]


@router.get("/{configuration_id}", responses=documented(StudyNotFoundError, ConfigurationNotFoundError))
def read_configuration(study_id: StudyId, configuration_id: ConfigurationId, studies: Studies) -> ConfigurationResult:
    """One configuration with its results over seeds."""
    return reading.configuration_result(studies, study_id, configuration_id)
