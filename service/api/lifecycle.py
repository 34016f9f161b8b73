"""What users ask of a study that is there: to pause, go on, stop, cancel, retry, change, archive and delete it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from service.api.bodies import StudyPatch, body_of
from service.api.problems import documented
from service.api.requests import JsonBody, Lifecycle, StudyId, read_as
from service.api.versions import ETAG, GivenVersion, RequiredVersion, etag
from service.errors import (
    BodyTooLargeError,
    FieldProblem,
    InvalidRequestError,
    InvalidSpecError,
    InvalidTransitionError,
    MalformedBodyError,
    PreconditionRequiredError,
    StudyNotFoundError,
    UnsupportedMediaTypeError,
    VersionConflictError,
)
from service.study import Study, StudyState

router = APIRouter(prefix="/studies/{study_id}", tags=["lifecycle"])

_REFUSED = documented(StudyNotFoundError, InvalidTransitionError, VersionConflictError)
_DONE: dict[int | str, dict[str, Any]] = {200: {"headers": ETAG}, **_REFUSED}


def _steered(on_its_way: str) -> dict[int | str, dict[str, Any]]:
    return {202: {"model": Study, "description": f"asked for: {on_its_way}", "headers": ETAG}, **_DONE}


@router.post("/pause", responses=_steered("running trials save their state and leave their workers"))
def pause_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Begins no new trials; running ones save their state and leave their workers. A paused study stays as it is."""
    study = lifecycle.pause(study_id, if_version=if_version)
    return _answer(response, study, done=study.state is StudyState.PAUSED)


@router.post("/resume", responses=_steered("it waits for its driver"))
def resume_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Lets a paused study go on from where it was. One that is not paused stays as it is."""
    study = lifecycle.resume(study_id, if_version=if_version)
    return _answer(response, study, done=study.state is StudyState.RUNNING)


@router.post("/stop", responses=_steered("trials that have begun train to their end"))
def stop_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Begins no new trials and lets those that have begun end; at once where nothing has begun, or in a pause."""
    study = lifecycle.stop(study_id, if_version=if_version)
    return _answer(response, study, done=study.state.is_final)


@router.post("/cancel", responses=_steered("its running trials are being ended"))
def cancel_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Ends a study now, running trials included. Cancelling a cancelled study changes nothing."""
    study = lifecycle.cancel(study_id, if_version=if_version)
    return _answer(response, study, done=study.state.is_final)


@router.post("/retry", status_code=202, responses={202: {"headers": ETAG}, **_REFUSED})
def retry_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Runs a finished study's failed trials again from their checkpoints, and what its failure cut off."""
    return _answer(response, lifecycle.retry(study_id, if_version=if_version), done=False)


@router.post("/archive", responses=_DONE)
def archive_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Puts a finished study out of sight of lists that do not ask for it; it can still be read."""
    return _answer(response, lifecycle.archive(study_id, if_version=if_version), done=True)


@router.post("/unarchive", responses=_DONE)
def unarchive_study(study_id: StudyId, if_version: GivenVersion, lifecycle: Lifecycle, response: Response) -> Study:
    """Puts a study back into sight."""
    return _answer(response, lifecycle.archive(study_id, archived=False, if_version=if_version), done=True)


@router.patch(
    "",
    responses={
        **_DONE,
        **documented(
            MalformedBodyError,
            StudyNotFoundError,
            InvalidTransitionError,
            VersionConflictError,
            BodyTooLargeError,
            UnsupportedMediaTypeError,
            InvalidSpecError,
            InvalidRequestError,
            PreconditionRequiredError,
        ),
    },
    openapi_extra=body_of(StudyPatch),
)
def change_study(
    study_id: StudyId, if_version: RequiredVersion, body: JsonBody, lifecycle: Lifecycle, response: Response
) -> Study:
    """Changes budget, confirm, labels or description. A higher limit reopens a finished study, with all that it knows.

    Where nothing but failed trials is left, for which there was no time, it gives a retry the time to run them.
    Another confirm reopens it too, to run its best again on the fresh seeds and no more.
    """
    patch = read_as(StudyPatch, body)
    if not patch.model_fields_set:
        message = "must have budget, confirm, labels or description: there is nothing to change"
        raise InvalidRequestError(message, problems=[FieldProblem("body", message)])
    return _answer(response, lifecycle.patch(study_id, patch.changes(), if_version=if_version), done=True)


@router.delete(
    "", status_code=204, responses=documented(StudyNotFoundError, InvalidTransitionError, VersionConflictError)
)
def delete_study(
    study_id: StudyId,
    if_version: GivenVersion,
    lifecycle: Lifecycle,
    runs: Annotated[
        Literal["keep", "delete"],
        Query(description="what becomes of the study's runs in MLflow; they are kept only once all of it is there"),
    ] = "keep",
) -> None:
    """Forgets a finished study with all of its results and checkpoints."""
    lifecycle.delete(study_id, delete_runs=runs == "delete", if_version=if_version)


def _answer(response: Response, study: Study, *, done: bool) -> Study:
    response.status_code = 200 if done else 202
    response.headers["ETag"] = etag(study)
    return study
