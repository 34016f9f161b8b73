"""The objective over the one parameter that a study searches, such as ρ: means and spreads, ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces import Parameter
from service.analysis.aggregation import ConfigurationSummary, Summary, best
from service.analysis.surface import is_log, ordered
from service.spec_sections import Mode
from service.study import Scalar


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration that has a result."""

    value: Scalar
    number: int
    objective: Summary
    is_best: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """points: in the order of their values, numbers first. is_log: as in `scale_axis`."""

    parameter: str
    metric: str
    mode: Mode
    is_log: bool | None
    points: tuple[Point, ...]

    @property
    def values(self) -> list[Scalar]:
        """Each value of the parameter."""
        return [point.value for point in self.points]


def profile(
    results: Sequence[ConfigurationSummary], *, metric: str, mode: Mode, name: str, parameter: Parameter
) -> Profile:
    """The configurations that have a result, along the parameter of this name."""
    winner = best(results, mode)
    by_value = {result.configuration.point[name]: result for result in results if result.objective is not None}
    points = [
        Point(value, result.configuration.number, result.objective, result is winner)
        for value in ordered(by_value)
        if (result := by_value[value]).objective is not None
    ]
    return Profile(name, metric, mode, is_log(parameter), tuple(points))
