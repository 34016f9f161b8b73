"""Configurations: the points that were tried, with mean, spread and interval over their seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.analysis.aggregation import ConfigurationResult, rank
from service.answers import ConfigurationList
from service.api import reading
from service.api.problems import documented
from service.api.requests import ConfigurationId, Studies, StudyId
from service.errors import ConfigurationNotFoundError, StudyNotFoundError

router = APIRouter(prefix="/studies/{study_id}/configurations", tags=["configurations"])


@router.get("", responses=documented(StudyNotFoundError))
def list_configurations(
    study_id: StudyId,
    studies: Studies,
    order_by: Annotated[
        Literal["number", "objective"], Query(description="as they were proposed, or the best first")
    ] = "number",
) -> ConfigurationList:
    """Every configuration with its results over seeds."""
    results = reading.configuration_results(studies, study_id)
    if order_by == "objective":
        mode = reading.objective_of(studies.get(study_id)).mode
        results.sort(key=lambda result: rank(result, mode))
    return ConfigurationList(configurations=results)


@router.get("/{configuration_id}", responses=documented(StudyNotFoundError, ConfigurationNotFoundError))
def read_configuration(study_id: StudyId, configuration_id: ConfigurationId, studies: Studies) -> ConfigurationResult:
    """One configuration with its results over seeds."""
    return reading.configuration_result(studies, study_id, configuration_id)
