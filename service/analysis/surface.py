"""Configurations over two parameters, such as λ × ρ, one panel for each value of a third."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from search_spaces import FloatParameter, IntParameter, Parameter, scalar_key
from service.analysis.aggregation import ConfigurationSummary, Summary, best, summarise
from service.spec_sections import Mode
from service.study import Scalar

MAX_PANELS = 6
"""More values than these do not make panels of their own accord."""

NO_PANELS = ""
"""As `panel`: everything on one panel, whatever else varies."""


class Cell(BaseModel):
    """What one place of the surface shows: the best of the configurations there."""

    model_config = ConfigDict(frozen=True)

    x: Scalar
    y: Scalar
    configuration_id: str
    number: int = Field(description="of the configuration that is shown")
    value: Summary | None = Field(description="over the search trials that succeeded; null while none of them has one")
    confirmed: Summary | None = Field(None, description="the same on fresh seeds; null where it was not confirmed")
    complete: bool = Field(description="every search trial of the configuration succeeded, and has a value")
    configurations: int = Field(description="how many configurations lie here; above 1 where other parameters vary")


class Panel(BaseModel):
    """The cells that share one value of the panel parameter."""

    model_config = ConfigDict(frozen=True)

    label: Scalar | None = Field(description="that value; null on the only panel and where the parameter is inactive")
    cells: list[Cell]

    def cell(self, x: Scalar, y: Scalar) -> Cell | None:
        """The cell at this place; None where no configuration lies."""
        wanted = (scalar_key(x), scalar_key(y))
        return next((cell for cell in self.cells if (scalar_key(cell.x), scalar_key(cell.y)) == wanted), None)


class Surface(BaseModel):
    """The objective, or another metric, over two parameters."""

    model_config = ConfigDict(frozen=True)

    x: str
    y: str
    metric: str = Field(description="what is shown: the objective's, unless another was asked for")
    mode: Mode | None = Field(description="the objective's; null for another metric")
    x_values: list[Scalar] = Field(description="numbers ascending, then words such as 1/t")
    y_values: list[Scalar]
    x_log: bool | None = Field(
        description="whether x is searched by its logarithm; null where it is picked from a list"
    )
    y_log: bool | None
    panel: str | None = Field(description="the parameter that tells the panels apart")
    panels: list[Panel]
    best: Cell | None = Field(description="the best configuration; null where none has a result")
    left_out: int = Field(description="configurations that do not have both parameters")


def surface(
    results: Sequence[ConfigurationSummary],
    *,
    metric: str,
    mode: Mode,
    parameters: Mapping[str, Parameter] | None = None,
    x: str = "lambda",
    y: str = "rho",
    panel: str | None = None,
) -> Surface:
    """Arranges the results over parameters `x` and `y`; `metric` is the objective's name.

    parameters: those of the search space; None: nothing is known of their scales. panel: the parameter to tell panels
    apart by; None chooses one (see `panel_parameter`), NO_PANELS takes none.
    Where several configurations lie in one cell, the best of them is shown, as the study's best is chosen.
    """
    placed = [result for result in results if x in result.configuration.point and y in result.configuration.point]
    panel = panel_parameter(placed, x=x, y=y) if panel is None else panel or None
    by_panel: dict[str, list[ConfigurationSummary]] = defaultdict(list)
    labels: dict[str, Scalar | None] = {}
    for result in placed:
        label = result.configuration.point.get(panel) if panel else None
        key = "" if label is None else scalar_key(label)
        labels.setdefault(key, label)
        by_panel[key].append(result)
    order = [*(scalar_key(value) for value in ordered(value for value in labels.values() if value is not None))]
    order += [""] if "" in labels else []
    winner = best(placed, mode)
    panels = [Panel(label=labels[key], cells=_cells(by_panel[key], mode, x, y)) for key in order]
    return Surface(
        x=x,
        y=y,
        metric=metric,
        mode=mode,
        x_values=ordered(result.configuration.point[x] for result in placed),
        y_values=ordered(result.configuration.point[y] for result in placed),
        x_log=is_log((parameters or {}).get(x)),
        y_log=is_log((parameters or {}).get(y)),
        panel=panel,
        panels=panels,
        best=next(
            (
                cell
                for shown in panels
                for cell in shown.cells
                if winner is not None and cell.configuration_id == winner.configuration.id
            ),
            None,
        ),
        left_out=len(results) - len(placed),
    )


def of_another_metric(
    shown: Surface, metric: str, *, search: Mapping[str, Sequence[float]], confirming: Mapping[str, Sequence[float]]
) -> Surface:
    """The same places and the same best configuration, with what another metric has come to there.

    search, confirming: its values by the id of the configuration, one for each trial that succeeded.
    """

    def changed(cell: Cell) -> Cell:
        value, confirmed = (
            summarise(values) if (values := by_id.get(cell.configuration_id)) else None
            for by_id in (search, confirming)
        )
        complete = cell.complete and value is not None and cell.value is not None and value.n == cell.value.n
        return cell.model_copy(update={"value": value, "confirmed": confirmed, "complete": complete})

    panels = [panel.model_copy(update={"cells": [changed(cell) for cell in panel.cells]}) for panel in shown.panels]
    best = None if shown.best is None else changed(shown.best)
    return shown.model_copy(update={"metric": metric, "mode": None, "panels": panels, "best": best})


def best_words(shown: Surface) -> str:
    """What the cell that is marked is: best, by which mean, and of the objective where another metric is shown."""
    confirmed = shown.best is not None and shown.best.confirmed is not None
    return "best" + (" objective" if shown.mode is None else "") + (" on fresh seeds" if confirmed else "")


def tie_words(shown: Surface) -> str:
    """What follows `best_words` where other cells have the same mean: the spread, then the order, chose one of them."""
    equals = 0 if shown.best is None or shown.mode is None else _cells_with_its_mean(shown, shown.best)
    return f", with the same mean as {equals} other cell{'s' * (equals > 1)}" if equals else ""


def _cells_with_its_mean(shown: Surface, best: Cell) -> int:
    def deciding(cell: Cell) -> tuple[bool, int, float] | None:
        summary = cell.confirmed if best.confirmed else cell.value
        is_behind = best.confirmed is None and not cell.complete
        return None if summary is None else (is_behind, summary.n, summary.mean)

    cells = [cell for panel in shown.panels for cell in panel.cells]
    return sum(deciding(cell) == deciding(best) for cell in cells) - 1


def in_order_of_interest(parameters: Iterable[str]) -> list[str]:
    """λ and ρ first, the others as the space has them: the first two make the axes where nobody chooses."""
    return sorted(parameters, key=lambda name: {"lambda": 0, "rho": 1}.get(name, 2))


def panel_parameter(results: Sequence[ConfigurationSummary], *, x: str, y: str) -> str | None:
    """The parameter that tells panels apart: `sampling` where it varies, else the one with the fewest choices.

    A number counts as a choice only where its values come back, at least twice each on average: values that a search
    drew from a range do not.
    """
    candidates = []
    names = {name: None for result in results for name in result.configuration.point if name not in (x, y)}
    for name in names:
        values = [result.configuration.point[name] for result in results if name in result.configuration.point]
        distinct = len({scalar_key(value) for value in values})
        of_words = any(not _is_number(value) for value in values)
        if 2 <= distinct <= MAX_PANELS and (of_words or 2 * distinct <= len(values)):
            candidates.append((name != "sampling", distinct, name))
    return min(candidates)[2] if candidates else None


def ordered(values: Iterable[Scalar]) -> list[Scalar]:
    """Each value once: numbers ascending, then booleans, then words; 1/t before 1-1/t, as the paper has them."""
    distinct = {scalar_key(value): value for value in reversed(list(values))}
    return sorted(distinct.values(), key=_order)


def is_log(parameter: Parameter | None) -> bool | None:
    """Whether it is searched by its logarithm; None where it is picked from a list, or there is none."""
    return parameter.log if isinstance(parameter, FloatParameter | IntParameter) else None


def _cells(results: Iterable[ConfigurationSummary], mode: Mode, x: str, y: str) -> list[Cell]:
    by_place: dict[tuple[str, str], list[ConfigurationSummary]] = defaultdict(list)
    for result in results:
        point = result.configuration.point
        by_place[scalar_key(point[x]), scalar_key(point[y])].append(result)
    cells = []
    for there in by_place.values():
        shown = best(there, mode) or min(there, key=lambda result: result.configuration.number)
        point = shown.configuration.point
        cells.append(
            Cell(
                x=point[x],
                y=point[y],
                configuration_id=shown.configuration.id,
                number=shown.configuration.number,
                value=shown.objective,
                confirmed=shown.confirmed,
                complete=shown.complete,
                configurations=len(there),
            )
        )
    return sorted(cells, key=lambda cell: (_order(cell.y), _order(cell.x)))


def _order(value: Scalar) -> tuple[int, float, int, str]:
    if isinstance(value, bool):
        return (1, float(value), 0, "")
    if isinstance(value, (int, float)):
        return (0, float(value), 0, "")
    return (2, 0.0, len(value), value)  # shorter words first: 1/t before 1-1/t, small before medium


def _is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
