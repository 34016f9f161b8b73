"""What the figures on synthetic problems have in common: their studies, their curves, and how a curve ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.analysis.aggregation import Summary, summarise
from service.analysis.curve_page import curves_html
from service.analysis.curve_png import curves_png
from service.analysis.curves import Curve, CurveFigure, Marker, mean_curve, tail_mean
from service.analysis.labelling import value_label
from service.reproduction.experiment import StudyResults
from service.reproduction.markdown import number
from service.spec import StudySpec, parse_spec
from service.study import Scalar

METRIC, BOUND = "suboptimality", "bound"
BOUND_LABEL = "bound of Theorem 3.2"
Y_LABEL = "relative suboptimality  (f(xₜ) − f*) / (f(x₀) − f*)"
X_LABEL = "steps"
TAIL = 0.02
"""Where a run ends: the mean over this last share of its steps, which is less noisy than its last value."""
ENDS_NOTE = f"“Ends at”: the mean over the last {100 * TAIL:.0f} % of the steps"
RUNS_NOTE = f"{ENDS_NOTE}, ± the standard deviation over the runs."

THEORY = {
    "model": "linear",
    "optimizer": "sgd",
    "lr": "theory",
    "rho": "theory",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "landscape": "none",
    "device": "cpu",
}
"""Training with the theorems' step sizes, which a GPU would only slow down; of what else could be measured nothing is.
"""


def extent(*, epochs: int, seeds: int) -> str:
    """That all of the authors' experiment is run, which has one run for λ = 0. An epoch has 100 steps."""
    return f"all {100 * epochs:,} steps and all {seeds} runs of the authors' notebook (which has one run for λ = 0)"


def synthetic_study(
    name: str,
    description: str,
    *,
    train: Mapping[str, Scalar],
    space: Mapping[str, Sequence[Scalar]],
    seeds: int,
) -> StudySpec:
    """The whole grid over `space`, with seeds 0, 1, …; a trial that is cut off goes on from a tenth of its epochs."""
    raw: dict[str, Any] = {
        "name": name,
        "description": description,
        "train": {**THEORY, **train},
        "search_space": {key: {"type": "categorical", "choices": list(values)} for key, values in space.items()},
        "objective": {"metric": METRIC, "mode": "min"},
        "replicates": {"seeds": list(range(seeds))},
        "budget": {"max_failed_trials": 0},
        "checkpoint": {"every_epochs": max(1, int(train["epochs"]) // 10), "keep": "none"},
    }
    return parse_spec(raw)


@dataclass(frozen=True, slots=True)
class Ending:
    """Where the runs of a configuration end. by_seed: of each run the mean of its tail; summary: over the runs."""

    by_seed: Mapping[int, float]
    summary: Summary

    @property
    def mean(self) -> float:
        """Over the runs."""
        return self.summary.mean

    def __str__(self) -> str:
        std = self.summary.std
        return number(self.mean) if std is None else f"{number(self.mean)} ± {number(std)}"


def ending(results: StudyResults, point: Mapping[str, Scalar]) -> Ending | None:
    """Where the runs at this point end; None where none succeeded."""
    runs = _runs(results, METRIC, point)
    if not runs:
        return None
    by_seed = {seed: tail_mean(run, TAIL) for seed, run in runs.items()}
    return Ending(by_seed, summarise(list(by_seed.values())))


def curve(
    results: StudyResults, point: Mapping[str, Scalar], *, label: str = "", colour: str = "", marker: Marker = "none"
) -> Curve | None:
    """The relative suboptimality of the runs at this point, from 1 on; None where none succeeded."""
    runs = _runs(results, METRIC, point, start=1.0)
    return mean_curve(list(runs.values()), label=label, colour=colour, marker=marker) if runs else None


def bound_curve(
    results: StudyResults, point: Mapping[str, Scalar], *, label: str = "", colour: str = ""
) -> Curve | None:
    """What theory bounds the expectation of the same runs by, as a mean over them; None where nothing does."""
    runs = _runs(results, BOUND, point)
    if not runs:
        return None
    return mean_curve(list(runs.values()), label=label, colour=colour, dash="dashed", with_band=False)


def bound_violations(results: StudyResults, point: Mapping[str, Scalar]) -> tuple[int, int]:
    """At how many of the places that have both, the mean over runs lies above the mean bound; and how many there are.

    The bound is one of the expectation, so the mean over a few runs can exceed it by chance.
    """
    measured, bound = curve(results, point), bound_curve(results, point)
    if measured is None or bound is None:
        return 0, 0
    limits = dict(zip(bound.x, bound.mean, strict=True))
    pairs = [(value, limits[place]) for place, value in zip(measured.x, measured.mean, strict=True) if place in limits]
    return sum(value > limit for value, limit in pairs), len(pairs)


def bound_sentence(
    counts: Sequence[tuple[int, int]], *, runs: str = "runs", bound: str = "the bound of Theorem 3.2"
) -> str:
    """What there is to say of the bound over several configurations. runs, bound: which ones, in words."""
    above, places = sum(above for above, _ in counts), sum(places for _, places in counts)
    if not places:
        return f"No bound of the {runs} was reported."
    if not above:
        return f"The mean over {runs} lies under {bound} at all {places:,} places where both are known."
    return (
        f"The mean over {runs} lies above {bound} at {above:,} of {places:,} places; "
        "the bound is one of the expectation."
    )


def drawn(name: str, figure: CurveFigure) -> dict[str, bytes]:
    """The picture and the page of the figure, by file name."""
    return {f"{name}.png": curves_png(figure), f"{name}.html": curves_html(figure).encode()}


def shown(name: str, title: str) -> str:
    """The figure in Markdown."""
    return f"![{title}]({name}.png)\n\nThe same to hover over and to zoom into: [{name}.html]({name}.html)."


def lambda_label(lam: Scalar) -> str:
    """λ = 0.5"""
    return f"λ = {value_label(lam)}"


def known(curves: Sequence[Curve | None]) -> tuple[Curve, ...]:
    """Those that are there."""
    return tuple(item for item in curves if item is not None)


def subtitle(problem: str, *, seeds: int, bounds: str = BOUND_LABEL) -> tuple[str, ...]:
    """The problem, and what the lines and bands are. bounds: what the dashed lines are."""
    if seeds == 1:
        return (f"{problem}; one run; dashed: {bounds}",)
    lines = f"lines: mean over {seeds} runs; bands: ± one standard deviation, cut off below at the lowest run"
    return problem, f"{lines}; dashed: {bounds}"


def _runs(
    results: StudyResults, metric: str, point: Mapping[str, Scalar], *, start: float | None = None
) -> dict[int, dict[float, float]]:
    configuration = results.configuration(point)
    return {} if configuration is None else results.runs(configuration, metric, start=start)
