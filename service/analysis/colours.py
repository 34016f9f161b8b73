"""The colours of every figure, readable without colour vision.

Surfaces have one scale, viridis, whose best end is bright; curves have colours that are told apart, or a part of
viridis where they stand in an order.
"""

from __future__ import annotations

from collections.abc import Sequence

from plotly.colors import sample_colorscale, unlabel_rgb

from service.spec_sections import Mode

BEST = "#d1004b"
"""Outline of the best cell or point."""
MISSING = "#e4e4e4"
INK, FAINT, GRID = "#222222", "#6b6b6b", "#ececec"

CATEGORIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours without an order, for curves (Okabe and Ito 2008)."""
_LARGEST = 1e300
"""No scale goes beyond it: what draws one calculates with its ends, and multiplies them too."""

_DARKEST, _BRIGHTEST = 0.0, 0.9  # of viridis; its bright end is too pale for a line on white

Rgb = tuple[float, float, float]


def limits(means: Sequence[float]) -> tuple[float, float]:
    """The ends of the scale; never the same, so that a single value has a colour too."""
    if not means:
        return 0.0, 1.0
    low, high = (min(_LARGEST, max(-_LARGEST, end)) for end in (min(means), max(means)))
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.01 or 0.01
        return low - margin, high + margin
    return low, high


def colour(mean: float, ends: tuple[float, float], mode: Mode | None) -> Rgb:
    """The colour of a mean, red, green and blue in [0, 1]; that of the nearest end where it lies beyond them.

    mode: of which end is the best one, and bright; None: neither, and what is large is bright.
    """
    share = min(1.0, max(0.0, (mean - ends[0]) / (ends[1] - ends[0])))
    red, green, blue = unlabel_rgb(sample_colorscale("Viridis", [1 - share if mode == "min" else share])[0])
    return red / 255, green / 255, blue / 255


def ordered(count: int) -> list[str]:
    """So many colours in an order, from dark to bright, as #rrggbb."""
    steps = [_DARKEST + (_BRIGHTEST - _DARKEST) * index / max(1, count - 1) for index in range(count)]
    rgbs = [unlabel_rgb(text) for text in sample_colorscale("Viridis", steps)]
    return ["#" + "".join(f"{round(channel):02x}" for channel in rgb) for rgb in rgbs]


def ink_on(background: Rgb) -> str:
    """Black or white, whichever reads better on the background."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2
    return "#111111" if (luminance + 0.05) ** 2 > 1.05 * 0.0556 else "#ffffff"  # equal contrast at the boundary
