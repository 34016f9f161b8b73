import math
import subprocess
import sys

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


def test_declaring_a_configuration_imports_no_torch() -> None:
    program = "import sys, trainers.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
