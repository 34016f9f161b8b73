"""A step's numbers as floats and as tensors: both say the same."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers import checkpoint
from trainers.unified_sam import UnifiedSAM
from trainers.unified_sam.ascent import ascent_scale, clip_factor
from trainers.unified_sam.scalars import (
    Flag,
    Scalar,
    at_most,
    finite_or_zero,
    global_norm,
    inverse,
    is_not_finite,
    norm_of_norms,
    number_or_zero,
)

FUNCTIONS: dict[str, Callable[[Scalar], Scalar | Flag]] = {
    "inverse": inverse,
    "finite_or_zero": finite_or_zero,
    "number_or_zero": number_or_zero,
    "at_most": lambda value: at_most(value, 1.0),
    "is_not_finite": is_not_finite,
    "clip_factor": lambda value: clip_factor(value, 0.5),
    "SAM": lambda value: ascent_scale(value, rho=0.1, lam=1.0),
    "USAM": lambda value: ascent_scale(value, rho=0.1, lam=0.0),
    "between": lambda value: ascent_scale(value, rho=0.1, lam=0.3),
}


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-3, 1.0, 7.0, 1e308, math.inf, math.nan])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_float_and_a_tensor_give_the_same(function: Callable[[Scalar], Scalar | Flag], value: float) -> None:
    of_float, of_tensor = function(value), function(torch.tensor(value, dtype=torch.float64))
    assert not isinstance(of_float, Tensor)
    assert isinstance(of_tensor, Tensor)
    assert of_float == pytest.approx(of_tensor.item(), rel=1e-15, abs=0, nan_ok=True)


@pytest.mark.parametrize("norms", [[2.0], [3.0, 4.0], [1.0, math.inf], [1.0, math.nan]])
def test_a_norm_of_norms_is_the_same_of_floats_and_of_tensors(norms: list[float]) -> None:
    of_tensors = norm_of_norms([torch.tensor(norm, dtype=torch.float64) for norm in norms])
    assert norm_of_norms(norms) == pytest.approx(float(of_tensors), nan_ok=True)


@pytest.mark.usefixtures("numbers")
def test_a_global_norm_is_taken_over_tensors_of_any_shape_layout_and_precision() -> None:
    tensors = [
        torch.randn(()),
        torch.randn(0),
        torch.randn(5, 4).T,
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(9)[::2],
        torch.randn(6).to(torch.bfloat16),
        torch.randn(6, dtype=torch.float64),
    ]
    for of_kind in (tensors, tensors[:-1]):
        squares = [float(tensor.double().square().sum()) for tensor in of_kind]
        assert float(global_norm(of_kind)) == pytest.approx(math.sqrt(sum(squares)), rel=1e-6)


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_scale_beyond_the_precision_of_the_gradients_ascends_nowhere(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=1e300, lam=0.5, lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.first_step()
    assert weight.tolist() == [1, 1]
    assert float(optimizer.last_perturbation_norm) == 0


@pytest.mark.usefixtures("numbers")
def test_a_scale_beyond_the_precision_of_some_gradients_is_no_error() -> None:
    weights = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = UnifiedSAM(weights, torch.optim.SGD, rho=1e300, lam=0.5, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.first_step()
    optimizer.abandon_step()
    assert [weight.tolist() for weight in weights] == [[1, 1], [1, 1]]


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("as_kind", [np.float64, Fraction, int], ids=lambda kind: kind.__name__)
def test_settings_may_be_real_numbers_of_any_kind(as_kind: Callable[[float], float]) -> None:
    weights = []
    for kind in (as_kind, float):
        weight = nn.Parameter(torch.ones(2))
        settings = {name: kind(2.0) for name in ("rho", "eta", "max_perturbation", "clip_norm")}
        optimizer = UnifiedSAM([weight], torch.optim.SGD, lam=kind(1.0), adaptive=True, lr=0.1, **settings)
        loaded = checkpoint.loads(checkpoint.dumps(optimizer.state_dict()))
        optimizer.load_state_dict(loaded)
        weight.grad = torch.ones(2)
        optimizer.first_step()
        weights.append(weight.tolist())
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("numbers")
def test_without_an_ascent_the_radius_is_zero_even_where_the_gradient_is_infinite() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.0, lr=0.1)

    def closure() -> Tensor:
        loss = (weight * math.inf).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (weight.tolist(), int(optimizer.skipped_steps)) == ([1, 1], 1)
    assert float(optimizer.last_grad_norm) == math.inf
    assert float(optimizer.last_perturbation_norm) == 0
