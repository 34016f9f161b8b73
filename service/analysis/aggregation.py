"""Results over seeds: every number that is reported is mean ± std (n) over the trials that succeeded.

What the search saw and what confirms it are kept apart: the mean by which a configuration was chosen is too good,
because luck took part in the choice; the mean over seeds that the search never saw is honest.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field
from scipy.special import stdtrit

from service.analysis.counting import counted_value, is_whole
from service.analysis.moments import exponent_of, mean_and_std, scaled, unscaled
from service.spec_sections import Mode
from service.study import Configuration, Purpose, Trial, TrialState

CONFIDENCE = 0.95


class Summary(BaseModel):
    """Replicates of one number. With a single replicate nothing is known of the spread.

    What is beyond the largest float, about 1.8e308, is null; a mean never is.
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float | None = Field(description="of the sample (n − 1 in the denominator); null for n = 1, or too large")
    n: int = Field(description="how many replicates")
    low: float | None = Field(description="lower end of the 95 % t interval of the mean; null as std, or too large")
    high: float | None = Field(description="upper end of the 95 % t interval of the mean; null as std, or too large")


class ConfigurationSummary(BaseModel):
    """What a configuration has come to."""

    model_config = ConfigDict(frozen=True)

    configuration: Configuration
    objective: Summary | None = Field(description="over the search trials that succeeded; null where none did")
    confirmed: Summary | None = Field(
        None,
        description="the objective over trials on fresh seeds, which the search never saw; null where none succeeded",
    )
    complete: bool = Field(
        description="every search trial succeeded and has an objective, so nothing is missing in the mean"
    )


class ConfigurationResult(ConfigurationSummary):
    """What the trials of one configuration say together."""

    metrics: dict[str, Summary] = Field(description="of every metric of the last epoch, over the search trials")
    confirmed_metrics: dict[str, Summary] = Field(
        default_factory=dict, description="of every metric of the last epoch, over the confirming trials"
    )
    trial_states: dict[TrialState, int] = Field(description="how many trials are in each state that occurs")
    confirming_trials: int = Field(
        0, description="how many trials on fresh seeds there are, whatever their state; `confirmed.n` have an objective"
    )
    by_seed: dict[int, float] = Field(description="the objective of each search trial that succeeded")
    missing_by_seed: dict[int, TrialState] = Field(
        default_factory=dict, description="the state of each search trial without an objective, or without one yet"
    )
    confirmed_by_seed: dict[int, float] = Field(
        default_factory=dict, description="the objective of each confirming trial that succeeded"
    )
    confirmed_missing_by_seed: dict[int, TrialState] = Field(
        default_factory=dict,
        description="the state of each confirming trial without an objective, or without one yet: `confirmed` leaves "
        "out those that failed",
    )


AnyResult = TypeVar("AnyResult", bound=ConfigurationSummary)


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and the 95 % interval of Student's t. Raises ValueError where there are no values.

    Values that are all equal are their own mean, with a spread of exactly 0: their sum divided by n need not be.
    """
    if not values:
        raise ValueError("a summary needs at least one value")
    return _summary(*mean_and_std(values), len(values))


def aggregate(configurations: Sequence[Configuration], trials: Iterable[Trial]) -> list[ConfigurationResult]:
    """One result for each configuration, in the same order.

    Only trials that succeeded enter the means: one that was stopped early shows in `trial_states` and nowhere else,
    because its last value is that of another epoch.
    """
    of_configuration: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        of_configuration[trial.configuration_id].append(trial)
    return [_result(configuration, of_configuration[configuration.id]) for configuration in configurations]


def best(results: Iterable[AnyResult], mode: Mode) -> AnyResult | None:
    """The best of the confirmed configurations where there are any, else of the complete ones, else of the rest.

    By the confirmed mean, those with the most confirming trials first, else by the mean of the search; of equal ones
    that of the smaller spread, then the earlier. Where none is complete, as early stopping may have it with several
    seeds, those of which most seeds succeeded come first: a mean over one seed has not the same say as one over three.

    Of several confirmed ones the best is still a little too good: it was chosen by the number that is reported. That is
    little, because few are confirmed.
    """
    known = list(results)
    confirmed = [(result.confirmed, result) for result in known if result.confirmed is not None]
    if confirmed:
        return min(confirmed, key=lambda pair: most_seeds_first(pair[0], pair[1].configuration.number, mode))[1]
    complete = [result for result in known if result.complete]
    if complete:
        return min(complete, key=lambda result: rank(result, mode))
    partial = [(result.objective, result) for result in known if result.objective is not None]
    found = min(partial, key=lambda pair: most_seeds_first(pair[0], pair[1].configuration.number, mode), default=None)
    return found and found[1]


def rank(result: ConfigurationSummary, mode: Mode) -> tuple[bool, bool, float, float, int]:
    """A sort key, the best search mean first: complete ones, then those with any objective, by mean, spread, number."""
    if result.objective is None:
        return (True, True, 0.0, 0.0, result.configuration.number)
    return (not result.complete, False, *_order(result.objective, result.configuration.number, mode))


def most_seeds_first(summary: Summary, number: int, mode: Mode) -> tuple[int, float, float, int]:
    """A sort key of a configuration with this number: a mean over fewer seeds has not the same say as one over more."""
    return (-summary.n, *_order(summary, number, mode))


def summary_of(mean: float | None, std: float | None, n: int) -> Summary | None:
    """The summary of n values of which this is known; None where there are none."""
    return None if mean is None else _summary(mean, std, n)


def t_quantile(degrees_of_freedom: float) -> float:
    """Half the width of the 95 % interval of Student's t with this many degrees of freedom."""
    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def _summary(mean: float, std: float | None, n: int) -> Summary:
    if std is None:
        return Summary(mean=mean, std=None, n=n, low=None, high=None)
    exponent = exponent_of((mean, std))
    centre, spread = scaled((mean, std), exponent)
    margin = t_quantile(n - 1) * spread / math.sqrt(n)
    low, high = unscaled(centre - margin, exponent), unscaled(centre + margin, exponent)
    return Summary(mean=mean, std=std, n=n, low=low, high=high)


def _order(summary: Summary, number: int, mode: Mode) -> tuple[float, float, int]:
    mean = -summary.mean if mode == "max" else summary.mean
    spread = math.inf if summary.std is None else summary.std
    return (mean, spread, number)


def _result(configuration: Configuration, trials: Sequence[Trial]) -> ConfigurationResult:
    search = [trial for trial in trials if trial.purpose is Purpose.SEARCH]
    confirming = [trial for trial in trials if trial.purpose is Purpose.CONFIRM]
    by_seed, confirmed_by_seed = _by_seed(search), _by_seed(confirming)
    return ConfigurationResult(
        configuration=configuration,
        objective=summarise(list(by_seed.values())) if by_seed else None,
        confirmed=summarise(list(confirmed_by_seed.values())) if confirmed_by_seed else None,
        complete=is_whole(search),
        metrics=_metrics(search),
        confirmed_metrics=_metrics(confirming),
        trial_states=dict(Counter(trial.state for trial in trials)),
        confirming_trials=len(confirming),
        by_seed=by_seed,
        missing_by_seed=_missing_by_seed(search, by_seed),
        confirmed_by_seed=confirmed_by_seed,
        confirmed_missing_by_seed=_missing_by_seed(confirming, confirmed_by_seed),
    )


def _metrics(trials: Sequence[Trial]) -> dict[str, Summary]:
    """Of the last epoch of the trials that succeeded."""
    values: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        if trial.state is TrialState.SUCCEEDED:
            for name, value in trial.metrics.items():
                if math.isfinite(value):
                    values[name].append(value)
    return {name: summarise(known) for name, known in values.items()}


def _by_seed(trials: Sequence[Trial]) -> dict[int, float]:
    """The objective of each trial that counts, in the order of the seeds."""
    values = {trial.seed: counted_value(trial) for trial in sorted(trials, key=lambda trial: trial.seed)}
    return {seed: value for seed, value in values.items() if value is not None}


def _missing_by_seed(trials: Sequence[Trial], known: Container[int]) -> dict[int, TrialState]:
    """The state of each trial whose seed is not among the known ones, in the order of the seeds."""
    states = {trial.seed: trial.state for trial in trials if trial.seed not in known}
    return dict(sorted(states.items()))
