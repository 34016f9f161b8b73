"""What Unified SAM keeps, restores, refuses and carries over."""

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.unified_sam.reference import HostReads, a_batch, a_model, closure_for, same, weights_of
from trainers.schedules import Schedule
from trainers.unified_sam import UnifiedSAM

Carry = Callable[[nn.Module, UnifiedSAM], tuple[nn.Module, UnifiedSAM]]


def train(optimizer: UnifiedSAM, model: nn.Module, numbers: range) -> None:
    for number in numbers:
        optimizer.step(closure_for(model, a_batch(number)))


def in_two_groups(model: nn.Module, **options: Any) -> UnifiedSAM:
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]  # type: ignore[index]
    return UnifiedSAM(groups, torch.optim.SGD, **options)


def by_file(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    """Through a file that may hold tensors and plain data only, into an optimizer with other settings."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = a_model(seed=5)
    twin.load_state_dict(model.state_dict())
    other = in_two_groups(twin, rho=9.0, lam=0.0, lr=9.0, momentum=0.1, clip_norm=9.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return twin, other


def by_pickle(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_deepcopy(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return copy.deepcopy((model, optimizer))


@pytest.mark.parametrize("carry", [by_file, by_pickle, by_deepcopy])
def test_a_run_with_every_option_continues_exactly(carry: Carry) -> None:
    model = a_model()
    rho, lam = Schedule("linear", 0.1, 0.5, total_steps=10, warmup_steps=2), Schedule("1-1/t", steps_per_t=2)
    optimizer = in_two_groups(
        model, rho=rho, lam=lam, eta=0.1, max_perturbation=0.3, clip_norm=0.2, lr=0.1, momentum=0.9
    )
    optimizer.param_groups[0]["adaptive"] = True
    optimizer.param_groups[1]["lam"] = "1/t"
    train(optimizer, model, range(5))
    twin, resumed = carry(model, optimizer)
    train(optimizer, model, range(5, 10))
    train(resumed, twin, range(5, 10))
    assert resumed.t == 10
    assert same(weights_of(model), weights_of(twin))
    assert [group["rho"] for group in resumed.param_groups] == [rho, rho]
    assert [group["lam"] for group in resumed.param_groups] == [lam, "1/t"]
    assert (resumed.max_perturbation, resumed.clip_norm) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state["param_groups"][0].update(rho=-1.0), "rho must be"),
        (lambda state: state["param_groups"][0].update(lam={"kind": "1/t²"}), "kind must be one of"),
        (lambda state: state["unified_sam"].update(clip_norm=0), "clip_norm must be"),
        (lambda state: state["param_groups"].pop(), "parameter group"),
    ],
)
def test_a_state_that_breaks_a_rule_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    model, twin = a_model(), a_model()
    optimizer, other = (in_two_groups(net, rho=0.1, lam="1/t", lr=0.1, momentum=0.9) for net in (model, twin))
    train(optimizer, model, range(3))
    train(other, twin, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    train(optimizer, model, range(3, 6))
    train(other, twin, range(3, 6))
    assert same(weights_of(model), weights_of(twin))


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
    """The largest output that any operation makes anew, in bytes; what writes into an argument makes none."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (list, tuple)) else [result]
        if not func._schema.is_mutable:
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


def test_complex_parameters_and_several_devices_are_refused() -> None:
    real, elsewhere = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match=r"parameters must be real floating-point numbers, got torch\.complex64"):
        UnifiedSAM([nn.Parameter(torch.ones(2, dtype=torch.complex64))], torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="all parameters must be on one device, got cpu, meta"):
        UnifiedSAM([real, elsewhere], torch.optim.SGD, lr=0.1)
    optimizer = UnifiedSAM([real], torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="one device"):
        optimizer.add_param_group({"params": [elsewhere]})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 1


def test_groups_given_by_the_caller_keep_their_settings() -> None:
    model = a_model()
    groups = [{"params": list(model.parameters()), "rho": 0.3, "lam": "1/t"}]
    first, second = (UnifiedSAM(groups, torch.optim.SGD, rho=0.1, lr=0.1) for _ in range(2))
    for optimizer in (first, second):
        assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["lam"]) == (0.3, "1/t")


def test_named_parameters_keep_their_names() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.named_parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    train(optimizer, model, range(2))
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["param_names"] == names


@pytest.mark.parametrize(("fused", "expected"), [(True, 0), (False, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adaptive": True},
        {"max_perturbation": 0.1, "lam": 0.0},
        {"clip_norm": 0.1},
        {"synchronise": False},
        {"rho": Schedule("cosine", 0.1, 0.2, total_steps=9), "lam": Schedule("1/t")},
    ],
    ids=str,
)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_no_option_reads_anything_back_to_the_host(
    options: dict[str, Any], micro_batches: int, fused: bool, expected: int
) -> None:
    model = a_model()
    optimizer = in_two_groups(model, lr=0.1, momentum=0.9, fused=fused, **options)
    optimizer.param_groups[1]["rho"] = 0.3
    optimizer.step(closure_for(model, a_batch(0)))
    closures = [closure_for(model, a_batch(number)) for number in range(micro_batches)]
    with HostReads() as reads:
        optimizer.step_micro_batches(closures, [1 / micro_batches] * micro_batches, model=model)
    assert reads.count == expected
