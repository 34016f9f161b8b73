"""From what the store holds to what the API answers: results over seeds, progress, the best, pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces import NAMED_SPACES
from service.analysis.aggregation import ConfigurationResult, aggregate
from service.analysis.waiting import missing_care, pending_reason, waiting_reason
from service.answers import (
    BestConfiguration,
    ConfigurationList,
    Progress,
    StudyDetail,
    StudyOverview,
    TrialDetail,
    TrialList,
    TrialOverview,
)
from service.spec import stored_objective, stored_plan
from service.store.contents import Best, ConfigurationPage, StudyStanding, TrialPage
from service.store.studies import StudyStore
from service.study import OPEN_TRIAL_STATES, Study, TrialState
from trainers.config import defaults


def overviews(store: StudyStore, studies: Sequence[Study]) -> list[StudyOverview]:
    """The studies with their trials counted by state."""
    counts = store.trial_counts([study.id for study in studies])
    return [
        StudyOverview.model_construct(  # what is in it has been checked: a page of them takes half the time
            **vars(study),
            trial_counts=counts[study.id],
            trials_planned=trials_planned(study, counts[study.id]),
        )
        for study in studies
    ]


def study_detail(store: StudyStore, study_id: str, *, mlflow_url: str) -> StudyDetail:
    """The study as a whole. Raises StudyNotFoundError."""
    standing = store.standing(study_id)
    study, counts = standing.study, standing.trial_counts
    run = f"/#/experiments/{study.mlflow_experiment_id}/runs/{study.mlflow_run_id}?workflowType=machine_learning"
    return StudyDetail(
        **dict(study),
        trial_counts=counts,
        trials_planned=trials_planned(study, counts),
        progress=_progress(standing),
        pending_reason=_pending_reason(standing),
        best=_result(standing.best),
        mlflow_url=mlflow_url.rstrip("/") + run if study.mlflow_run_id else None,
    )


def best_configuration(store: StudyStore, study_id: str) -> BestConfiguration:
    """What the study has found. Raises StudyNotFoundError."""
    study, found = store.best(study_id)
    objective = stored_objective(study.spec)
    return BestConfiguration(metric=objective.metric, mode=objective.mode, best=_result(found))


def best_result(store: StudyStore, study_id: str) -> tuple[Study, ConfigurationResult | None]:
    """The study and its best configuration; None where there is none yet. Raises StudyNotFoundError."""
    study, found = store.best(study_id)
    return study, _result(found)


def configuration_result(store: StudyStore, study_id: str, configuration_id: str) -> ConfigurationResult:
    """One configuration with its results. Raises StudyNotFoundError, ConfigurationNotFoundError."""
    configuration = store.configuration(study_id, configuration_id)
    return aggregate([configuration], store.trials(study_id, configuration_id=configuration_id))[0]


def configuration_list(page: ConfigurationPage) -> ConfigurationList:
    """The configurations with their results."""
    results = aggregate(page.configurations, page.trials)
    return ConfigurationList(configurations=results, next_page_token=page.next_page_token)


def trial_list(page: TrialPage) -> TrialList:
    """The trials, those that wait with the reason."""
    overviews = [
        TrialOverview(
            **dict(trial),
            point=page.points[trial.configuration_id],
            pending_reason=pending_reason(page.study, trial, page.care),
        )
        for trial in page.trials
    ]
    return TrialList(trials=overviews, next_page_token=page.next_page_token)


def trial_detail(store: StudyStore, study_id: str, trial_id: str) -> TrialDetail:
    """A trial with its attempts. Raises StudyNotFoundError, TrialNotFoundError."""
    standing = store.trial_standing(study_id, trial_id)
    reason = pending_reason(standing.study, standing.trial, standing.care)
    attempts = store.attempts(study_id, trial_id)
    return TrialDetail(**dict(standing.trial), point=standing.point, pending_reason=reason, attempts=attempts)


def _result(found: Best | None) -> ConfigurationResult | None:
    return None if found is None else aggregate([found.configuration], found.trials)[0]


def _pending_reason(standing: StudyStanding) -> str | None:
    """Why the study does not go on, or trials of it that have not ended do not train; None where all of them do."""
    study, counts, care = standing.study, standing.trial_counts, standing.care
    if missing := missing_care(study, care):
        return missing
    open_trials = sum(counts.get(state, 0) for state in OPEN_TRIAL_STATES)
    if open_trials and open_trials == care.running:
        return None
    reason = waiting_reason(study, care, begun=standing.has_begun)
    return reason or ("no worker is free for them" if open_trials else None)


def _progress(standing: StudyStanding) -> Progress:
    trials = trials_planned(standing.study, standing.trial_counts)
    return Progress(
        trials_done=sum(count for state, count in standing.trial_counts.items() if state.is_final),
        trials_planned=trials,
        epochs_done=standing.epochs_done,
        epochs_planned=None if trials is None else _epochs(standing.study.spec, trials),
    )


def trials_planned(study: Study, trial_counts: Mapping[TrialState, int]) -> int | None:
    """Those of its plan, or those that it has, which are more where its budget was lowered or its best has changed
    since it was confirmed; None where this version cannot tell."""
    planned = stored_plan(study.spec)
    return max(planned.trials, sum(trial_counts.values())) if planned else None


def _epochs(spec: Mapping[str, Any], trials: int) -> int | None:
    """Of so many trials together; None where the search space varies them."""
    space = spec["search_space"]
    varied = NAMED_SPACES[space].space.parameters if isinstance(space, str) else space
    return None if "epochs" in varied else trials * int(spec["train"].get("epochs", defaults()["epochs"]))
