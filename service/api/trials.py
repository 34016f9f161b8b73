"""Trials: a configuration and a seed, their attempts, and what they reported epoch by epoch."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.answers import ResultList, TrialDetail, TrialList
from service.api.problems import documented
from service.api.requests import NO_NUL, Studies, StudyId, TrialId
from service.errors import StudyNotFoundError, TrialNotFoundError
from service.study import TrialState

router = APIRouter(prefix="/studies/{study_id}/trials", tags=["trials"])


@router.get("", responses=documented(StudyNotFoundError))
def list_trials(
    study_id: StudyId,
    studies: Studies,
    state: Annotated[list[TrialState] | None, Query(description="any of these")] = None,
    configuration_id: Annotated[str | None, Query(max_length=80, pattern=NO_NUL)] = None,
) -> TrialList:
    """Trials in the order of their numbers."""
    trials = studies.trials(study_id, configuration_id=configuration_id)
    return TrialList(trials=[trial for trial in trials if not state or trial.state in state])


@router.get("/{trial_id}", responses=documented(StudyNotFoundError, TrialNotFoundError))
def read_trial(study_id: StudyId, trial_id: TrialId, studies: Studies) -> TrialDetail:
    """One trial with every execution of it."""
    trial = studies.trial(study_id, trial_id)
    return TrialDetail(**dict(trial), attempts=studies.attempts(study_id, trial_id))


@router.get("/{trial_id}/results", responses=documented(StudyNotFoundError, TrialNotFoundError))
def list_results(study_id: StudyId, trial_id: TrialId, studies: Studies) -> ResultList:
    """What the trial has reported, one entry for each epoch."""
    studies.get(study_id)
    return ResultList(results=studies.results(study_id, trial_id))
