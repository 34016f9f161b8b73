"""Curves as an interactive page by plotly: hovering shows each value, a click in the legend hides a curve."""

from __future__ import annotations

import html
import math
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from service.analysis import colours
from service.analysis.curves import Curve, CurveFigure
from service.analysis.plotly_figures import FONT, page_of

_PANEL_WIDTH, _ONLY_WIDTH, _HEIGHT, _GAP = 360, 720, 400, 30  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 190, 150, 60
_SYMBOLS = {"none": "circle", "circle": "circle", "triangle": "triangle-up"}
_MARKERS_ON_A_CURVE = 6


def curves_html(figure: CurveFigure) -> str:
    """The figure as a page of its own that needs no network."""
    count = len(figure.panels)
    width = (_PANEL_WIDTH if count > 1 else _ONLY_WIDTH) * count + _GAP * (count - 1)
    drawing = make_subplots(
        cols=count,
        shared_yaxes=True,
        horizontal_spacing=_GAP / width if count > 1 else 0.0,
        subplot_titles=[html.escape(panel.title) for panel in figure.panels],
    )
    shown = {""}
    for column, panel in enumerate(figure.panels, 1):
        for curve in panel.curves:
            drawing.add_traces(_traces(curve, in_legend=curve.label not in shown), cols=column, rows=1)
            shown.add(curve.label)
    grid = {"gridcolor": colours.GRID, "linecolor": "#bbbbbb", "zeroline": False}
    drawing.update_xaxes(title_text=html.escape(figure.x_label), **grid)
    drawing.update_yaxes(type="log", exponentformat="power", dtick=_decades(figure), **grid)
    drawing.update_yaxes(col=1, title_text=html.escape(figure.y_label))
    drawing.update_layout(
        title={
            "text": f"<b>{html.escape(figure.title)}</b>",
            "subtitle": {
                "text": "<br>".join(map(html.escape, figure.subtitle)),
                "font": {"size": 13, "color": colours.FAINT},
            },
            "font": {"size": 18},
            "x": 0.0,
            "xref": "paper",
        },
        font={"family": FONT, "size": 13, "color": colours.INK},
        width=width + _LEFT + _RIGHT,
        height=_HEIGHT + _TOP + _BOTTOM,
        margin={"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": _BOTTOM},
        legend={"title": {"text": html.escape(figure.legend_title)}},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    return page_of(drawing)


def _traces(curve: Curve, *, in_legend: bool) -> list[go.Scatter]:
    """The line, and under it the band, which the legend hides together with it."""
    name = html.escape(curve.label)
    line = go.Scatter(
        x=curve.x,
        y=curve.mean,
        customdata=[_hover(curve, index) for index in range(len(curve.x))],
        hovertemplate="%{customdata}<extra></extra>",
        mode="lines" if curve.marker == "none" else "lines+markers",
        name=name,
        legendgroup=name,
        showlegend=in_legend,
        line={"color": curve.colour, "width": 1.5 if curve.dash == "dashed" else 2, "dash": _dash(curve)},
        marker={
            "symbol": _SYMBOLS[curve.marker],
            "size": 8,
            "maxdisplayed": _MARKERS_ON_A_CURVE,
            "line": {"color": "white", "width": 1},
        },
    )
    if not curve.low:
        return [line]
    red, green, blue = (int(curve.colour[start : start + 2], 16) for start in (1, 3, 5))
    edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    fill = f"rgba({red},{green},{blue},0.2)"
    low = go.Scatter(x=curve.x, y=curve.low, legendgroup=name, **edge)
    high = go.Scatter(x=curve.x, y=curve.high, legendgroup=name, fill="tonexty", fillcolor=fill, **edge)
    return [low, high, line]


def _hover(curve: Curve, index: int) -> str:
    lines = [f"<b>{html.escape(curve.label)}</b>", f"after {curve.x[index]:,.0f} steps: {curve.mean[index]:.3g}"]
    if curve.low:
        lines.append(f"band {curve.low[index]:.3g} to {curve.high[index]:.3g} (n = {curve.n})")
    return "<br>".join(lines)


def _dash(curve: Curve) -> str:
    return "dash" if curve.dash == "dashed" else "solid"


def _decades(figure: CurveFigure) -> int:
    """How many decades lie between two lines of the grid."""
    values = [value for panel in figure.panels for curve in panel.curves for value in (*curve.mean, *curve.low)]
    if not values:
        return 1
    return max(1, math.ceil((math.log10(max(values)) - math.log10(min(values))) / 8))
