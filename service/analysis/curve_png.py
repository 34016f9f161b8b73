"""Curves drawn by matplotlib, at a size and resolution for print; without pyplot, so that any thread may draw."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from service.analysis import colours
from service.analysis.curves import Curve, CurveFigure, CurvePanel
from service.analysis.matplotlib_figures import drawable

_PANEL_WIDTH, _PANEL_HEIGHT = 3.3, 3.2  # inches, of one of several panels
_ONLY_WIDTH, _ONLY_HEIGHT = 5.6, 3.8  # inches, of the only panel
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _LEGEND = 0.85, 0.3, 0.26, 0.58, 0.34, 1.3  # inches
_SUBTITLE = 0.36  # inches from the top
_LINE, _PANEL_TITLE, _LEGEND_ROW = 0.155, 0.12, 0.3  # inches, of the subtitle, above a panel, of a legend above all
_DPI = 200
_SMALL_FONT, _FONT, _TITLE_FONT = 8.5, 9.5, 12.0  # points
_MARKERS = {"none": "", "circle": "o", "triangle": "^"}
_MARKERS_ON_A_CURVE = 6
_LINE_STYLES: dict[str, Any] = {"solid": "-", "dashed": (0, (4, 2))}
_MANY_CURVES = 5
"""From so many curves on, their legend stands beside the panel."""


def curves_png(figure: CurveFigure) -> bytes:
    """The figure as a PNG: lines are means, bands one standard deviation."""
    width, height = (_PANEL_WIDTH, _PANEL_HEIGHT) if len(figure.panels) > 1 else (_ONLY_WIDTH, _ONLY_HEIGHT)
    beside = max(len(panel.curves) for panel in figure.panels) > _MANY_CURVES
    count = len(figure.panels)
    total_width = _LEFT + count * width + (count - 1) * _GAP + (_LEGEND if beside else _RIGHT)
    has_titles = any(panel.title for panel in figure.panels)
    above = not beside and count > 1 and all(_labels(panel) == _labels(figure.panels[0]) for panel in figure.panels)
    head = _SUBTITLE + _LINE * len(figure.subtitle)
    top = _TOP + head + (_LEGEND_ROW if above else 0) - (0 if has_titles else _PANEL_TITLE)
    total_height = top + height + _BOTTOM
    canvas = Figure(figsize=(total_width, total_height), dpi=_DPI, facecolor="white")
    first: Axes | None = None
    for index, panel in enumerate(figure.panels):
        left = _LEFT + index * (width + _GAP)
        place = (left / total_width, _BOTTOM / total_height, width / total_width, height / total_height)
        axes = canvas.add_axes(place, sharey=first, label=f"panel {index}")
        for curve in panel.curves:
            _draw(axes, curve)
        _dress(axes, figure, is_first=first is None)
        axes.set_title(drawable(panel.title), loc="left", fontsize=_FONT, color=colours.INK, parse_math=False)
        if beside:
            _legend(axes, figure, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0.0)
        elif above and first is None:
            corner = (left / total_width, 1 - (head + 0.1) / total_height)
            row = {"ncols": len(panel.curves), "columnspacing": 2.0, "borderpad": 0.0, "borderaxespad": 0.0}
            _legend(axes, figure, loc="upper left", bbox_to_anchor=corner, bbox_transform=canvas.transFigure, **row)
        elif not above:
            _legend(axes, figure, loc="best")
        first = first or axes
    left = 0.12 / total_width
    _text(canvas, figure.title, left, 1 - 0.12 / total_height, _TITLE_FONT, colours.INK, weight="bold")
    for index, line in enumerate(figure.subtitle):
        _text(canvas, line, left, 1 - (_SUBTITLE + _LINE * index) / total_height, _SMALL_FONT, colours.FAINT)
    buffer = io.BytesIO()
    FigureCanvasAgg(canvas).print_figure(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _draw(axes: Axes, curve: Curve) -> None:
    is_bound = curve.dash == "dashed"
    axes.plot(
        curve.x,
        curve.mean,
        label=drawable(curve.label),
        color=curve.colour,
        linestyle=_LINE_STYLES[curve.dash],
        linewidth=1.1 if is_bound else 1.6,
        marker=_MARKERS[curve.marker],
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        markevery=_marked(curve),
        zorder=2 if is_bound else 3,
    )
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=curve.colour, alpha=0.2, linewidth=0, zorder=1)


def _marked(curve: Curve) -> tuple[int, int]:
    """The first point with a marker, and how many lie between two: other ones for each marker, so that both show."""
    every = max(1, len(curve.x) // _MARKERS_ON_A_CURVE)
    return (every // 2 if curve.marker == "triangle" else every, every)


def _dress(axes: Axes, figure: CurveFigure, *, is_first: bool) -> None:
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.0)
    axes.grid(color=colours.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL_FONT, colors=colours.INK, labelleft=is_first, which="both")
    axes.set_xlabel(drawable(figure.x_label), fontsize=_FONT, color=colours.INK)
    if is_first:
        axes.set_ylabel(drawable(figure.y_label), fontsize=_FONT, color=colours.INK)


def _legend(axes: Axes, figure: CurveFigure, **place: Any) -> None:
    title = drawable(figure.legend_title) or None
    legend = axes.legend(
        fontsize=_SMALL_FONT, title=title, title_fontsize=_SMALL_FONT, alignment="left", frameon=False, **place
    )
    for text in legend.get_texts():
        text.set_color(colours.INK)


def _labels(panel: CurvePanel) -> list[str]:
    return [curve.label for curve in panel.curves]


def _text(canvas: Figure, text: str, x: float, y: float, size: float, colour: str, weight: str = "normal") -> None:
    style: dict[str, Any] = {"fontsize": size, "color": colour, "fontweight": weight, "va": "top", "ha": "left"}
    canvas.text(x, y, drawable(text), parse_math=False, **style)
