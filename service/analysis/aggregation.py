"""Results over seeds: every number that is reported is mean ± std (n) over the trials that succeeded."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy.special import stdtrit

from service.study import Configuration, Trial, TrialState

CONFIDENCE = 0.95


class Summary(BaseModel):
    """Replicates of one number. With a single replicate nothing is known of the spread."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float | None = Field(description="of the sample (n − 1 in the denominator); null for n = 1")
    n: int = Field(description="how many replicates")
    low: float | None = Field(description="lower end of the 95 % t interval of the mean; null for n = 1")
    high: float | None = Field(description="upper end of the 95 % t interval of the mean; null for n = 1")


class ConfigurationResult(BaseModel):
    """What the trials of one configuration say together."""

    model_config = ConfigDict(frozen=True)

    configuration: Configuration
    objective: Summary | None = Field(description="over the trials that succeeded; null where none did")
    metrics: dict[str, Summary] = Field(description="of every metric of the last epoch, over the same trials")
    trial_states: dict[TrialState, int] = Field(description="how many trials are in each state that occurs")
    by_seed: dict[int, float] = Field(description="the objective of each trial that succeeded")
    complete: bool = Field(description="every trial succeeded and has an objective, so nothing is missing in the mean")


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and the 95 % interval of Student's t. Raises ValueError where there are no values."""
    n = len(values)
    if n == 0:
        raise ValueError("a summary needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(mean=mean, std=None, n=1, low=None, high=None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    margin = t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean=mean, std=std, n=n, low=mean - margin, high=mean + margin)


def aggregate(configurations: Sequence[Configuration], trials: Iterable[Trial]) -> list[ConfigurationResult]:
    """One result for each configuration, in the same order.

    Only trials that succeeded enter the means: one that was stopped early shows in `trial_states` and nowhere else,
    because its last value is that of another epoch.
    """
    of_configuration: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        of_configuration[trial.configuration_id].append(trial)
    return [_result(configuration, of_configuration[configuration.id]) for configuration in configurations]


def best(results: Iterable[ConfigurationResult], mode: Literal["max", "min"]) -> ConfigurationResult | None:
    """The complete configuration with the best mean; of equal ones that of the smaller spread, then the earlier."""
    complete = [result for result in results if result.complete]
    return min(complete, key=lambda result: rank(result, mode), default=None)


def rank(result: ConfigurationResult, mode: Literal["max", "min"]) -> tuple[bool, bool, float, float, int]:
    """A sort key, the best first: complete ones, then those with any objective, by mean, spread and number."""
    objective = result.objective
    if objective is None:
        return (True, True, 0.0, 0.0, result.configuration.number)
    mean = -objective.mean if mode == "max" else objective.mean
    spread = math.inf if objective.std is None else objective.std
    return (not result.complete, False, mean, spread, result.configuration.number)


def t_quantile(degrees_of_freedom: float) -> float:
    """Half the width of the 95 % interval of Student's t with this many degrees of freedom."""
    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def _result(configuration: Configuration, trials: Sequence[Trial]) -> ConfigurationResult:
    succeeded = [trial for trial in trials if trial.state is TrialState.SUCCEEDED]
    by_seed = {
        trial.seed: trial.objective
        for trial in sorted(succeeded, key=lambda trial: trial.seed)
        if trial.objective is not None and math.isfinite(trial.objective)
    }
    metrics: dict[str, list[float]] = defaultdict(list)
    for trial in succeeded:
        for name, value in trial.metrics.items():
            if math.isfinite(value):
                metrics[name].append(value)
    return ConfigurationResult(
        configuration=configuration,
        objective=summarise(list(by_seed.values())) if by_seed else None,
        metrics={name: summarise(values) for name, values in metrics.items()},
        trial_states=dict(Counter(trial.state for trial in trials)),
        by_seed=by_seed,
        complete=bool(trials) and len(by_seed) == len(trials),
    )
