"""The λ × ρ table of the command line: any two parameters of a study against each other, a panel for a third."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from service.analysis.labelling import symbol, value_label
from service.analysis.surface import Cell, Panel, Surface, best_words, tie_words
from service.cli.rendering import BEST, plain_table, shown_mean

NOTHING_YET = "…"
MAX_COLUMNS = 8
MAX_ROWS = 12


def is_readable(surface: Surface) -> bool:
    """Whether the surface is a table for eyes: a search over a continuum has a row and a column for every point."""
    small, large = sorted((len(surface.x_values), len(surface.y_values)))
    return small <= MAX_COLUMNS and large <= MAX_ROWS


def surface_tables(surface: Surface, *, label: str, seeds: int, width: int) -> RenderableType:
    """One table for each panel, side by side where they fit.

    label: what the cells show, with its unit. seeds: how many trials make a configuration complete. width: of the
    terminal, in characters.
    """
    if not surface.panels:
        return Text("no results yet")
    body = _arranged(surface, seeds, width)
    notes = [f"{label}, mean ± std (n) over seeds, {BEST} {best_words(surface)}{tie_words(surface)}"]
    if any(cell.value is None for panel in surface.panels for cell in panel.cells):
        notes.append(f"{NOTHING_YET} no trial has a value yet")
    if any(cell.configurations > 1 for panel in surface.panels for cell in panel.cells):
        notes.append("each cell shows its best configuration")
    if surface.left_out:
        notes.append(f"{surface.left_out} configurations lack one of the two")
    return Group(body, Text("; ".join(notes), style="dim"))


def _arranged(surface: Surface, seeds: int, width: int) -> RenderableType:
    """The panels side by side where they fit, x across, or y where only that fits; else row by row, else one by one."""
    upright, turned = (
        [_laid_out(surface, panel, seeds, x_across=x_across) for panel in surface.panels] for x_across in (True, False)
    )
    for tables in (upright, turned):
        grid = Table.grid(padding=(0, 2))
        grid.add_row(*tables)
        if _width(grid) <= width:
            return grid
    interleaved = _interleaved(surface, seeds)
    if _width(interleaved) <= width:
        return interleaved
    widest = [max(map(_width, tables)) for tables in (upright, turned)]
    return Group(*(turned if widest[0] > width and widest[1] < widest[0] else upright))


def _laid_out(surface: Surface, panel: Panel, seeds: int, *, x_across: bool) -> Table:
    x, y = (symbol(name) for name in (surface.x, surface.y))
    across, down = (surface.x_values, surface.y_values) if x_across else (surface.y_values, surface.x_values)
    title = None if surface.panel is None else f"{surface.panel} = {value_label(panel.label)}"
    table = plain_table(f"{y} \\ {x}" if x_across else f"{x} \\ {y}", *map(value_label, across))
    table.title = title
    for value in down:
        cells = [panel.cell(other, value) if x_across else panel.cell(value, other) for other in across]
        table.add_row(value_label(value), *(_shown_cell(cell, surface, seeds) for cell in cells))
    return table


def _interleaved(surface: Surface, seeds: int) -> Table:
    """One table in which every row of y has a line for each panel, so that panels are compared line by line."""
    x, y = (symbol(name) for name in (surface.x, surface.y))
    table = plain_table(f"{y} \\ {x}", surface.panel or "", *map(value_label, surface.x_values))
    for value in surface.y_values:
        for position, panel in enumerate(surface.panels):
            cells = [panel.cell(other, value) for other in surface.x_values]
            table.add_row(
                value_label(value) if position == 0 else "",
                value_label(panel.label),
                *(_shown_cell(cell, surface, seeds) for cell in cells),
            )
    return table


def _shown_cell(cell: Cell | None, surface: Surface, seeds: int) -> Text:
    if cell is None:
        return Text("")
    if cell.value is None:
        return Text(NOTHING_YET, style="dim")
    n, best = cell.value.n, surface.best
    said = f"{shown_mean(cell.value, surface.metric)} ({n}{'' if cell.complete else f'/{seeds}'})"
    text = said.replace(" ± ", "\u00a0±\u00a0")
    if best is not None and cell.configuration_id == best.configuration_id:
        return Text(f"{text}\u00a0{BEST}", style="bold green")
    return Text(text, style="" if cell.complete else "dim")


def _width(renderable: RenderableType) -> int:
    """How many characters wide it is when nothing in it wraps."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, renderable).maximum
