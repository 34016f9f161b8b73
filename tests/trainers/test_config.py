import json
import math
import subprocess
import sys
from enum import Enum
from fractions import Fraction

import numpy as np
import pytest

from trainers.config import LARGEST_FLOAT, InvalidTrainConfigError, TrainConfig, defaults, knobs, problems_with


def test_the_defaults_are_a_valid_configuration_by_wire_name() -> None:
    assert TrainConfig.from_mapping(defaults()) == TrainConfig()
    assert list(defaults()) == list(knobs())
    assert "lambda" in defaults()
    assert "lam" not in defaults()


def test_a_configuration_survives_its_mapping() -> None:
    config = TrainConfig(dataset="ridge", model="linear", sampling="lipschitz", lam="1/t", rho=0, batch_size=1)
    assert TrainConfig.from_mapping(config.to_mapping()) == config


def test_every_problem_is_reported_at_once_under_its_wire_name() -> None:
    values = {"lambda": 1.5, "rho": -1, "epochs": 0, "seed": True, "lr": float("inf"), "colour": "red"}
    with pytest.raises(InvalidTrainConfigError) as caught:
        TrainConfig.from_mapping(values)
    assert {problem.field for problem in caught.value.problems} == set(values)
    assert "lambda must be a number in [0, 1] or one of '1/t', '1-1/t', got 1.5" in str(caught.value)
    with pytest.raises(InvalidTrainConfigError, match="lambda must be"):
        TrainConfig(lam=1.5)


@pytest.mark.parametrize("name", [name for name, knob in knobs().items() if knob.kind != "str"])
@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 1 << 20_000, math.nan, math.inf, None, True, [], {}],
    ids=lambda value: type(value).__name__,
)
def test_no_value_is_beyond_a_rule(name: str, value: object) -> None:
    (problem,) = problems_with({name: value})
    assert problem.field == name
    assert "got" in problem.message


@pytest.mark.parametrize("name", list(knobs()))
@pytest.mark.parametrize("value", [1 << 20_000, [], {}, None], ids=lambda value: type(value).__name__)
def test_nothing_but_a_knobs_own_kind_is_looked_up(name: str, value: object) -> None:
    assert name in {problem.field for problem in problems_with({name: value})}


@pytest.mark.parametrize("name", ["lr", "rho", "weight_decay"])
def test_numbers_end_where_single_precision_does(name: str) -> None:
    assert problems_with({name: 1e18}) == problems_with({name: LARGEST_FLOAT}) == []
    (problem,) = problems_with({name: 1e300})
    assert problem.message == f"{name} must be at most 1e+30, what single precision can hold, got 1e+300"


class Shape(str, Enum):  # noqa: UP042 (whose str() is not its value)
    BALL = "l2"


def test_numbers_and_names_of_every_kind_are_held_as_pythons_own() -> None:
    config = TrainConfig(
        epochs=np.int64(3),  # type: ignore[arg-type]
        rho=np.float32(0.5),  # type: ignore[arg-type]
        rho_end=np.float64(0.25),
        lam=np.float64(0.5),
        lambda_schedule=np.str_("cosine"),
        momentum=np.float32(0),  # type: ignore[arg-type]
        weight_decay=Fraction(1, 8),  # type: ignore[arg-type]
        perturbation=Shape.BALL,
        train_examples=np.int32(64),  # type: ignore[arg-type]
    )
    same = TrainConfig(
        epochs=3, rho=0.5, rho_end=0.25, lam=0.5, lambda_schedule="cosine", momentum=0.0, weight_decay=0.125,
        perturbation="l2", train_examples=64,
    )  # fmt: skip
    assert config == same
    assert {type(value) for value in config.to_mapping().values()} == {float, int, str}
    assert json.dumps(config.to_mapping()) == json.dumps(same.to_mapping())
    assert type(TrainConfig(rho=1).rho) is int


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", np.float64(1), "epochs must be an integer in [1, 100000], got np.float64(1.0)"),
        ("epochs", np.int64(0), "epochs must be an integer in [1, 100000], got np.int64(0)"),
        ("rho", np.float32(-1), "rho must be a number of at least 0 or 'theory', got np.float32(-1.0)"),
        ("rho", np.float32(np.inf), "rho must be finite, got np.float32(inf)"),
        ("rho", np.bool_(True), "rho must be a number of at least 0 or 'theory', got np.True_"),
        ("rho", 1j, "rho must be a number of at least 0 or 'theory', got 1j"),
        ("train_examples", np.int64(10_000), "must be at most 1149, the training examples of digits, got 10000"),
    ],
)
def test_the_rules_hold_for_numpys_numbers_too(name: str, value: object, message: str) -> None:
    (problem,) = problems_with({name: value})
    assert problem.field == name
    assert message in problem.message


def test_a_fraction_beyond_every_float_is_not_finite() -> None:
    (problem,) = problems_with({"rho": Fraction(10**400)})
    assert problem.message.startswith("rho must be finite, got Fraction(")


def test_declaring_a_configuration_imports_no_torch() -> None:
    program = "import sys, trainers.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
