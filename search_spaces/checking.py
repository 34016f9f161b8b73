"""How the models of a spec say what is wrong with them: every problem, each with its own path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

BROKEN_RULES = "broken_rules"
UNKNOWN_KEYS = "unknown_keys"


class RuleProblem(NamedTuple):
    """One broken rule. path: from the value that was checked down to the part at fault, () for the whole value."""

    path: tuple[str | int, ...]
    message: str


def rules_error(problems: Sequence[RuleProblem], kind: str = BROKEN_RULES) -> PydanticCustomError:
    """An error for a pydantic validator to raise; `ctx["problems"]` of the validation error has every problem."""
    text = "; ".join(
        f"{'.'.join(map(str, problem.path))}: {problem.message}" if problem.path else problem.message
        for problem in problems
    )
    return PydanticCustomError(kind, "{text}", {"text": text, "problems": list(problems)})


def near_miss(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' where a known name is close to this one, '' where none is."""
    matches = difflib.get_close_matches(name, list(known), n=1) if len(name) <= 64 else []
    return f"; did you mean {matches[0]!r}?" if matches else ""


def shown(value: object) -> str:
    """A value as a message shows it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_key_problem(key: str, known: Sequence[str]) -> RuleProblem:
    hint = near_miss(key, known) or f"; the keys are {', '.join(known)}"
    return RuleProblem((key,), f"unknown key {shown(key)}{hint}")


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and names the near miss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, Mapping):
            known = list(cls.model_fields)
            unknown = [unknown_key_problem(str(key), known) for key in values if key not in cls.model_fields]
            if unknown:
                raise rules_error(unknown, UNKNOWN_KEYS)
        return values
