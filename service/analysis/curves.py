"""Curves over the steps of training: the mean over runs with a band of one standard deviation, ready to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.analysis.moments import mean_and_std, mean_of

Dash = Literal["solid", "dashed"]
Marker = Literal["none", "circle", "triangle"]


_LARGEST = 1e250
"""The margins of a logarithmic axis are wide: above a higher curve they would be beyond the largest float."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Runs of one configuration together: points from left to right, all values above 0.

    label: what the legend calls it; empty: nothing, because another curve stands for it.
    low, high: the band around the mean; empty where one run leaves the spread unknown. n: how many runs.
    """

    label: str
    colour: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    n: int = 1
    dash: Dash = "solid"
    marker: Marker = "none"


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """One pair of axes. title: what its curves have in common; empty where there is one panel only."""

    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """Panels side by side on one logarithmic axis of values.

    subtitle: what is drawn, line by line. legend_title: what the labels name, such as λ.
    """

    title: str
    subtitle: tuple[str, ...]
    x_label: str
    y_label: str
    panels: tuple[CurvePanel, ...]
    legend_title: str = ""


def mean_curve(
    runs: Sequence[Mapping[float, float]],
    *,
    label: str,
    colour: str,
    dash: Dash = "solid",
    marker: Marker = "none",
    with_band: bool = True,
) -> Curve:
    """The arithmetic mean of the runs at every place that all of them have, with a band of one standard deviation.

    A logarithmic axis has no place for values of 0 and less: places whose mean is not above 0 are left out, and those
    where it is above 1e250. The band's lower edge is mean − std, but never below the lowest of the runs.
    runs: the value of each run by its place. Raises ValueError where there are no runs.
    """
    if not runs:
        raise ValueError("a curve needs at least one run")
    places = sorted(set(runs[0]).intersection(*runs[1:]))
    points = []
    for place in places:
        values = [run[place] for run in runs]
        if all(map(math.isfinite, values)) and 0 < (mean := mean_of(values)) <= _LARGEST:
            points.append((place, mean, *band_edges(values)))
    has_band = with_band and len(runs) > 1
    return Curve(
        label=label,
        colour=colour,
        x=tuple(point[0] for point in points),
        mean=tuple(point[1] for point in points),
        low=tuple(point[2] for point in points) if has_band else (),
        high=tuple(point[3] for point in points) if has_band else (),
        n=len(runs),
        dash=dash,
        marker=marker,
    )


def band_edges(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the band: mean ± one sample standard deviation, the lower one not below the smallest value.

    The upper one is at most what an axis has a place for, 1e250.
    """
    mean, std = mean_and_std(values)
    if len(values) == 1:
        return mean, mean
    std = math.inf if std is None else std
    return max(mean - std, min(values)), min(mean + std, _LARGEST)


def tail_mean(run: Mapping[float, float], share: float) -> float:
    """The mean of the last share of a run's places: where it stands at the end, with less noise than its last value."""
    places = sorted(run)
    first = places[-1] - share * (places[-1] - places[0])
    values = [run[place] for place in places if place >= first]
    return mean_of(values)


def first_below(curve: Curve, level: float) -> float | None:
    """The first place from which on the curve stays at or below the level; None where it ends above it."""
    found = None
    for place, value in zip(curve.x, curve.mean, strict=True):
        if value > level:
            found = None
        elif found is None:
            found = place
    return found
