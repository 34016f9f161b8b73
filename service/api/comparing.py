"""Several studies against each other, by their best configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from service.analysis.aggregation import ConfigurationResult, summarise
from service.analysis.comparison import compare, holm
from service.answers import ComparedStudy, StudyComparison, StudyDifference
from service.api import reading
from service.errors import FieldProblem, InvalidRequestError
from service.store.studies import StudyStore
from service.study import Purpose, Study

Values = Literal["confirmed", "search"]


def compare_studies(store: StudyStore, study_ids: Sequence[str], metric: str | None) -> StudyComparison:
    """The best configuration of each study, and each later study against the first.

    By what confirms them where each of these configurations has been confirmed, else by what the search saw: never the
    one against the other. metric: by default the objective that all of them share.
    Raises StudyNotFoundError, InvalidRequestError.
    """
    found = [reading.best_result(store, study_id) for study_id in study_ids]
    shared = {reading.objective_of(study).metric for study, _ in found}
    if metric is None:
        if len(shared) > 1:
            raise _refused(
                f"the studies have different objectives ({', '.join(sorted(shared))}): say which metric to compare"
            )
        (metric,) = shared
    known = {name for _, winner in found if winner for name in winner.metrics}
    if known and metric not in known | shared:
        raise _refused(f"no trial reports {metric!r}; what they report: {', '.join(sorted(known))}")
    winners = [winner for _, winner in found if winner is not None]
    values: Values = "confirmed" if winners and all(winner.confirmed for winner in winners) else "search"
    sides = [_side(store, study, winner, metric, values) for study, winner in found]
    return StudyComparison(metric=metric, values=values, studies=sides, differences=_differences(sides))


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, problems=[FieldProblem("metric", message)])


def _differences(sides: Sequence[ComparedStudy]) -> list[StudyDifference]:
    first, *others = sides
    comparisons = [compare(first.by_seed, other.by_seed) for other in others]
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        StudyDifference(**dict(comparison), a=first.study_id, b=other.study_id, p_adjusted=p)
        for other, comparison, p in zip(others, comparisons, adjusted, strict=True)
    ]


def _side(
    store: StudyStore, study: Study, winner: ConfigurationResult | None, metric: str, values: Values
) -> ComparedStudy:
    by_seed: dict[int, float] = {}
    if winner is not None:
        if metric == reading.objective_of(study).metric:
            by_seed = winner.confirmed_by_seed if values == "confirmed" else winner.by_seed
        else:
            purpose = Purpose.CONFIRM if values == "confirmed" else Purpose.SEARCH
            by_seed = store.values_by_seed(winner.configuration, metric, purpose)
    return ComparedStudy(
        study_id=study.id,
        name=study.name,
        configuration=winner,
        by_seed=by_seed,
        summary=summarise(list(by_seed.values())) if by_seed else None,
    )
