"""KEY=VALUE, as commands take limits and points."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from service.study import Scalar

_WORDS: dict[str, Scalar | None] = {"true": True, "false": False, "none": None, "null": None}


def assignments(pairs: Sequence[str], *, example: str) -> dict[str, Scalar | None]:
    """The values by name: numbers, true, false, none, and text for everything else. Raises typer.BadParameter."""
    values: dict[str, Scalar | None] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"write NAME=VALUE, such as {example}; got {pair!r}")
        if name in values:
            raise typer.BadParameter(f"{name} is there twice")
        values[name] = _value(text)
    return values


def _value(text: str) -> Scalar | None:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
