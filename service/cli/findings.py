"""What `samstudy doctor` finds, one line each, and how it looks."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass
from enum import StrEnum

import typer

from service.logs import redacted

_NAME_WIDTH = 14
_LEAST_WIDTH = 60


class Verdict(StrEnum):
    """WELL; NOTE: worth knowing, and nothing is broken; WRONG."""

    WELL = "✓"
    NOTE = "!"
    WRONG = "✗"


_COLOURS = {Verdict.WELL: typer.colors.GREEN, Verdict.NOTE: typer.colors.YELLOW, Verdict.WRONG: typer.colors.RED}


@dataclass(frozen=True, slots=True)
class Finding:
    """remedy: what to do, where something is to be done."""

    verdict: Verdict
    what: str
    said: str
    remedy: str = ""


def well(what: str, said: str) -> Finding:
    return Finding(Verdict.WELL, what, said)


def note(what: str, said: str, remedy: str = "") -> Finding:
    return Finding(Verdict.NOTE, what, said, remedy)


def wrong(what: str, said: str, remedy: str) -> Finding:
    return Finding(Verdict.WRONG, what, said, remedy)


def lines(finding: Finding, *, width: int | None = None) -> list[str]:
    """The finding for a terminal of this width, without passwords, the remedy below it.

    width: in characters; None: that of stdout.
    """
    width = max(_LEAST_WIDTH, width or shutil.get_terminal_size().columns)
    sign = typer.style(finding.verdict.value, fg=_COLOURS[finding.verdict])
    indent = " " * (_NAME_WIDTH + 3)
    first, *more = _wrapped(finding.said, width - len(indent))
    shown = [f"{sign} {finding.what:<{_NAME_WIDTH}} {first}", *(indent + line for line in more)]
    if finding.remedy:
        first, *more = _wrapped(finding.remedy, width - len(indent) - 2)
        shown += [f"{indent}→ {first}", *(f"{indent}  {line}" for line in more)]
    return shown


def _wrapped(text: str, width: int) -> list[str]:
    shown = redacted(text)
    clean = " ".join("".join(character if character.isprintable() else " " for character in shown).split())
    return textwrap.wrap(clean, width, break_long_words=False, break_on_hyphens=False) or [""]
