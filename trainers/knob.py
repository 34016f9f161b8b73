"""What one field of TrainConfig accepts, and how a value that it does not accept is named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

LARGEST_FLOAT = 1e30
"""Bound of every number of kind "float": single precision ends at 3.4e38, and Adam divides the rate by 1 − β."""

Scalar = float | int | str
"""A value that one knob can take on the wire."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong with a value: the field by its wire name, and the rule with the value."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Knob:
    """What one field of TrainConfig accepts.

    kind: the type on the wire. low, high: the inclusive range of a number, `low_open` makes low exclusive.
    choices: the only strings accepted (for kind "int" or "float": strings accepted beside numbers).
    Any number of kind "float" is finite and at most `LARGEST_FLOAT` too.
    """

    kind: Literal["int", "float", "str"]
    description: str
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    wire_name: str | None = None

    def problem_with(self, name: str, value: object) -> str | None:
        """The rule that `value` breaks, with the value; None where it breaks none."""
        if isinstance(value, str):
            if value in self.choices:
                return None
            if self.kind == "str" or self.choices:
                return f"{name} must be {self.rule}, got {shown(value)}"
        kind = Integral if self.kind == "int" else Real
        if self.kind == "str" or not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} must be {self.rule}, got {shown(value)}"
        number = plain_number(value)
        if isinstance(number, float) and not math.isfinite(number):
            return f"{name} must be finite, got {value!r}"
        below = self.low is not None and (number <= self.low if self.low_open else number < self.low)
        if below or (self.high is not None and number > self.high):
            return f"{name} must be {self.rule}, got {shown(value)}"
        if self.kind == "float" and number > LARGEST_FLOAT:
            return f"{name} must be at most {LARGEST_FLOAT:g}, what single precision can hold, got {shown(value)}"
        return None

    @property
    def rule(self) -> str:
        """What the knob accepts, in words: "one of …", "a number in [0, 1]"."""
        strings = ", ".join(repr(choice) for choice in self.choices)
        if self.kind == "str":
            return f"one of {strings}"
        noun = "an integer" if self.kind == "int" else "a number"
        if self.low is not None and self.high is not None:
            opening = "(" if self.low_open else "["
            rule = f"{noun} in {opening}{_plain(self.low)}, {_plain(self.high)}]"
        elif self.low is not None:
            rule = f"{noun} {'above' if self.low_open else 'of at least'} {_plain(self.low)}"
        else:
            rule = noun
        return f"{rule} or {'one of ' if len(self.choices) > 1 else ''}{strings}" if strings else rule


def plain(value: Scalar) -> Scalar:
    """The value as Python's own int, float or str, which torch.load(weights_only=True) and JSON read."""
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration's member the value, where str() would say its name
    return plain_number(value)


def plain_number(value: float | Real) -> float:
    """A number of any kind, such as NumPy's, as Python's own: an int stays one, a fraction too large is math.inf."""
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shown(value: object) -> str:
    """The value as a message has it; an integer beyond 64 bits by its size, as Python does not write very long ones."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"{'a negative' if value < 0 else 'an'} integer of {value.bit_length()} bits"
    return repr(value)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
