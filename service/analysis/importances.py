"""Which parameters matter: how much of the objective's variance each explains, by Optuna's evaluators."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.parameters import CategoricalParameter, FloatParameter, IntParameter, Parameter, Scalar
from service.analysis.aggregation import ConfigurationSummary
from service.analysis.moments import scaled
from service.errors import NotEnoughResultsError
from service.spec_sections import Mode

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ImportanceMethod = Literal["fanova", "ped_anova"]
"""fanova: a random forest's variance over the whole space (Hutter et al. 2014). ped_anova: what tells the best points
from the others (arXiv 2304.10255), which also says something of parameters that are not in every point."""

MIN_CONFIGURATIONS = 10
"""Below it, a forest of trees tells noise from signal no better than the eye does."""

MAX_FOR_A_FOREST = 300
"""More configurations are thinned out evenly: the forest's time grows faster than they do (300: 2 s on one core)."""

_SEED = 0

_NOTHING_TO_TELL = "Target and region quantiles select the same set of trials"
"""With this warning ped_anova answers equal importances, which say nothing."""


def importances(
    results: Sequence[ConfigurationSummary],
    parameters: Mapping[str, Parameter],
    *,
    mode: Mode,
    method: ImportanceMethod,
) -> tuple[dict[str, float], int]:
    """The importance of each parameter, the highest first, summing to 1; and of how many configurations it was told.

    Only complete configurations count, by the mean of the search; a forest looks at MAX_FOR_A_FOREST of them at most.
    Raises NotEnoughResultsError.
    """
    told = [
        (result.configuration.point, result.objective.mean)
        for result in results
        if result.complete and result.objective is not None
        if all(
            name in parameters and parameters[name].takes(value) for name, value in result.configuration.point.items()
        )
    ]
    if len(told) < MIN_CONFIGURATIONS:
        raise NotEnoughResultsError(
            f"importances need {MIN_CONFIGURATIONS} complete configurations or more, and there are {len(told)}"
        )
    if len({mean for _, mean in told}) == 1:
        raise NotEnoughResultsError(f"all {len(told)} complete configurations have the same objective: nothing matters")
    if method == "fanova" and len(told) > MAX_FOR_A_FOREST:
        told = [told[index * len(told) // MAX_FOR_A_FOREST] for index in range(MAX_FOR_A_FOREST)]
    names = [name for name in parameters if any(name in point for point, _ in told)]
    if method == "fanova":
        names = [name for name in names if all(name in point for point, _ in told)]
    if not names:
        raise NotEnoughResultsError("no parameter is in every point: method ped_anova can tell something of them")
    varied = [name for name in names if len({repr(point.get(name)) for point, _ in told}) > 1]
    found = _evaluated(_of_one_size(told), {name: parameters[name] for name in varied}, mode, method) if varied else {}
    return {**found, **{name: 0.0 for name in names if name not in varied}}, len(told)


def _of_one_size(told: Sequence[tuple[Mapping[str, Any], float]]) -> list[tuple[Mapping[str, Any], float]]:
    """The objectives from the lowest on, scaled by a power of two so that they lie about 1 apart.

    Importances are shares of the variance. That of large numbers is no float, to a forest one below 1e-16 is none, and
    of numbers that differ little beside their size it is lost in rounding.
    """
    means = [mean for _, mean in told]
    exponent = math.frexp(min(max(means) - min(means), sys.float_info.max))[1]
    values = scaled(means, exponent)
    lowest = min(values)
    return list(zip([point for point, _ in told], [value - lowest for value in values], strict=True))


def _evaluated(
    told: Sequence[tuple[Mapping[str, Any], float]],
    parameters: Mapping[str, Parameter],
    mode: Mode,
    method: ImportanceMethod,
) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    distributions = {name: distribution(parameter) for name, parameter in parameters.items()}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "Some regimes for parameter")  # n says how much there is to go by
    warnings.filterwarnings("error", _NOTHING_TO_TELL)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    for point, mean in told:
        known = {name: in_optuna(parameters[name], value) for name, value in point.items() if name in distributions}
        study.add_trial(
            optuna.trial.create_trial(
                params=known, distributions={name: distributions[name] for name in known}, value=mean
            )
        )
    evaluator = FanovaImportanceEvaluator(seed=_SEED) if method == "fanova" else PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(parameters))
    except UserWarning as warning:
        raise NotEnoughResultsError(
            f"too many of the {len(told)} complete configurations have the same objective to tell the best tenth of "
            "them from the others: method fanova can tell more"
        ) from warning
    sound = {name: float(value) if math.isfinite(value) else 0.0 for name, value in found.items()}
    return dict(sorted(sound.items(), key=lambda pair: -pair[1]))


def in_optuna(parameter: Parameter, value: Scalar) -> Scalar:
    """A value of the parameter in terms of `distribution`."""
    if isinstance(parameter, FloatParameter) and parameter.step is not None:
        return parameter.index_of(float(value))
    return value


def distribution(parameter: Parameter) -> BaseDistribution:
    """The parameter in Optuna's terms: floats in steps by their number, as Optuna takes no step within rounding."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match parameter:
        case FloatParameter(step=float(), size=int(size)):
            return IntDistribution(0, size - 1)
        case FloatParameter(low=low, high=high, log=log):
            return FloatDistribution(low, high, log=log)
        case IntParameter(low=low, high=high, log=log, step=step):
            return IntDistribution(low, high, log=log, step=step)
        case CategoricalParameter(choices=choices):
            return CategoricalDistribution(choices)
