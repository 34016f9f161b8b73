"""Trials: a configuration and a seed, their attempts, and what they reported epoch by epoch."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.answers import ResultList, TrialDetail, TrialList, TrialSortOrder
from service.api import reading
from service.api.problems import documented
from service.api.requests import NO_NUL, PageToken, Studies, StudyId, TrialId
from service.errors import InvalidRequestError, StudyNotFoundError, TrialNotFoundError
from service.store.filters import TrialFilter
from service.study import Purpose, TrialState

router = APIRouter(prefix="/studies/{study_id}/trials", tags=["trials"])


@router.get("", responses=documented(StudyNotFoundError, InvalidRequestError))
def list_trials(
    study_id: StudyId,
    studies: Studies,
    state: Annotated[list[TrialState] | None, Query(max_length=len(TrialState), description="any of these")] = None,
    purpose: Annotated[Purpose | None, Query(description="of the search, or confirming its best")] = None,
    configuration_id: Annotated[str | None, Query(max_length=80, pattern=NO_NUL)] = None,
    order_by: Annotated[TrialSortOrder, Query(description="as they were proposed, or the last first")] = "number",
    page_size: Annotated[int, Query(ge=1, le=1_000)] = 100,
    page_token: PageToken = None,
) -> TrialList:
    """Trials, and why those that wait do. Pages stay stable while trials are added."""
    wanted = TrialFilter(state or (), purpose, configuration_id)
    return reading.trial_list(
        studies.trial_page(study_id, wanted, order_by=order_by, page_size=page_size, page_token=page_token)
    )


@router.get("/{trial_id}", responses=documented(StudyNotFoundError, TrialNotFoundError))
def read_trial(study_id: StudyId, trial_id: TrialId, studies: Studies) -> TrialDetail:
    """One trial with every execution of it."""
    return reading.trial_detail(studies, study_id, trial_id)


@router.get("/{trial_id}/results", responses=documented(StudyNotFoundError, TrialNotFoundError, InvalidRequestError))
def list_results(
    study_id: StudyId,
    trial_id: TrialId,
    studies: Studies,
    page_size: Annotated[int, Query(ge=1, le=1_000)] = 1_000,
    page_token: PageToken = None,
) -> ResultList:
    """What the trial has reported, one entry for each epoch that it reported, the first ones first."""
    results, token = studies.result_page(study_id, trial_id, page_size=page_size, page_token=page_token)
    return ResultList(results=results, next_page_token=token)
