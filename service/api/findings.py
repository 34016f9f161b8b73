"""What studies have found: the best configuration, the objective over two parameters, what matters, comparisons."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from service.analysis.importances import ImportanceMethod, importances
from service.analysis.surface import Surface, of_another_metric, surface
from service.answers import BestConfiguration, Importance, Importances, StudyComparison
from service.api import comparing, reading
from service.api.computing import Computing
from service.api.problems import documented
from service.api.requests import NO_NUL, Studies, StudyId, ThePrincipal
from service.errors import (
    FieldProblem,
    InvalidRequestError,
    InvalidSpecError,
    NotEnoughResultsError,
    StudyNotFoundError,
    TooManyRequestsError,
)
from service.spec import stored_objective, stored_space
from service.study import Purpose
from trainers.metrics import every_metric

MAX_COMPARED = 20

router = APIRouter(tags=["findings"])

Parameter = Annotated[str, Query(min_length=1, max_length=64, pattern=NO_NUL)]


@router.get("/studies:compare", responses=documented(StudyNotFoundError, InvalidRequestError))
def compare_studies(
    studies: Studies,
    ids: Annotated[str, Query(max_length=2_000, pattern=NO_NUL, description="two or more study ids", examples=["a,b"])],
    metric: Annotated[str | None, Query(max_length=100, description="by default the objective they share")] = None,
) -> StudyComparison:
    """The best configurations of several studies, each later study against the first.

    A t test paired over shared seeds where there are two or more, else Welch's, with Holm's correction for all of them;
    over the trials that confirm the configurations where each has such, else over those of the search.
    """
    wanted = list(dict.fromkeys(study_id.strip() for study_id in ids.split(",") if study_id.strip()))
    if not 2 <= len(wanted) <= MAX_COMPARED:
        message = f"ids must name 2 to {MAX_COMPARED} different studies, got {len(wanted)}"
        raise InvalidRequestError(message, problems=[FieldProblem("ids", message)])
    return comparing.compare_studies(studies, wanted, metric)


@router.get("/studies/{study_id}/best", responses=documented(StudyNotFoundError))
def read_best(study_id: StudyId, studies: Studies) -> BestConfiguration:
    """The best confirmed configuration, else the best whose search trials all succeeded, else that of most seeds."""
    return reading.best_configuration(studies, study_id)


@router.get(
    "/studies/{study_id}/surface", responses=documented(StudyNotFoundError, InvalidRequestError, InvalidSpecError)
)
def read_surface(
    study_id: StudyId,
    studies: Studies,
    x: Parameter = "lambda",
    y: Parameter = "rho",
    panel: Annotated[
        str | None,
        Query(max_length=64, pattern=NO_NUL, description="tells the panels apart; empty: one panel; by default chosen"),
    ] = None,
    metric: Annotated[
        str | None,
        Query(
            max_length=100,
            pattern=NO_NUL,
            description="of the last epoch, such as sharpness_one_step; by default the objective",
        ),
    ] = None,
) -> Surface:
    """The objective over two parameters, such as λ × ρ, one panel for each value of a third; or another metric there.

    Where several configurations lie at one place the best one is shown, by the objective in any case.
    """
    study = studies.get(study_id)
    for field, name, others in (("y", y, (x,)), ("panel", panel, (x, y))):
        if name in others:
            message = f"x, y and panel must be different parameters, got {name!r} twice"
            raise InvalidRequestError(message, problems=[FieldProblem(field, message)])
    known = stored_space(study.spec).parameters
    unknown = [
        FieldProblem(field, f"the study's space has no parameter {name!r}; it has {', '.join(known)}")
        for field, name in (("x", x), ("y", y), ("panel", panel))
        if name and name not in known
    ]
    if unknown:
        raise InvalidRequestError("; ".join(problem.message for problem in unknown), problems=unknown)
    results = studies.summaries(study_id)
    objective = stored_objective(study.spec)
    shown = surface(results, metric=objective.metric, mode=objective.mode, parameters=known, x=x, y=y, panel=panel)
    if metric is None or metric == objective.metric:
        return shown
    values = studies.metric_values(study_id, metric)
    if not any(values.values()):
        reported = set(studies.metric_names(study_id)) or every_metric()
        if metric not in reported:
            raise comparing.unreported(metric, reported)
    return of_another_metric(shown, metric, search=values[Purpose.SEARCH], confirming=values[Purpose.CONFIRM])


@router.get(
    "/studies/{study_id}/importances",
    responses=documented(StudyNotFoundError, NotEnoughResultsError, InvalidSpecError, TooManyRequestsError),
)
async def read_importances(
    study_id: StudyId,
    studies: Studies,
    principal: ThePrincipal,
    request: Request,
    method: Annotated[
        ImportanceMethod,
        Query(description="fanova: over the whole space; ped_anova: what tells the best points from the others"),
    ] = "fanova",
) -> Importances:
    """Which parameters matter: how much of the objective's variance over complete configurations each explains."""
    study = await run_in_threadpool(studies.get, study_id)
    parameters = stored_space(study.spec).parameters
    objective = stored_objective(study.spec)
    results = await run_in_threadpool(studies.summaries, study_id)
    computing: Computing = request.app.state.computing
    found, n = await computing.answer(
        (study_id, study.revision, method),
        principal.owner,
        partial(importances, results, parameters, mode=objective.mode, method=method),
    )
    return Importances(
        metric=objective.metric,
        method=method,
        n=n,
        importances=[Importance(parameter=name, importance=value) for name, value in found.items()],
        left_out=[name for name in parameters if name not in found],
    )
