"""Several studies against each other, by their best configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from service.analysis.aggregation import ConfigurationResult, summarise
from service.analysis.comparison import Comparison, compare, holm
from service.analysis.labelling import lost_confirmation, missing_seeds
from service.answers import ComparedStudy, StudyComparison, StudyDifference
from service.api import reading
from service.errors import FieldProblem, InvalidRequestError
from service.spec import Objective, stored_objective
from service.store.studies import StudyStore
from service.study import Purpose, Scalar, Study, TrialState
from trainers.config import defaults
from trainers.metrics import every_metric

Values = Literal["confirmed", "search"]

_SETUP = ("dataset", "train_examples", "validation", "model", "epochs")


def compare_studies(store: StudyStore, study_ids: Sequence[str], metric: str | None) -> StudyComparison:
    """The best configuration of each study, and each later study against the first.

    By what confirms them where each of these configurations has been confirmed, else by what the search saw: never the
    one against the other. Nor the best epoch against the last: by the trials' objective where every study has the same
    one, else by the metric's value of the last epoch. metric: by default the objective that all of them share.
    Raises StudyNotFoundError, InvalidRequestError.
    """
    found = [reading.best_result(store, study_id) for study_id in study_ids]
    objectives = {study.id: stored_objective(study.spec) for study, _ in found}
    optimised = {objective.metric for objective in objectives.values()}
    if metric is None:
        if len(optimised) > 1:
            raise _refused(
                f"the studies have different objectives ({', '.join(sorted(optimised))}): say which metric to compare"
            )
        (metric,) = optimised
    known = {name for _, winner in found if winner for name in winner.metrics}
    reported = known or every_metric()
    if metric not in reported | optimised:
        raise unreported(metric, reported)
    winners = [winner for _, winner in found if winner is not None]
    values: Values = "confirmed" if winners and all(winner.confirmed for winner in winners) else "search"
    shared = _shared_objective(metric, objectives)
    sides = [_side(store, study, winner, metric, values, is_objective=shared is not None) for study, winner in found]
    setups = {study.id: _setup(study, winner) for study, winner in found}
    return StudyComparison(
        metric=metric,
        at="last" if shared is None else shared.at,
        values=values,
        studies=sides,
        differences=_differences(sides, values, setups),
    )


def _shared_objective(metric: str, objectives: Mapping[str, Objective]) -> Objective | None:
    """Of the objectives by study, the one where all are the same but for the target, and are this metric; else None.

    Raises InvalidRequestError where one study maximises the metric and another minimises it.
    """
    by_mode = {objective.mode: study_id for study_id, objective in objectives.items() if objective.metric == metric}
    if len(by_mode) > 1:
        raise _refused(
            f"{metric} is maximised by study {by_mode['max']} and minimised by study {by_mode['min']}, so that no "
            "difference of it is a gain to both: compare another metric"
        )
    first, *others = objectives.values()
    is_shared = first.metric == metric and all((other.metric, other.at) == (metric, first.at) for other in others)
    return first if is_shared else None


def unreported(metric: str, reported: Iterable[str]) -> InvalidRequestError:
    """The refusal of a metric that no trial has, with those that they have."""
    return _refused(f"no trial reports {metric!r}; what they report: {', '.join(sorted(reported))}")


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, problems=[FieldProblem("metric", message)])


def _setup(study: Study, winner: ConfigurationResult | None) -> dict[str, Scalar | None]:
    """On what its best configuration was trained, and for how long; empty where it has none."""
    if winner is None:
        return {}
    chosen = {**defaults(), **study.spec["train"], **winner.configuration.point}
    return {name: chosen.get(name) for name in _SETUP}


def _differences(
    sides: Sequence[ComparedStudy], values: Values, setups: Mapping[str, dict[str, Scalar | None]]
) -> list[StudyDifference]:
    first, *others = sides
    comparisons = [_compared(first, other, values, setups) for other in others]
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        StudyDifference(**dict(comparison), a=first.study_id, b=other.study_id, p_adjusted=p)
        for other, comparison, p in zip(others, comparisons, adjusted, strict=True)
    ]


def _compared(
    first: ComparedStudy, other: ComparedStudy, values: Values, setups: Mapping[str, dict[str, Scalar | None]]
) -> Comparison:
    """With a note of what it leaves out: a mean over the seeds that did not fail says nothing of those that did.

    And of what else than the methods is not the same, such as the dataset: a number alone would not tell.
    """
    comparison = compare(first.by_seed, other.by_seed)
    one, another = setups[first.study_id], setups[other.study_id]
    unlike = []
    if one and another:
        unlike = [f"{name} {one[name]} and {another[name]}" for name in _SETUP if one[name] != another[name]]
    notes = [comparison.note, *(note for side in (first, other) for note in _missing(side, values))]
    notes.append(f"they were not trained alike: {', '.join(unlike)}" if unlike else None)
    return comparison.model_copy(update={"note": "; ".join(note for note in notes if note) or None})


def _missing(side: ComparedStudy, values: Values) -> list[str]:
    """Of which seeds it has no value, and why its search is compared where confirming it has come to nothing."""
    notes = []
    if seeds := missing_seeds(side.missing_by_seed, confirms=values == "confirmed"):
        notes.append(f"{side.study_id} has {seeds}")
    winner = side.configuration
    if values == "search" and winner and not winner.confirmed and (lost := lost_confirmation(winner)):
        notes.append(f"{side.study_id} is not confirmed: {lost}")
    return notes


def _side(
    store: StudyStore,
    study: Study,
    winner: ConfigurationResult | None,
    metric: str,
    values: Values,
    *,
    is_objective: bool,
) -> ComparedStudy:
    """is_objective: the metric is every study's objective; else its value of the last epoch is taken."""
    by_seed: dict[int, float] = {}
    missing: dict[int, TrialState] = {}
    if winner is not None:
        is_confirmed = values == "confirmed"
        by_seed = winner.confirmed_by_seed if is_confirmed else winner.by_seed
        missing = winner.confirmed_missing_by_seed if is_confirmed else winner.missing_by_seed
        if not is_objective:
            states = {**dict.fromkeys(by_seed, TrialState.SUCCEEDED), **missing}
            by_seed = store.values_by_seed(
                winner.configuration, metric, Purpose.CONFIRM if is_confirmed else Purpose.SEARCH
            )
            missing = {seed: state for seed, state in states.items() if seed not in by_seed}
    return ComparedStudy(
        study_id=study.id,
        name=study.name,
        configuration=winner,
        by_seed=by_seed,
        missing_by_seed=missing,
        summary=summarise(list(by_seed.values())) if by_seed else None,
    )
