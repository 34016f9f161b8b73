"""From what the store holds to what the API answers: results over seeds, progress, the best, comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from service.analysis.aggregation import ConfigurationResult, aggregate, best, summarise
from service.analysis.comparison import Comparison, compare, holm
from service.answers import ComparedStudy, Progress, StudyComparison, StudyDetail, StudyDifference, StudyOverview
from service.errors import FieldProblem, InvalidRequestError, InvalidSpecError
from service.spec import Objective, parse_spec, plan
from service.store.studies import StudyStore
from service.study import Configuration, Study, Trial, TrialState
from trainers.config import defaults


def objective_of(study: Study) -> Objective:
    """What the study optimises."""
    return Objective.model_validate(study.spec["objective"])


def overviews(store: StudyStore, studies: Sequence[Study]) -> list[StudyOverview]:
    """The studies with their trials counted by state."""
    counts = store.trial_counts([study.id for study in studies])
    return [StudyOverview(**dict(study), trial_counts=counts[study.id]) for study in studies]


def configuration_results(store: StudyStore, study_id: str) -> list[ConfigurationResult]:
    """Every configuration of the study with its results over seeds. Raises StudyNotFoundError."""
    return aggregate(store.configurations(study_id), store.trials(study_id))


def configuration_result(store: StudyStore, study_id: str, configuration_id: str) -> ConfigurationResult:
    """One configuration with its results. Raises StudyNotFoundError, ConfigurationNotFoundError."""
    configuration = store.configuration(study_id, configuration_id)
    return aggregate([configuration], store.trials(study_id, configuration_id=configuration_id))[0]


def study_detail(store: StudyStore, study_id: str, *, mlflow_url: str) -> StudyDetail:
    """The study as a whole. Raises StudyNotFoundError."""
    study = store.get(study_id)
    trials = store.trials(study_id)
    results = aggregate(store.configurations(study_id), trials)
    run = f"/#/experiments/{study.mlflow_experiment_id}/runs/{study.mlflow_run_id}?workflowType=machine_learning"
    return StudyDetail(
        **dict(study),
        trial_counts=store.trial_counts([study_id])[study_id],
        progress=_progress(study, results, trials),
        best=best(results, objective_of(study).mode),
        mlflow_url=mlflow_url.rstrip("/") + run if study.mlflow_run_id else None,
    )


def compare_studies(store: StudyStore, study_ids: Sequence[str], metric: str | None) -> StudyComparison:
    """The best configuration of each study, and each later study against the first.

    metric: by default the objective that all of them share. Raises StudyNotFoundError, InvalidRequestError.
    """
    studies = [store.get(study_id) for study_id in study_ids]
    shared = {objective_of(study).metric for study in studies}
    if metric is None:
        if len(shared) > 1:
            message = (
                f"the studies have different objectives ({', '.join(sorted(shared))}): say which metric to compare"
            )
            raise InvalidRequestError(message, problems=[FieldProblem("metric", message)])
        (metric,) = shared
    sides = [_side(store, study, metric) for study in studies]
    known = {name for side in sides if side.configuration for name in side.configuration.metrics}
    if known and metric not in known | shared:
        message = f"no trial reports {metric!r}; what they report: {', '.join(sorted(known))}"
        raise InvalidRequestError(message, problems=[FieldProblem("metric", message)])
    first, *others = sides
    comparisons = [compare(first.by_seed, other.by_seed) for other in others]
    return StudyComparison(metric=metric, studies=sides, differences=_differences(first, others, comparisons))


def _differences(
    first: ComparedStudy, others: Sequence[ComparedStudy], comparisons: Sequence[Comparison]
) -> list[StudyDifference]:
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        StudyDifference(**dict(comparison), a=first.study_id, b=other.study_id, p_adjusted=p)
        for other, comparison, p in zip(others, comparisons, adjusted, strict=True)
    ]


def _side(store: StudyStore, study: Study, metric: str) -> ComparedStudy:
    objective = objective_of(study)
    winner = best(configuration_results(store, study.id), objective.mode)
    by_seed: dict[int, float] = {}
    if winner is not None:
        by_seed = winner.by_seed
        if metric != objective.metric:
            by_seed = _metric_by_seed(store, winner.configuration, metric)
    return ComparedStudy(
        study_id=study.id,
        name=study.name,
        configuration=winner,
        by_seed=by_seed,
        summary=summarise(list(by_seed.values())) if by_seed else None,
    )


def _metric_by_seed(store: StudyStore, configuration: Configuration, metric: str) -> dict[int, float]:
    trials = store.trials(configuration.study_id, configuration_id=configuration.id)
    return {
        trial.seed: trial.metrics[metric]
        for trial in trials
        if trial.state is TrialState.SUCCEEDED and metric in trial.metrics
    }


def _progress(study: Study, results: Sequence[ConfigurationResult], trials: Sequence[Trial]) -> Progress:
    trials_planned = epochs_planned = None
    try:
        spec = parse_spec(study.spec)
    except InvalidSpecError:  # accepted by an older version, whose rules were others
        pass
    else:
        trials_planned = plan(spec).trials
        if "epochs" not in spec.space.parameters:
            epochs_planned = trials_planned * int(spec.train.get("epochs", defaults()["epochs"]))
    return Progress(
        trials_done=sum(trial.state.is_final for trial in trials),
        trials_planned=trials_planned,
        epochs_done=sum(trial.epochs_done for trial in trials),
        epochs_planned=epochs_planned,
    )
