"""What a study found, as a picture and as an interactive page.

Over two parameters a heat map of a grid, or a scatter plot of a continuum; over one parameter points with error bars.
"""

from __future__ import annotations

from service.analysis import matplotlib_figures, plotly_figures
from service.analysis.profile import Profile
from service.analysis.surface import Surface

MAX_GRID_VALUES = 12
"""More distinct values than these on an axis are a continuum: a heat map of it would be mostly holes."""


def heat_map_png(surface: Surface, *, title: str, metric: str) -> bytes:
    """The surface as a PNG: panels side by side on one colour scale, mean ± std and n in each cell, the best outlined.

    metric: the name of what was measured; accuracies are shown in per cent.
    """
    if is_continuous(surface):
        return matplotlib_figures.scatter_png(surface, title=title, metric=metric)
    return matplotlib_figures.heat_map_png(surface, title=title, metric=metric)


def heat_map_html(surface: Surface, *, title: str, metric: str) -> str:
    """The surface as a page of its own that needs no network; hovering shows mean, std, n and the 95 % interval."""
    if is_continuous(surface):
        return plotly_figures.scatter_html(surface, title=title, metric=metric)
    return plotly_figures.heat_map_html(surface, title=title, metric=metric)


def is_continuous(surface: Surface) -> bool:
    """Whether an axis has too many values for a grid."""
    return max(len(surface.x_values), len(surface.y_values)) > MAX_GRID_VALUES


def profile_png(shown: Profile, *, title: str) -> bytes:
    """The objective over one parameter as a PNG, the best outlined."""
    return matplotlib_figures.profile_png(shown, title=title)


def profile_html(shown: Profile, *, title: str) -> str:
    """The same as a page of its own that needs no network; hovering shows mean, std and n."""
    return plotly_figures.profile_html(shown, title=title)
