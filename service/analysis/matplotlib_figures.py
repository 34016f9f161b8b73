"""Surfaces drawn by matplotlib, without pyplot and its global state, so that any thread may draw."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter

from service.analysis import colours
from service.analysis.axes import Axis, grid_axis, scale_axis
from service.analysis.labelling import ordering, symbol, unit_of, value_label
from service.analysis.profile import Profile
from service.analysis.surface import Cell, Panel, Surface, best_words

_CELL_WIDTH, _CELL_HEIGHT = 1.22, 0.72  # inches; a cell holds "95.70 ± 0.05" at _CELL_FONT
_SCATTER_WIDTH, _SCATTER_HEIGHT, _PROFILE_HEIGHT = 5.2, 4.2, 3.0  # inches
_CELL_FONT, _SMALL_FONT, _LABEL_FONT, _TITLE_FONT = 10.0, 8.0, 11.0, 13.0  # points
_DPI = 120
_MAX_WIDTH = 13.0  # inches of panels side by side; further panels go below
_LEFT, _RIGHT, _BOTTOM, _GAP, _ROW_GAP, _LEAST_WIDTH = 0.8, 0.95, 0.62, 0.3, 0.95, 6.8  # inches, _LEFT the least
_BESIDE_TICKS, _LONGEST_TICK = 0.5, 30  # inches, letters
_CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 5}


def heat_map_png(surface: Surface, *, title: str, metric: str) -> bytes:
    """One cell for each pair of values; grey where nothing is known."""
    x, y = grid_axis(surface.x_values), grid_axis(surface.y_values)
    columns, rows = round(x.high - x.low), round(y.high - y.low)
    canvas = _Canvas(surface, title, metric, columns * _CELL_WIDTH, rows * _CELL_HEIGHT, _room_for(y))
    for axes, panel in canvas.panels:
        _set_axes(axes, x, y)
        axes.invert_yaxis()  # the first row on top, as in a table
        axes.set_facecolor(colours.MISSING)
        for cell in panel.cells:
            _draw_cell(axes, cell, x.position(cell.x), y.position(cell.y), canvas)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for edge in range(1, columns):
            axes.axvline(edge - 0.5, color="white", linewidth=2, zorder=2)
        for edge in range(1, rows):
            axes.axhline(edge - 0.5, color="white", linewidth=2, zorder=2)
    return canvas.png("mean ± std over n seeds")


def scatter_png(surface: Surface, *, title: str, metric: str) -> bytes:
    """One point for each pair of values; its size says how far its seeds lie apart."""
    x = scale_axis(surface.x_values, is_log=surface.x_log)
    y = scale_axis(surface.y_values, is_log=surface.y_log)
    canvas = _Canvas(surface, title, metric, _SCATTER_WIDTH, _SCATTER_HEIGHT, _room_for(y))
    largest = max((cell.value.std or 0.0 for cell in canvas.cells if cell.value), default=0.0)
    for axes, panel in canvas.panels:
        _set_axes(axes, x, y)
        axes.grid(color=colours.GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for cell in panel.cells:
            place = x.position(cell.x), y.position(cell.y)
            if cell.value is None:
                axes.plot(*place, marker="x", markersize=5, color="#b5b5b5", zorder=2)
                continue
            is_best = canvas.is_best(cell)
            spread = math.sqrt((cell.value.std or 0.0) / largest) if largest else 0.1
            axes.plot(
                *place,
                marker="o",
                markersize=6.0 + 8.0 * spread,
                markerfacecolor=canvas.colour(cell.value.mean),
                markeredgecolor=colours.BEST if is_best else "white",
                markeredgewidth=2.2 if is_best else 0.7,
                zorder=4 if is_best else 3,
            )
    said = [f"size: std over n seeds, at most {canvas.unit.number(largest)}"] if largest else []
    said += ["×: no result"] if any(cell.value is None for cell in canvas.cells) else []
    return canvas.png(" · ".join(said))


def profile_png(shown: Profile, *, title: str) -> bytes:
    """A point for each value of the parameter, with a bar of one standard deviation up and down."""
    unit = unit_of(shown.metric, [point.objective for point in shown.points])
    x = scale_axis(shown.values, is_log=shown.is_log)
    width, height = _LEFT + _SCATTER_WIDTH + 0.3, 0.82 + _PROFILE_HEIGHT + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    place = (_LEFT / width, _BOTTOM / height, _SCATTER_WIDTH / width, _PROFILE_HEIGHT / height)
    axes = figure.add_axes(place)
    _set_scale(axes.xaxis, axes.set_xscale, axes.set_xlim, x)
    axes.grid(color=colours.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_CELL_FONT, colors=colours.INK, which="both")
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    for point in shown.points:
        axes.errorbar(
            x.position(point.value),
            point.objective.mean * unit.factor,
            yerr=(point.objective.std or 0.0) * unit.factor,
            fmt="o",
            color=colours.CATEGORIES[0],
            markersize=7,
            capsize=3,
            markeredgecolor=colours.BEST if point.is_best else "white",
            markeredgewidth=2.2 if point.is_best else 0.7,
            zorder=4 if point.is_best else 3,
        )
    style: dict[str, Any] = {"fontsize": _LABEL_FONT, "color": colours.INK}
    axes.set_xlabel(drawable(symbol(shown.parameter)), **style)
    notes = [
        f"{shown.metric}{unit.suffix}, {ordering(shown.mode)}",
        "mean ± std over seeds" if shown.points else "no result",
    ]
    if any(point.is_best for point in shown.points):
        notes.append("outlined: best")
    _write(figure, title, 0.2, _TITLE_FONT, colours.INK, "bold")
    _write(figure, " · ".join(notes), 0.47, _SMALL_FONT + 0.8, colours.FAINT, "normal")
    return _png(figure)


class _Canvas:
    """A figure: title, a line that says what is seen, one axes for each panel, a colour bar common to all."""

    def __init__(self, surface: Surface, title: str, metric: str, width: float, height: float, left: float) -> None:
        """width, height: of a panel in inches; left: inches left of the first one."""
        panels = surface.panels or [Panel(label=None, cells=[])]
        self.cells = [cell for panel in panels for cell in panel.cells]
        summaries = [cell.value for cell in self.cells if cell.value is not None]
        self.unit = unit_of(metric, summaries)
        self._surface = surface
        self._metric = metric
        self._ends = colours.limits([summary.mean for summary in summaries])
        across = max(1, min(len(panels), int(_MAX_WIDTH // width)))
        down = math.ceil(len(panels) / across)
        right = _RIGHT if summaries else 0.3
        self._width = max(left + across * (width + _GAP) - _GAP + right, _LEAST_WIDTH)
        top = 0.98 if surface.panel else 0.82
        self._height = top + down * (height + _ROW_GAP) - _ROW_GAP + _BOTTOM
        self._figure = Figure(figsize=(self._width, self._height), dpi=_DPI, facecolor="white")
        self.panels: list[tuple[Axes, Panel]] = []
        for index, panel in enumerate(panels):
            row, column = divmod(index, across)
            bottom = _BOTTOM + (down - 1 - row) * (height + _ROW_GAP)
            axes = self._axes(left + column * (width + _GAP), bottom, width, height)
            self._label(axes, panel, is_first=column == 0)
            self.panels.append((axes, panel))
        _write(self._figure, title, 0.2, _TITLE_FONT, colours.INK, "bold")
        if summaries:
            bar_height = min(self._height - top - _BOTTOM, 3.2)
            bar_left = left + across * (width + _GAP) - _GAP + 0.22
            self._draw_bar(self._axes(bar_left, self._height - top - bar_height, 0.16, bar_height))

    def colour(self, mean: float) -> colours.Rgb:
        return colours.colour(mean, self._ends, self._surface.mode)

    def is_best(self, cell: Cell) -> bool:
        return self._surface.best is not None and cell.configuration_id == self._surface.best.configuration_id

    def png(self, legend: str) -> bytes:
        """The picture; `legend` explains what is drawn where something is."""
        surface, known = self._surface, any(cell.value for cell in self.cells)
        shown = f"{self._metric}{self.unit.suffix}"
        notes = [shown + (f", {ordering(surface.mode)}" if surface.mode else ""), legend if known else "no result"]
        if surface.best is not None:
            notes.append(f"outlined: {best_words(surface)}")
        if surface.left_out:
            notes.append(f"{surface.left_out} without {symbol(surface.x)} and {symbol(surface.y)} left out")
        _write(self._figure, " · ".join(filter(None, notes)), 0.47, _SMALL_FONT + 0.8, colours.FAINT, "normal")
        return _png(self._figure)

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        across, up = self._width, self._height
        place = (left / across, bottom / up, width / across, height / up)
        return self._figure.add_axes(place, label=f"{left} {bottom}")

    def _label(self, axes: Axes, panel: Panel, *, is_first: bool) -> None:
        surface = self._surface
        style: dict[str, Any] = {"fontsize": _LABEL_FONT, "color": colours.INK}
        axes.set_xlabel(drawable(symbol(surface.x)), **style)
        axes.tick_params(labelsize=_CELL_FONT, colors=colours.INK, labelleft=is_first, which="both")
        if is_first:
            name = drawable(symbol(surface.y))
            axes.set_ylabel(name, rotation=0 if len(name) < 3 else 90, va="center", labelpad=10, **style)
        if surface.panel:
            label = f"{symbol(surface.panel)} = {value_label(panel.label)}"
            axes.set_title(drawable(label), loc="left", parse_math=False, **style)

    def _draw_bar(self, axes: Axes) -> None:
        norm = Normalize(self._ends[0] * self.unit.factor, self._ends[1] * self.unit.factor)
        colour_map = "viridis_r" if self._surface.mode == "min" else "viridis"
        bar = self._figure.colorbar(ScalarMappable(norm, colour_map), cax=axes, format=ScalarFormatter(useOffset=False))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=_SMALL_FONT + 1, length=0, colors=colours.INK)


def _write(figure: Figure, text: str, from_top: float, size: float, colour: str, weight: str) -> None:
    """One line, so many inches from the top, cut off where the figure ends."""
    across, up = figure.get_size_inches()
    width = 0.66 if weight == "bold" else 0.52  # of a letter, in em
    room = int((across - 0.35) * 72 / (width * size))
    short = text if len(text) <= room else text[: room - 1] + "…"
    style: dict[str, Any] = {"fontsize": size, "color": colour, "fontweight": weight, "va": "top", "ha": "left"}
    figure.text(0.2 / across, 1 - from_top / up, drawable(short), parse_math=False, **style)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _set_axes(axes: Axes, x: Axis, y: Axis) -> None:
    _set_scale(axes.xaxis, axes.set_xscale, axes.set_xlim, x)
    _set_scale(axes.yaxis, axes.set_yscale, axes.set_ylim, y)


def _set_scale(shown: Any, scale: Callable[[str], object], limit: Callable[[float, float], object], axis: Axis) -> None:
    if axis.is_log:
        scale("log")
    limit(axis.low, axis.high)
    if axis.ticks is not None:
        shown.set_ticks(axis.ticks, labels=[_tick(label) for label in axis.labels])
        shown.set_ticks([], minor=True)


def _room_for(y: Axis) -> float:
    """Inches that the tick labels of a y axis and its name take."""
    return max(_LEFT, _BESIDE_TICKS + max((_inches(_tick(label)) for label in y.labels), default=0.0))


def _inches(text: str) -> float:
    """How wide the text is as a tick label."""
    font = get_font(findfont("DejaVu Sans"))
    font.set_size(_CELL_FONT, 72)
    font.set_text(text, 0)
    return float(font.get_width_height()[0] / 64 / 72)


def _tick(label: str) -> str:
    text = drawable(label)
    return text if len(text) <= _LONGEST_TICK else text[: _LONGEST_TICK - 1] + "…"


def _draw_cell(axes: Axes, cell: Cell, x: float, y: float, canvas: _Canvas) -> None:
    if cell.value is None:
        axes.text(x, y, "–", fontsize=_CELL_FONT, color=colours.FAINT, **_CENTRED)
        return
    background = canvas.colour(cell.value.mean)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=background, edgecolor="none", zorder=1))
    if is_best := canvas.is_best(cell):
        outline: dict[str, Any] = {"fill": False, "edgecolor": colours.BEST, "linewidth": 2.6, "zorder": 4}
        axes.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, **outline))
    style: dict[str, Any] = {"color": colours.ink_on(background), **_CENTRED}
    text = canvas.unit.mean_and_std(cell.value)
    size = _CELL_FONT * min(1.0, (12 if is_best else 13) / len(text))
    axes.text(x, y - 0.12, text, fontsize=size, fontweight="bold" if is_best else "normal", **style)
    small = f"n = {cell.value.n}" + ("" if cell.complete else ", unfinished")
    small += f", best of {cell.configurations}" if cell.configurations > 1 else ""
    axes.text(x, y + 0.22, small, fontsize=_SMALL_FONT * min(1.0, 19 / len(small)), **style)


def drawable(text: str) -> str:
    """The text on one line, with □ for every character that the font lacks, which matplotlib would warn about."""
    return "".join(letter if ord(letter) in _charmap() else "□" for letter in " ".join(text.split()))


@lru_cache(maxsize=1)
def _charmap() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
