"""Numbers and names as a reader of a table or plot sees them: λ for lambda, 95.70 ± 0.05 for 0.957 and its spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.analysis.aggregation import Summary
from service.study import Scalar

_SYMBOLS = {"lambda": "λ", "rho": "ρ"}
_MAX_DECIMALS = 6


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
    is_share = "accuracy" in metric and all(0 <= mean <= 1 for mean in means)
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
