"""KEY=VALUE, as commands take limits and points."""

from __future__ import annotations

import re
from collections.abc import Sequence

import typer

from service.study import Scalar

_WORDS: dict[str, Scalar] = {"true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")


def assignments(pairs: Sequence[str], *, example: str) -> dict[str, Scalar]:
    """The values by name: numbers, true, false, and text for everything else. Raises typer.BadParameter."""
    values: dict[str, Scalar] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"write NAME=VALUE, such as {example}; got {pair!r}")
        if not text:
            raise typer.BadParameter(f"{name} needs a value")
        if name in values:
            raise typer.BadParameter(f"{name} is there twice")
        values[name] = _value(text)
    return values


def _value(text: str) -> Scalar:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float) if _INTEGER.fullmatch(text) else (float,):
        try:
            return text if "_" in text else kind(text)  # Python's own 1_000 is no number elsewhere
        except ValueError:  # no number, or an integer of thousands of digits
            continue
    return text
