"""Numbers and names as a reader of a table or plot sees them: λ for lambda, 95.70 ± 0.05 for 0.957 and its spread."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.analysis.aggregation import ConfigurationResult, Summary
from service.study import Scalar, TrialState
from trainers.metrics import is_accuracy

_SYMBOLS = {"lambda": "λ", "rho": "ρ"}
_MAX_DECIMALS = 6
_WITHOUT_VALUE = {
    TrialState.SUCCEEDED: "reported none",
    TrialState.EARLY_STOPPED: "stopped early",
    TrialState.FAILED: "failed",
    TrialState.CANCELLED: "got cancelled",
}
"""Why a trial, or several, that ended have no value."""
_LOST = {TrialState.FAILED: "failed", TrialState.EARLY_STOPPED: "diverged"}
"""Why one that confirms has none: no scheduler stops it early."""


@dataclass(frozen=True, slots=True)
class Unit:
    """How the values of one metric are written: times `factor`, with `decimals`, all of them alike.

    suffix: what the metric's name gets, such as " (%)".
    """

    factor: float
    decimals: int
    suffix: str

    def number(self, value: float) -> str:
        """One value, without its unit."""
        scaled = value * self.factor
        if scaled != 0 and not 1e-5 < abs(scaled) < 1e6:
            return f"{scaled:.3g}"
        return f"{scaled:.{self.decimals}f}"

    def mean_and_std(self, summary: Summary) -> str:
        """Such as 95.70 ± 0.05; only the mean where nothing is known of the spread."""
        mean = self.number(summary.mean)
        return mean if summary.std is None else f"{mean} ± {self.number(summary.std)}"


def unit_of(metric: str, summaries: Iterable[Summary]) -> Unit:
    """Shares such as accuracies in per cent; decimals enough to see what differs, and no more."""
    known = list(summaries)
    means = [summary.mean for summary in known]
    is_share = is_accuracy(metric)
    factor = 100.0 if is_share else 1.0
    spreads = [summary.std for summary in known if summary.std]
    span = max(means) - min(means) if means else 0.0
    step = factor * (statistics.median(spreads) if spreads else span / 20)
    decimals = min(_MAX_DECIMALS, max(0, math.ceil(-math.log10(step)) + 1)) if 0 < step < math.inf else 3
    return Unit(factor, max(1, min(decimals, 2)) if is_share else decimals, " (%)" if is_share else "")


def symbol(parameter: str) -> str:
    """The parameter's letter in the paper, where it has one."""
    return _SYMBOLS.get(parameter, parameter)


def value_label(value: Scalar | None) -> str:
    """A parameter's value, short; a dash for one that is inactive."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, (int, float)) and abs(value) < 1e4 else str(value)


def point_label(point: Mapping[str, Scalar]) -> str:
    """A point of the search space in one line: λ=0.5 ρ=0.1 sampling=uniform; λ and ρ first."""
    names = sorted(point, key=lambda name: (name not in _SYMBOLS, name))
    return " ".join(f"{symbol(name)}={value_label(point[name])}" for name in names)


def ordering(mode: str) -> str:
    """What a colour scale says of its direction."""
    return "higher is better" if mode == "max" else "lower is better"


def figure_title(name: str, *, at: str) -> str:
    """A study's name; at: the epoch that its objective is of, which is said where it is not the last."""
    return f"{name} (best epoch)" if at == "best" else name


def lost_confirmation(result: ConfigurationResult) -> str | None:
    """`1 of 3 trials failed`, of those that confirm the configuration; None where none has ended without a value."""
    lost = [state for state in result.confirmed_missing_by_seed.values() if state.is_final]
    if not lost:
        return None
    said = _LOST.get(lost[0], "") if len(set(lost)) == 1 else ""
    return f"{len(lost)} of {result.confirming_trials} trials {said or 'ended without a value'}"


def missing_seeds(missing: Mapping[int, TrialState], *, confirms: bool = False) -> str | None:
    """`no value for seed 2: its trial failed`, of the states of trials without a value by seed; None without any.

    confirms: whether these are confirming trials, which nothing stops early unless they diverge.
    """
    reasons = {**_WITHOUT_VALUE, **_LOST} if confirms else _WITHOUT_VALUE
    seeds_by_reason: dict[str, list[int]] = defaultdict(list)
    for seed, state in sorted(missing.items()):
        seeds_by_reason[reasons.get(state, "did not end yet")].append(seed)
    return ", ".join(_missing(seeds, reason) for reason, seeds in seeds_by_reason.items()) or None


def _missing(seeds: list[int], reason: str) -> str:
    if len(seeds) == 1:
        return f"no value for seed {seeds[0]}: its trial {reason}"
    *first, last = map(str, seeds)
    return f"no value for seeds {', '.join(first)} and {last}: their trials {reason}"
