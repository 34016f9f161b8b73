"""Pieces of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table; its first `left` columns are aligned to the left, the others to the right."""
    lines = [head, ["---" if index < left else "---:" for index in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """A value that may be of any size, with two digits: 0.29, 2.4e-4."""
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def signed(value: float) -> str:
    """As `number`, with its sign: +0.29, −2.4e-4."""
    return number(value) if value == 0 else f"{'+' if value > 0 else '−'}{number(abs(value))}"


def paragraph(text: str) -> str:
    """The text with its lines broken as in the rest of the documentation."""
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def listed(parts: Sequence[str]) -> str:
    """Such as `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
