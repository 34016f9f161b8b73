"""The one colour scale of every surface: viridis, readable without colour vision and in grey; the best is bright."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from plotly.colors import sample_colorscale, unlabel_rgb

BEST = "#d1004b"
"""Outline of the best cell or point."""
MISSING = "#e4e4e4"
INK, FAINT, GRID = "#222222", "#6b6b6b", "#ececec"

Rgb = tuple[float, float, float]


def limits(means: Sequence[float]) -> tuple[float, float]:
    """The ends of the scale; never the same, so that a single value has a colour too."""
    if not means:
        return 0.0, 1.0
    low, high = min(means), max(means)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.01 or 0.01
        return low - margin, high + margin
    return low, high


def colour(mean: float, ends: tuple[float, float], mode: Literal["max", "min"]) -> Rgb:
    """The colour of a mean, red, green and blue in [0, 1]."""
    share = min(1.0, max(0.0, (mean - ends[0]) / (ends[1] - ends[0])))
    red, green, blue = unlabel_rgb(sample_colorscale("Viridis", [share if mode == "max" else 1 - share])[0])
    return red / 255, green / 255, blue / 255


def ink_on(background: Rgb) -> str:
    """Black or white, whichever reads better on the background."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2
    return "#111111" if (luminance + 0.05) ** 2 > 1.05 * 0.0556 else "#ffffff"  # equal contrast at the boundary
