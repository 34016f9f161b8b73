"""What Unified SAM keeps beside the weights, how it restores them, and what it refuses meanwhile."""

import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.unified_sam.reference import a_batch, a_model, closure_for, same, weights_of
from trainers.unified_sam import UnifiedSAM

pytestmark = pytest.mark.usefixtures("numbers")


def test_the_saved_weights_lie_in_the_same_memory_at_every_step_and_in_no_copy() -> None:
    model = nn.Linear(300, 300, bias=False)
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)

    def closure() -> Tensor:
        loss = model(torch.ones(1, 300)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    bytes_of_weights = 300 * 300 * 4
    with Allocations() as second_step:
        optimizer.first_step()
        optimizer.abandon_step()
    assert second_step.largest < bytes_of_weights
    assert len(pickle.dumps(optimizer)) < 1.5 * bytes_of_weights
    assert len(pickle.dumps(optimizer.state_dict())) < bytes_of_weights
    closure()
    optimizer.step(closure)


class Allocations(TorchDispatchMode):
    """The largest output that any operation makes anew, in bytes; views and what writes into an argument make none."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (list, tuple)) else [result]
        if not any(output.alias_info for output in func._schema.returns):
            sizes = [output.nbytes for output in outputs if isinstance(output, Tensor)]
            self.largest = max([self.largest, *sizes])
        return result


def test_a_model_that_moves_to_another_precision_is_still_restored_bit_for_bit() -> None:
    model = a_model().float()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)
    for dtype in (torch.float32, torch.float64, torch.float32):
        model.to(dtype)
        for param in model.parameters():
            param.data.normal_()  # digits that float32 does not hold
        before = weights_of(model)
        inputs, targets = a_batch(0)
        closure_for(model, (inputs.to(dtype), targets))()
        optimizer.first_step()
        assert not same(weights_of(model), before)
        optimizer.abandon_step()
        assert same(weights_of(model), before)


def test_an_optimizer_does_not_keep_the_model_alive() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)
    optimizer.step(closure_for(model, a_batch(0)), model=model)
    reference = weakref.ref(model)
    del model
    assert reference() is None
    assert optimizer.t == 1


def test_a_step_out_of_order_is_an_error_for_whole_steps_too() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    closure = closure_for(model, a_batch(0))
    closure()
    optimizer.first_step()
    for step in (lambda: optimizer.step(closure), lambda: optimizer.step_micro_batches([closure], [1.0])):
        with pytest.raises(RuntimeError, match="at an ascent point"):
            step()
    assert optimizer.is_perturbed
    with pytest.raises(RuntimeError, match="cannot be loaded between"):
        optimizer.load_state_dict({})


class OneRowAtATime(nn.Module):
    """An embedding whose gradient is sparse, where asked, from the given pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2))

    def loss(self, *, sparse: bool) -> Tensor:
        return nn.functional.embedding(torch.tensor([1, 2]), self.weight, sparse=sparse).sum()


@pytest.mark.parametrize("sparse_from", [1, 2])
def test_a_sparse_gradient_is_refused_in_either_pass_and_the_weights_stay(sparse_from: int) -> None:
    model = OneRowAtATime()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        loss = model.loss(sparse=passes >= sparse_from)
        loss.backward()
        return loss

    with pytest.raises(
        ValueError, match=r"gradients must be dense, got torch.sparse_coo for a parameter of shape \(4, 2\)"
    ):
        optimizer.step(closure)
    assert model.weight.tolist() == [[1, 1]] * 4
    assert not optimizer.is_perturbed
