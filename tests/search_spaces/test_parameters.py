from __future__ import annotations

from decimal import Decimal
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from search_spaces import CategoricalParameter, FloatParameter, IntParameter, Parameter, point_key, scalar_key

READ: TypeAdapter[Parameter] = TypeAdapter(Parameter)


def problems(raw: object) -> dict[str, str]:
    """Message by dotted path of the rules that `raw` breaks."""
    with pytest.raises(ValidationError) as caught:
        READ.validate_python(raw)
    found = {}
    for detail in caught.value.errors():
        for path, message in detail.get("ctx", {}).get("problems", [(detail["loc"][1:], detail["msg"])]):
            found[".".join(map(str, path))] = message
    return found


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        ({"type": "float", "low": 2, "high": 1}, "low", "low must be at most high, got low 2.0 and high 1.0"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "low", "needs low above 0, got 0.0"),
        ({"type": "float", "low": 1, "high": 2, "log": True, "step": 0.5}, "step", "exclude each other"),
        ({"type": "float", "low": 0, "high": 1, "step": 0}, "step", "step must be above 0, got 0.0"),
        ({"type": "float", "low": 0, "high": 1, "step": 0.3}, "high", "the last step below is 0.9"),
        ({"type": "float", "low": 0, "high": 1, "step": 1e-300}, "step", "at most 1,000,000 steps"),
        ({"type": "float", "low": 0, "high": float("inf")}, "high", "finite"),
        ({"type": "float", "low": True, "high": 2}, "low", "number"),
        ({"type": "int", "low": 1.5, "high": 2}, "low", "integer"),
        ({"type": "int", "low": 0, "high": 4, "log": True}, "low", "above 0"),
        ({"type": "int", "low": 1, "high": 4, "log": True, "step": 3}, "step", "exclude each other"),
        ({"type": "int", "low": 1, "high": 4, "step": 2}, "high", "the last step below is 3"),
        ({"type": "int", "low": 1, "high": 2**60}, "high", "less than or equal"),
        ({"type": "categorical", "choices": []}, "choices", "at least 1 item"),
        ({"type": "categorical", "choices": [1, "a", 1.0]}, "choices.2", "once, and 1.0 is there before"),
        ({"type": "categorical", "choices": [[1]]}, "choices.0", "text, a number or a boolean"),
        ({"type": "categorical", "choices": [float("nan")]}, "choices.0", "finite, got nan"),
        ({"type": "categorical", "choices": list(range(1001))}, "choices", "at most 1000"),
        ({"type": "categorical", "choices": [1], "when": {"a": []}}, "when.a", "at least 1"),
        ({"type": "float", "low": 0, "high": 1, "stepp": 1}, "stepp", "did you mean 'step'?"),
    ],
)
def test_a_broken_rule_names_its_field_and_value(raw: dict[str, Any], field: str, words: str) -> None:
    found = problems(raw)
    assert words in found[field], found


def test_two_broken_rules_come_together() -> None:
    assert set(problems({"type": "float", "low": -1, "high": -2, "log": True, "step": -1})) == {"low", "step"}


def test_one_true_and_the_text_1_are_three_choices() -> None:
    parameter = CategoricalParameter(choices=(1, True, "1", "true"))
    assert parameter.size == 4
    assert parameter.takes(1.0)
    assert not CategoricalParameter(choices=(1,)).takes(True)


def test_a_float_grid_has_no_rounding_dust() -> None:
    parameter = FloatParameter(low=0.1, high=0.7, step=0.1)
    assert list(parameter.values()) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert parameter.size == 7
    assert parameter.takes(0.1 + 2 * 0.1)
    assert not parameter.takes(0.25)


@pytest.mark.parametrize(
    ("parameter", "value", "own"),
    [
        (FloatParameter(low=0.1, high=0.5, step=0.1), 0.1 + 0.2, 0.3),
        (FloatParameter(low=0.1, high=0.5, step=0.1), 0.5, 0.5),
        (FloatParameter(low=0.0, high=0.1 + 0.2, step=0.1), 0.3, 0.1 + 0.2),  # a grid ends with `high` as it is given
        (FloatParameter(low=0.0, high=2.0, step=1.0), 1, 1.0),
        (FloatParameter(low=0.0, high=1.0), 0.1 + 0.2, 0.1 + 0.2),
        (FloatParameter(low=0.01, high=1.0, log=True), 1, 1.0),
        (IntParameter(low=1, high=7, step=3), 4, 4),
        (IntParameter(low=1, high=8, log=True), 3, 3),
        (CategoricalParameter(choices=(0.0, 1.0, "1/t")), 1, 1.0),
        (CategoricalParameter(choices=(16, 32)), 16.0, 16),
        (CategoricalParameter(choices=("1", 1, True)), True, True),
        (CategoricalParameter(choices=("1", 1, True)), "1", "1"),
    ],
)
def test_a_value_is_snapped_to_the_one_that_the_parameter_lists(parameter: Parameter, value: Any, own: Any) -> None:
    assert parameter.takes(value)
    assert repr(parameter.snapped(value)) == repr(own)


@given(steps=st.integers(0, 1_000), low=st.integers(-100, 100), step=st.sampled_from([0.1, 0.01, 0.3, 1e-5]))
def test_a_sum_of_steps_is_snapped_to_a_value_of_the_grid(steps: int, low: int, step: float) -> None:
    parameter = FloatParameter(low=low / 10, high=float(Decimal(low) / 10 + 1_000 * Decimal(repr(step))), step=step)
    value = min(parameter.low + steps * step, parameter.high)
    assert parameter.takes(value)
    assert parameter.snapped(value) == next(islice(parameter.values(), steps, None))


def test_high_is_included() -> None:
    assert list(IntParameter(low=2, high=8, step=3).values()) == [2, 5, 8]
    assert IntParameter(low=2, high=2).ends() == (2,)


def test_a_continuum_has_no_list_of_values() -> None:
    parameter = FloatParameter(low=0, high=1)
    assert parameter.size is None
    with pytest.raises(ValueError, match="without a step"):
        parameter.values()


@pytest.mark.parametrize("value", [True, "3", None, 3.0, 9])
def test_an_int_parameter_takes_integers_of_its_range_only(value: object) -> None:
    assert not IntParameter(low=1, high=8).takes(value)


def test_equal_numbers_have_equal_keys_and_nothing_else_does() -> None:
    assert scalar_key(1) == scalar_key(1.0)
    assert scalar_key(0.0) == scalar_key(-0.0)
    assert len({scalar_key(value) for value in (1, "1", True, "true", 1.5)}) == 5


def test_a_point_key_does_not_depend_on_the_order_of_names() -> None:
    assert point_key({"rho": 1, "lambda": "1/t"}) == point_key({"lambda": "1/t", "rho": 1.0})
    assert point_key({"lambda": "1/t", "rho": 0.1}) == '{"lambda":"1/t","rho":0.1}'
