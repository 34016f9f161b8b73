"""Surfaces as interactive pages by plotly; the page carries all it needs and opens without a network."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from service.analysis import colours
from service.analysis.axes import Axis, grid_axis, scale_axis
from service.analysis.labelling import Unit, ordering, symbol, unit_of, value_label
from service.analysis.profile import Profile
from service.analysis.surface import Cell, Panel, Surface

_MAX_WIDTH = 1_150  # pixels of panels side by side; further panels go below
_BAR = {"displaylogo": False, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def heat_map_html(surface: Surface, *, title: str, metric: str) -> str:
    """One cell for each pair of values."""
    drawing = _Drawing.of(surface, title, metric)
    x, y = grid_axis(surface.x_values), grid_axis(surface.y_values)
    width, height = 108 * round(x.high - x.low), 62 * round(y.high - y.low)

    def traces(panel: Panel) -> list[Any]:
        cells = [[panel.cell(column, row) for column in surface.x_values] for row in surface.y_values]
        heat_map = go.Heatmap(
            x=x.ticks,
            y=y.ticks,
            z=[[drawing.mean(cell) for cell in line] for line in cells],
            customdata=[[drawing.hover(cell) if cell else "" for cell in line] for line in cells],
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
        )
        return [heat_map, drawing.words(panel.cells, x, y)]

    figure = drawing.figure(traces, x, y, width, height)
    figure.update_yaxes(autorange=False, range=[y.high, y.low])  # the first row on top, as in a table
    figure.update_layout(plot_bgcolor=colours.MISSING)
    for row, column, panel in drawing.layout(width):
        for cell in panel.cells:
            if drawing.is_best(cell):
                left, top = x.position(cell.x), y.position(cell.y)
                corners = {"x0": left - 0.47, "x1": left + 0.47, "y0": top - 0.46, "y1": top + 0.46}
                line = {"color": colours.BEST, "width": 3}
                figure.add_shape(type="rect", **corners, line=line, row=row, col=column)
    return page_of(figure)


def scatter_html(surface: Surface, *, title: str, metric: str) -> str:
    """One point for each pair of values; its size says how far its seeds lie apart."""
    drawing = _Drawing.of(surface, title, metric)
    x = scale_axis(surface.x_values, is_log=surface.x_log)
    y = scale_axis(surface.y_values, is_log=surface.y_log)
    everything = [cell.value.std or 0.0 for panel in surface.panels for cell in panel.cells if cell.value]
    largest = max(everything, default=0.0)

    def traces(panel: Panel) -> list[Any]:
        known = [cell for cell in panel.cells if cell.value]
        spreads = [(cell.value.std or 0.0) / largest if cell.value and largest else 0.05 for cell in known]
        outline = {
            "color": [colours.BEST if drawing.is_best(cell) else "white" for cell in known],
            "width": [3 if drawing.is_best(cell) else 1 for cell in known],
        }
        points = go.Scatter(
            x=[x.position(cell.x) for cell in known],
            y=[y.position(cell.y) for cell in known],
            customdata=[drawing.hover(cell) for cell in known],
            hovertemplate="%{customdata}<extra></extra>",
            mode="markers",
            marker={
                "color": [drawing.mean(cell) for cell in known],
                "coloraxis": "coloraxis",
                "size": [9.0 + 11.0 * math.sqrt(spread) for spread in spreads],
                "opacity": 1,
                "line": outline,
            },
        )
        return [points]

    figure = drawing.figure(traces, x, y, 460, 400)
    figure.update_layout(plot_bgcolor="white")
    grid = {"showgrid": True, "gridcolor": colours.GRID, "linecolor": "#bbbbbb"}
    figure.update_xaxes(grid)
    figure.update_yaxes(grid)
    return page_of(figure)


def profile_html(shown: Profile, *, title: str) -> str:
    """A point for each value of the parameter, with a bar of one standard deviation up and down."""
    unit = unit_of(shown.metric, [point.objective for point in shown.points])
    x = scale_axis(shown.values, is_log=shown.is_log)
    metric, parameter = html.escape(shown.metric) + unit.suffix, html.escape(symbol(shown.parameter))
    points = go.Scatter(
        x=[x.position(point.value) for point in shown.points],
        y=[point.objective.mean * unit.factor for point in shown.points],
        error_y={"array": [(point.objective.std or 0.0) * unit.factor for point in shown.points], "thickness": 1.5},
        customdata=[
            f"<b>{parameter} = {html.escape(value_label(point.value))}</b><br>"
            f"{metric}: {unit.mean_and_std(point.objective)} (n = {point.objective.n})<br>configuration {point.number}"
            for point in shown.points
        ],
        hovertemplate="%{customdata}<extra></extra>",
        mode="markers",
        marker={
            "color": colours.CATEGORIES[0],
            "size": 11,
            "line": {
                "color": [colours.BEST if point.is_best else "white" for point in shown.points],
                "width": [3 if point.is_best else 1 for point in shown.points],
            },
        },
    )
    figure = go.Figure(points)
    subtitle = f"{metric}, {ordering(shown.mode)} · mean ± standard deviation"
    figure.update_layout(
        title=_title(html.escape(title), subtitle),
        font={"family": FONT, "size": 13, "color": colours.INK},
        width=640,
        height=460,
        plot_bgcolor="white",
        paper_bgcolor="white",
    )
    grid = {"gridcolor": colours.GRID, "linecolor": "#bbbbbb", "zeroline": False}
    figure.update_xaxes({**_axis_options(x), **grid, "showgrid": True, "title_text": parameter})
    figure.update_yaxes(title_text=metric, **grid)
    return page_of(figure)


@dataclass(frozen=True)
class _Drawing:
    """What every figure of one surface has in common. The text is escaped: plotly reads markup in it."""

    surface: Surface
    title: str
    metric: str
    unit: Unit
    ends: tuple[float, float]

    @classmethod
    def of(cls, surface: Surface, title: str, metric: str) -> _Drawing:
        known = [cell.value for panel in surface.panels for cell in panel.cells if cell.value]
        ends = colours.limits([summary.mean for summary in known])
        return cls(surface, html.escape(title), html.escape(metric), unit_of(metric, known), ends)

    def layout(self, width: int) -> list[tuple[int, int, Panel]]:
        """Row and column, from 1, of each panel."""
        panels = self.surface.panels or [Panel(label=None, cells=[])]
        across = max(1, min(len(panels), _MAX_WIDTH // max(width, 1)))
        return [(1 + index // across, 1 + index % across, panel) for index, panel in enumerate(panels)]

    def figure(self, traces: Callable[[Panel], list[Any]], x: Axis, y: Axis, width: int, height: int) -> go.Figure:
        """All panels, each of `width` × `height` pixels, on one colour scale."""
        layout = self.layout(width)
        across, down = max(column for _, column, _ in layout), max(row for row, _, _ in layout)
        inner_width, inner_height = across * width + (across - 1) * 36, down * height + (down - 1) * 100
        figure = make_subplots(
            rows=down,
            cols=across,
            subplot_titles=self._names(),
            horizontal_spacing=36 / inner_width,
            vertical_spacing=100 / inner_height if down > 1 else 0.0,
        )
        for row, column, panel in layout:
            for trace in traces(panel):
                figure.add_trace(trace, row=row, col=column)
        margin = {"l": 70, "r": 100, "t": 110, "b": 60}
        subtitle = self.metric + self.unit.suffix
        subtitle += f", {ordering(self.surface.mode)}" if self.surface.mode else ""
        subtitle += " · mean ± standard deviation"
        figure.update_layout(
            title=_title(self.title, subtitle) | {"y": 1 - 24 / (inner_height + 170), "yanchor": "top"},
            font={"family": FONT, "size": 13, "color": colours.INK},
            width=max(inner_width, 420) + margin["l"] + margin["r"],
            height=inner_height + margin["t"] + margin["b"],
            margin=margin,
            paper_bgcolor="white",
            showlegend=False,
            coloraxis={
                "colorscale": "Viridis",
                "reversescale": self.surface.mode == "min",
                "cmin": self.ends[0] * self.unit.factor,
                "cmax": self.ends[1] * self.unit.factor,
                "colorbar": {"thickness": 14, "outlinewidth": 0, "len": 1.0, "ypad": 0},
            },
        )
        figure.update_xaxes({**_axis_options(x), "title_text": html.escape(symbol(self.surface.x))})
        figure.update_yaxes({**_axis_options(y), "showticklabels": False})
        figure.update_yaxes(col=1, showticklabels=True, title_text=html.escape(symbol(self.surface.y)))
        figure.update_annotations(font_size=14)
        return figure

    def words(self, cells: Sequence[Cell], x: Axis, y: Axis) -> go.Scatter:
        """What stands in the cells, black or white by their colour."""
        inks = []
        for cell in cells:
            known = cell.value
            inks.append(colours.ink_on(self._colour(known.mean)) if known else colours.FAINT)
        return go.Scatter(
            x=[x.position(cell.x) for cell in cells],
            y=[y.position(cell.y) for cell in cells],
            text=[self._cell_text(cell) for cell in cells],
            textfont={"color": inks, "size": 13},
            mode="text",
            hoverinfo="skip",
        )

    def is_best(self, cell: Cell) -> bool:
        return self.surface.best is not None and self.surface.best.configuration_id == cell.configuration_id

    def mean(self, cell: Cell | None) -> float | None:
        return cell.value.mean * self.unit.factor if cell and cell.value else None

    def hover(self, cell: Cell) -> str:
        place = ((self.surface.x, cell.x), (self.surface.y, cell.y))
        lines = ["<b>" + html.escape(", ".join(f"{symbol(name)} = {value_label(value)}" for name, value in place))]
        lines[0] += "</b>"
        if cell.value:
            known = cell.value
            lines.append(f"{self.metric}{self.unit.suffix}: {self.unit.mean_and_std(known)} (n = {known.n})")
            if known.low is not None and known.high is not None:
                lines.append(f"95 % interval: {self.unit.number(known.low)} to {self.unit.number(known.high)}")
        else:
            lines.append("no trial has a value yet")
        lines.append(f"configuration {cell.number}" + ("" if cell.complete else ", unfinished"))
        if cell.configurations > 1:
            lines.append(f"the best of {cell.configurations} configurations here")
        return "<br>".join(lines)

    def _colour(self, mean: float) -> colours.Rgb:
        return colours.colour(mean, self.ends, self.surface.mode)

    def _cell_text(self, cell: Cell) -> str:
        if cell.value is None:
            return "–"
        text = self.unit.mean_and_std(cell.value)
        return f"{f'<b>{text}</b>' if self.is_best(cell) else text}<br>n = {cell.value.n}"

    def _names(self) -> list[str] | None:
        if not self.surface.panel:
            return None
        name = symbol(self.surface.panel)
        return [html.escape(f"{name} = {value_label(panel.label)}") for panel in self.surface.panels]


def _title(title: str, subtitle: str) -> dict[str, Any]:
    """Both lines, whose text is escaped."""
    return {
        "text": f"<b>{title}</b>",
        "subtitle": {"text": subtitle, "font": {"size": 13, "color": colours.FAINT}},
        "font": {"size": 18},
        "x": 0.0,
        "xref": "paper",
    }


def _axis_options(axis: Axis) -> dict[str, Any]:
    ends = [math.log10(axis.low), math.log10(axis.high)] if axis.is_log else [axis.low, axis.high]
    options: dict[str, Any] = {"range": ends, "showgrid": False, "zeroline": False}
    if axis.is_log:
        options["type"] = "log"
    if axis.ticks is not None:
        options |= {"tickvals": axis.ticks, "ticktext": [html.escape(label) for label in axis.labels]}
    return options


def page_of(figure: go.Figure) -> str:
    """The figure as a page of its own that needs no network."""
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, config=_BAR)
    return page
