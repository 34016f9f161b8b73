"""The parameters of a search space: what values each can take, and when it is there at all.

A parameter with `when` is active only where every parameter that it names is active too and has one of the values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal, Self, TypeGuard

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from search_spaces.checking import RuleProblem, StrictModel, rules_error, shown

Scalar = str | int | float | bool
"""One value of a parameter. 1 and 1.0 are the same number; True and "1" are neither."""

Point = dict[str, Scalar]
"""One value for each active parameter, by name."""

MAX_CHOICES = 1_000
_MOST_SHOWN = 10
MAX_STEPS = 1_000_000
MAX_TEXT = 255
MAX_INT = 2**53
"""Beyond it, JSON readers lose the last digits of an integer."""


def _checked_scalar(value: object) -> object:
    if not isinstance(value, (str, int, float)):
        raise PydanticCustomError("scalar", "must be text, a number or a boolean")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise PydanticCustomError("scalar", f"must be at most {MAX_TEXT} characters long")
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("scalar", f"must be finite, got {value}")
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise PydanticCustomError("scalar", "must lie within ±2^53")
    return value


ScalarField = Annotated[StrictStr | StrictBool | StrictInt | StrictFloat, BeforeValidator(_checked_scalar)]
Integer = Annotated[int, Field(strict=True, ge=-MAX_INT, le=MAX_INT)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Values = Annotated[tuple[ScalarField, ...], Field(min_length=1, max_length=MAX_CHOICES)]


def scalar_key(value: Scalar) -> str:
    """The value as canonical JSON: two values are the same value where their keys are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def point_key(point: Mapping[str, Scalar]) -> str:
    """The point as canonical JSON, keys sorted: two points are the same configuration where their keys are equal."""
    pairs = (f"{scalar_key(name)}:{scalar_key(point[name])}" for name in sorted(point))
    return "{" + ",".join(pairs) + "}"


class _Conditional(StrictModel):
    when: dict[str, Values] = Field(
        default_factory=dict,
        description="active only where each parameter named here is active and has one of these values",
        examples=[{"sampling": ["gradient_norm"]}],
    )

    def holds(self, present: Mapping[str, Scalar]) -> bool:
        """Whether the conditions hold, given the values of the active parameters before it."""
        return all(
            parent in present and scalar_key(present[parent]) in keys for parent, keys in self.condition_keys.items()
        )

    @cached_property
    def condition_keys(self) -> dict[str, frozenset[str]]:
        """For each parent the keys of the values that make this one active."""
        return {parent: frozenset(map(scalar_key, values)) for parent, values in self.when.items()}


_NO_LIST = "a float parameter without a step has no list of values"


class FloatParameter(_Conditional):
    """A real number from low to high, both included; with `step` only low, low + step, …, high."""

    type: Literal["float"] = "float"
    low: Number = Field(description="smallest value")
    high: Number = Field(description="largest value, included")
    log: bool = Field(False, strict=True, description="search the logarithm; needs low above 0")
    step: Number | None = Field(None, description="distance of neighbouring values; null: continuous")

    @property
    def size(self) -> int | None:
        """How many values it can take; None where that is a continuum."""
        return None if self.step is None else round(_steps(self.low, self.high, self.step)) + 1

    def values(self) -> Iterator[float]:
        """Every value in ascending order. Raises ValueError where they are a continuum."""
        if self.step is None or self.size is None:
            raise ValueError(_NO_LIST)
        return map(self.at, range(self.size))

    def at(self, index: int) -> float:
        """Its value so many steps above low. Raises ValueError where it has no steps."""
        if self.step is None or self.size is None:
            raise ValueError(_NO_LIST)
        if index + 1 == self.size:
            return self.high
        return float(Decimal(repr(self.low)) + index * Decimal(repr(self.step)))

    def index_of(self, value: float) -> int:
        """How many steps above low this is, within rounding. Raises ValueError where it has no steps."""
        if self.step is None:
            raise ValueError(_NO_LIST)
        return round(_steps(self.low, value, self.step))

    def snapped(self, value: Scalar) -> float:
        """The one of its values that this is within rounding: 0.3 for a sum of steps that is 0.30000000000000004."""
        return float(value) if self.step is None else self.at(self.index_of(float(value)))

    def ends(self) -> tuple[float, ...]:
        """The smallest and the largest value."""
        return (self.low,) if self.low == self.high else (self.low, self.high)

    @property
    def rule(self) -> str:
        """What its values must be, in words."""
        steps = "" if self.step is None else f" in steps of {self.step:g}"
        return f"must be a number from {self.low:g} to {self.high:g}{steps}"

    def takes(self, value: object) -> bool:
        """Whether it can have this value; on a step within rounding."""
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        return self.step is None or _is_whole(_steps(self.low, float(value), self.step))

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = _range_problems(self.low, self.high, log=self.log)
        if self.step is not None:
            if self.log:
                problems.append(RuleProblem(("step",), f"step and log exclude each other, got step {self.step}"))
            problems += _step_problems(self.low, self.high, self.step)
        if problems:
            raise rules_error(problems)
        return self


class IntParameter(_Conditional):
    """An integer from low to high, both included, in steps."""

    type: Literal["int"] = "int"
    low: Integer = Field(description="smallest value")
    high: Integer = Field(description="largest value, included")
    log: bool = Field(False, strict=True, description="search the logarithm; needs low of at least 1")
    step: Integer = Field(1, description="distance of neighbouring values")

    @property
    def size(self) -> int:
        """How many values it can take."""
        return (self.high - self.low) // self.step + 1

    def values(self) -> Iterator[int]:
        """Every value in ascending order."""
        return iter(range(self.low, self.high + 1, self.step))

    def snapped(self, value: Scalar) -> int:
        """The one of its values that this is."""
        return int(value)

    def ends(self) -> tuple[int, ...]:
        """The smallest and the largest value."""
        return (self.low,) if self.low == self.high else (self.low, self.high)

    @property
    def rule(self) -> str:
        """What its values must be, in words."""
        steps = "" if self.step == 1 else f" in steps of {self.step}"
        return f"must be an integer from {self.low} to {self.high}{steps}"

    def takes(self, value: object) -> bool:
        """Whether it can have this value."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = _range_problems(self.low, self.high, log=self.log)
        if self.log and self.step != 1:
            problems.append(RuleProblem(("step",), f"step and log exclude each other, got step {self.step}"))
        problems += _step_problems(self.low, self.high, self.step, max_steps=None)
        if problems:
            raise rules_error(problems)
        return self


class CategoricalParameter(_Conditional):
    """One of a list of values: text, numbers, booleans."""

    type: Literal["categorical"] = "categorical"
    choices: Values = Field(description="the values, each once", examples=[[0.0, 0.5, 1.0, "1/t", "1-1/t"]])

    @property
    def size(self) -> int:
        """How many values it can take."""
        return len(self.choices)

    def values(self) -> Iterator[Scalar]:
        """Every value in the order given."""
        return iter(self.choices)

    def snapped(self, value: Scalar) -> Scalar:
        """The one of its values that this is: 1.0 for 1, where that is the choice."""
        return self._choices[scalar_key(value)]

    def ends(self) -> tuple[Scalar, ...]:
        """Every value: choices have no order."""
        return self.choices

    @property
    def rule(self) -> str:
        """What its values must be, in words; of many the first ones."""
        more = f", … ({len(self.choices)} in all)" if len(self.choices) > _MOST_SHOWN else ""
        return f"must be one of {', '.join(map(shown, self.choices[:_MOST_SHOWN]))}{more}"

    def takes(self, value: object) -> bool:
        """Whether it can have this value; 1 and 1.0 are the same, True is another."""
        if not isinstance(value, (str, int, float)):
            return False
        return scalar_key(value) in self._choices

    @cached_property
    def _choices(self) -> dict[str, Scalar]:
        return {scalar_key(choice): choice for choice in self.choices}

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        first: dict[str, int] = {}
        for index, choice in enumerate(self.choices):
            if first.setdefault(scalar_key(choice), index) != index:
                message = f"every choice must be there once, and {shown(choice)} is there before"
                problems.append(RuleProblem(("choices", index), message))
        if problems:
            raise rules_error(problems)
        return self


Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _steps(low: float, value: float, step: float) -> Decimal:
    """How many steps lie between low and value, in decimal: 0.3 is three steps of 0.1."""
    return (Decimal(repr(value)) - Decimal(repr(low))) / Decimal(repr(step))


def _is_whole(number: Decimal) -> bool:
    return abs(number - number.to_integral_value()) <= Decimal("1e-9")


def _range_problems(low: float, high: float, *, log: bool) -> list[RuleProblem]:
    problems = []
    if low > high:
        problems.append(RuleProblem(("low",), f"low must be at most high, got low {low} and high {high}"))
    if log and low <= 0:
        problems.append(RuleProblem(("low",), f"a log range needs low above 0, got {low}"))
    return problems


def _step_problems(low: float, high: float, step: float, *, max_steps: int | None = MAX_STEPS) -> list[RuleProblem]:
    if step <= 0:
        return [RuleProblem(("step",), f"step must be above 0, got {step}")]
    if low > high:
        return []
    steps = _steps(low, high, step)
    if max_steps is not None and steps > max_steps:
        message = f"high must be at most {max_steps:,} steps above low, got step {step} from {low} to {high}"
        return [RuleProblem(("step",), message)]
    if not _is_whole(steps):
        below = Decimal(repr(low)) + int(steps) * Decimal(repr(step))
        message = f"high must be a whole number of steps above low, got {high}; the last step below is {below}"
        return [RuleProblem(("high",), message)]
    return []
