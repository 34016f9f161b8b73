import copy
import inspect
import math
import pickle
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.unified_sam.reference import (
    Closure,
    Group,
    Reference,
    a_batch,
    a_model,
    assert_close,
    closure_for,
    constant,
    in_two_groups,
    same,
    train,
    weights_of,
)
from trainers.batchnorm import frozen_running_statistics
from trainers.unified_sam import UnifiedSAM
from trainers.unified_sam.ascent import ascent_scale

pytestmark = pytest.mark.usefixtures("numbers")


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, "1/t", "1-1/t"])
def test_it_agrees_with_the_formula_written_out(lam: float | str, by_hand: bool) -> None:
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.2, lam=lam, **sgd)
    lam_at = {"1/t": lambda t: 1 / t, "1-1/t": lambda t: 1 - 1 / t}.get(lam, constant(lam))
    reference = Reference(theirs, [Group([0, 1, 2, 3], constant(0.2), lam_at)], **sgd)
    for number in range(20):
        closure = closure_for(ours, a_batch(number))
        if by_hand:
            closure()
            optimizer.first_step()
            closure()
            optimizer.second_step()
            optimizer.zero_grad()
        else:
            optimizer.step(closure)
        reference.step(a_batch(number))
    assert_close(ours, theirs)


def test_each_group_has_its_own_rho_and_lambda_under_one_norm() -> None:
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    ours, theirs = a_model(), a_model()
    params = list(ours.parameters())
    groups = [{"params": params[:2], "rho": 0.3, "lam": "1/t"}, {"params": params[2:], "lam": 0.25}]
    optimizer = UnifiedSAM(groups, torch.optim.SGD, rho=0.1, lam=1.0, **sgd)
    reference = Reference(
        theirs,
        [Group([0, 1], constant(0.3), lambda t: 1 / t), Group([2, 3], constant(0.1), constant(0.25))],
        **sgd,
    )
    for number in range(10):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
    assert_close(ours, theirs)


def test_rho_zero_is_the_base_optimizer_in_one_pass() -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.AdamW, rho=0.0, lam=0.5, lr=0.01, fused=False)
    base = torch.optim.AdamW(theirs.parameters(), lr=0.01, fused=False)
    calls = 0
    for number in range(5):
        closure = closure_for(ours, a_batch(number))

        def counted(closure: Closure = closure) -> Tensor:
            nonlocal calls
            calls += 1
            return closure()

        optimizer.step(counted)
        base.zero_grad()
        closure_for(theirs, a_batch(number))()
        base.step()
    assert calls == 5
    assert same(weights_of(ours), weights_of(theirs))
    assert float(optimizer.last_perturbation_norm) == 0


def test_the_perturbation_has_the_radius_rho_for_sam_and_rho_times_the_norm_for_usam() -> None:
    for lam, expected in ((1.0, lambda norm: 0.2), (0.0, lambda norm: 0.2 * norm)):
        model = a_model()
        optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=lam, lr=0.1)
        before = weights_of(model)
        closure_for(model, a_batch(0))()
        optimizer.first_step()
        moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(weights_of(model), before, strict=True)))
        assert moved == pytest.approx(expected(float(optimizer.last_grad_norm)), rel=1e-9)
        assert float(optimizer.last_perturbation_norm) == pytest.approx(moved, rel=1e-9)


def test_a_zero_gradient_perturbs_nothing() -> None:
    norms = torch.tensor([0.0, 1e-44])
    for lam in (0.0, 0.5, 1.0):
        assert ascent_scale(norms, rho=0.1, lam=lam).tolist() == [0, 0]
    weight = nn.Parameter(torch.ones(3))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    (weight * 0).sum().backward()
    optimizer.first_step()
    assert weight.tolist() == [1, 1, 1]


def test_the_norm_of_low_precision_gradients_is_taken_in_float32(numbers: str) -> None:
    weight = nn.Parameter(torch.zeros(2000, dtype=torch.float16))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    weight.grad = torch.full_like(weight, 300.0)  # squares overflow float16
    optimizer.first_step()
    assert optimizer.last_grad_norm.dtype == (torch.float32 if numbers == "tensors" else torch.float64)
    assert float(optimizer.last_grad_norm) == pytest.approx(300 * math.sqrt(2000), rel=1e-6)


def test_the_weights_come_back_bit_for_bit_in_the_same_memory() -> None:
    model = a_model().float()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.7, lam=0.5, lr=0.1)
    before, pointers = weights_of(model), [param.data_ptr() for param in model.parameters()]
    inputs, targets = a_batch(0)
    closure_for(model, (inputs.float(), targets))()
    optimizer.first_step()
    assert optimizer.is_perturbed
    assert not same(weights_of(model), before)
    optimizer.abandon_step()
    assert same(weights_of(model), before)
    assert [param.data_ptr() for param in model.parameters()] == pointers
    assert not optimizer.is_perturbed
    assert optimizer.t == 0


def test_a_second_pass_that_raises_leaves_the_weights_as_they_were() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, lr=0.1, momentum=0.9)
    optimizer.step(closure_for(model, a_batch(0)))
    before, momentum = weights_of(model), copy.deepcopy(optimizer.state_dict())
    closure = closure_for(model, a_batch(1))

    def breaking() -> Tensor:
        if optimizer.is_perturbed:
            raise MemoryError("out of memory")
        return closure()

    with pytest.raises(MemoryError, match="out of memory"):
        optimizer.step(breaking)
    assert same(weights_of(model), before)
    assert optimizer.t == 1
    for index, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], momentum["state"][index]["momentum_buffer"])
    optimizer.step(closure)
    assert optimizer.t == 2


def test_stale_gradients_do_not_leak_into_a_step() -> None:
    clean, stale = a_model(), a_model()
    for model in (clean, stale):
        optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, lr=0.1)
        if model is stale:
            closure_for(model, a_batch(99))()
        optimizer.step(closure_for(model, a_batch(0)))
    assert same(weights_of(clean), weights_of(stale))


def test_step_returns_the_loss_at_the_unperturbed_weights() -> None:
    model = a_model()
    inputs, targets = a_batch(0)
    expected = float(nn.functional.cross_entropy(model(inputs), targets).detach())
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.5, lam=1.0, lr=0.1)
    assert float(optimizer.step(closure_for(model, (inputs, targets))).detach()) == expected


def test_steps_out_of_order_are_errors() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=1.0, lr=0.1)
    with pytest.raises(RuntimeError, match="no ascent to return from"):
        optimizer.second_step()
    with pytest.raises(RuntimeError, match="no ascent to return from"):
        optimizer.abandon_step()
    closure_for(model, a_batch(0))()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="first_step\\(\\) called twice"):
        optimizer.first_step()
    for save in (optimizer.state_dict, lambda: pickle.dumps(optimizer), lambda: copy.deepcopy(optimizer)):
        with pytest.raises(RuntimeError, match="cannot be saved between"):
            save()


@pytest.mark.parametrize("absent_in", [1, 2])
def test_a_parameter_without_gradient_in_one_pass_is_not_left_perturbed(absent_in: int) -> None:
    used, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = UnifiedSAM([used, other], torch.optim.SGD, rho=0.3, lam=0.5, lr=0.1)

    def closure() -> Tensor:
        current = 2 if optimizer.is_perturbed else 1
        loss = used.square().sum() + (0 if current == absent_in else other.sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(used.detach()[0]) < 1
    assert other.tolist() == ([1, 1] if absent_in == 2 else pytest.approx([0.9, 0.9]))


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_running_statistics_move_once_per_step_from_the_first_pass(rho: float, by_hand: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).double()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=rho, lam=0.5, lr=0.1)
    for number in range(4):
        closure = closure_for(model, a_batch(number))
        expected = copy.deepcopy(model)
        expected(a_batch(number)[0])
        if by_hand:
            closure()
            optimizer.first_step()
            with frozen_running_statistics(model):
                closure()
            optimizer.second_step()
            optimizer.zero_grad()
        else:
            optimizer.step(closure, model=model)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(model[1], name), getattr(expected[1], name))
    assert int(model[1].num_batches_tracked) == optimizer.t == 4


def test_a_closure_that_sets_the_mode_moves_running_statistics_as_one_that_need_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).double()
    twin = copy.deepcopy(model)
    optimizer, other = (UnifiedSAM(net.parameters(), torch.optim.SGD, rho=0.2, lr=0.1) for net in (model, twin))
    spoilt = a_batch(1)[0] * math.inf, a_batch(1)[1]
    for batch in (a_batch(0), spoilt, a_batch(2)):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            model.train()
            loss = closure_for(model, batch)()
            model.eval()
            return loss

        optimizer.step(closure, model=model)
        other.step(closure_for(twin, batch), model=twin)
        assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert int(optimizer.skipped_steps) == 1
    assert int(model[1].num_batches_tracked) == 2


@pytest.mark.parametrize(
    "carry",
    [lambda pair: pair, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["itself", "copy", "pickle"],
)
def test_a_state_that_is_assigned_resets_the_base_optimizer(carry: Callable[[Any], Any]) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    train(optimizer, model, range(2))
    model, optimizer = carry((model, optimizer))
    twin = copy.deepcopy(model)
    fresh = UnifiedSAM(twin.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    optimizer.state = defaultdict(dict)
    train(optimizer, model, range(2, 4))
    train(fresh, twin, range(2, 4))
    assert same(weights_of(model), weights_of(twin))
    assert optimizer.state is optimizer.base.state


def test_groups_that_are_assigned_are_stepped() -> None:
    model = a_model()
    optimizer = in_two_groups(model, rho=0.2, lr=0.1)
    before = weights_of(model)
    optimizer.param_groups = optimizer.param_groups[:1]
    train(optimizer, model, range(1))
    assert [torch.equal(*pair) for pair in zip(weights_of(model), before, strict=True)] == [False, False, True, True]
    assert optimizer.param_groups is optimizer.base.param_groups


def recipe_by_hand() -> str:
    """The lines that the class's docstring gives for one step."""
    _, _, after = inspect.getdoc(UnifiedSAM).partition("by hand::\n\n")
    return textwrap.dedent(after.partition("\n\n")[0])


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_the_recipe_by_hand_is_a_step_in_a_loop_too(clip_norm: float | None) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizer, by_hand = (
        UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, clip_norm=clip_norm, lr=0.1, momentum=0.9)
        for model in models
    )
    names = {
        "optimizer": by_hand,
        "model": models[1],
        "loss_at": lambda batch: nn.functional.cross_entropy(models[1](batch[0]), batch[1]),
        "frozen_running_statistics": frozen_running_statistics,
    }
    for number in range(5):
        optimizer.step(closure_for(models[0], a_batch(number)), model=models[0])
        exec(recipe_by_hand(), names | {"batch": a_batch(number)})
        assert torch.equal(by_hand.last_grad_norm, optimizer.last_grad_norm)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_running_statistics_thaw_where_the_second_pass_raises() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, lr=0.1)
    closure = closure_for(model, a_batch(0))

    def breaking() -> Tensor:
        if optimizer.is_perturbed:
            raise MemoryError
        return closure()

    with pytest.raises(MemoryError):
        optimizer.step(breaking, model=model)
    optimizer.step(closure, model=model)
    assert int(model[0].num_batches_tracked) == 2


@pytest.mark.parametrize("by_hand", [False, True])
def test_learning_rate_schedulers_act_on_it_without_warnings(by_hand: bool) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=1.0, lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for number in range(3):
            closure = closure_for(model, a_batch(number))
            if by_hand:
                closure()
                optimizer.first_step()
                closure()
                optimizer.second_step()
            else:
                optimizer.step(closure)
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert optimizer.base.param_groups[0]["lr"] == 0.125
    before = weights_of(model)
    optimizer.base.param_groups[0]["lr"] = 0.0
    optimizer.step(closure_for(model, a_batch(3)))
    assert same(weights_of(model), before)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_scale_is_zero_where_it_overflows(lam: float) -> None:
    norms = torch.tensor([0.0, 2e-38, 1e-3])
    large, plain = (ascent_scale(norms, rho=rho, lam=lam) for rho in (32.0, 0.1))
    assert large.isfinite().all()
    assert plain[2] == pytest.approx(0.1 * (1 - lam + lam / 1e-3))
    weight = nn.Parameter(torch.zeros(1))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=32.0, lam=lam, lr=0.1)
    weight.grad = torch.full((1,), 2e-19)
    optimizer.first_step()
    assert weight.item() == pytest.approx(32 * (lam + (1 - lam) * 2e-19))


@pytest.mark.parametrize(("gradient", "norm"), [(1e19, math.inf), (5e18, 1e19), (1e-22, 2e-22), (1e-24, 0.0)])
def test_the_norm_of_float32_gradients_reaches_as_far_as_its_squares(gradient: float, norm: float) -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lr=0.1)
    weight.grad = torch.full((4,), gradient)
    optimizer.first_step()
    assert float(optimizer.last_grad_norm) == pytest.approx(norm, rel=0.05)
    assert float(optimizer.last_perturbation_norm) == pytest.approx(0.1 if 0 < norm < math.inf else 0.0)


def test_an_interrupt_in_the_second_pass_leaves_the_weights_as_they_were() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    before, closure = weights_of(model), closure_for(model, a_batch(0))

    def interrupted() -> Tensor:
        if optimizer.is_perturbed:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert same(weights_of(model), before)
    assert not optimizer.is_perturbed


class Interrupting(TorchDispatchMode):
    """Interrupts once, right after the given copy of many tensors: after the first saves, the second restores."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.copies, self.number = 0, number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.copies += func is torch.ops.aten._foreach_copy_.default
        if func is torch.ops.aten._foreach_copy_.default and self.copies == self.number:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_while_the_weights_are_saved_or_restored_leaves_them_as_they_were(number: int) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    before, closure = weights_of(model), closure_for(model, a_batch(0))
    with pytest.raises(KeyboardInterrupt), Interrupting(number):
        optimizer.step(closure)
    assert same(weights_of(model), before)
    assert not optimizer.is_perturbed
    optimizer.step(closure)
    assert optimizer.t == 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_base_optimizer_that_raises_has_made_no_step(fused: bool) -> None:
    class Failing(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            raise MemoryError

    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), Failing, rho=0.2, lr=0.1, fused=fused)
    before = weights_of(model)
    with pytest.raises(MemoryError):
        optimizer.step(closure_for(model, a_batch(0)))
    assert (optimizer.t, int(optimizer.skipped_steps)) == (0, 0)
    assert same(weights_of(model), before)


# Steps that something else takes.


@pytest.mark.parametrize("lam", ["1/t", "1-1/t"])
def test_schedules_go_on_from_steps_that_something_else_took(lam: str) -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.2, lam=lam, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    optimizer.count_steps(9, skipped=2)
    scheduler.step()  # torch would warn that no step of the optimizer came before
    assert (optimizer.t, int(optimizer.skipped_steps)) == (9, 2)
    value = {"1/t": 1 / 10, "1-1/t": 1 - 1 / 10}[lam]
    other = UnifiedSAM(theirs.parameters(), torch.optim.SGD, rho=0.2, lam=value, lr=0.1)
    optimizer.step(closure_for(ours, a_batch(0)))
    other.step(closure_for(theirs, a_batch(0)))
    assert same(weights_of(ours), weights_of(theirs))


@pytest.mark.parametrize(
    ("steps", "skipped", "said"),
    [
        (-1, 0, "steps must be an integer of at least 0, got -1"),
        (1.5, 0, "steps must be an integer of at least 0, got 1.5"),
        (True, 0, "steps must be an integer of at least 0, got True"),
        (2, -1, "skipped must be an integer of at least 0, got -1"),
        (2, 0.5, "skipped must be an integer of at least 0, got 0.5"),
        (2, 3, "skipped must be at most steps, 2, got 3"),
    ],
)
def test_numbers_of_steps_that_cannot_be_are_refused(steps: Any, skipped: Any, said: str) -> None:
    optimizer = UnifiedSAM(a_model().parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=said):
        optimizer.count_steps(steps, skipped=skipped)
    assert (optimizer.t, int(optimizer.skipped_steps)) == (0, 0)


def test_no_steps_are_counted_at_an_ascent_point() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, lr=0.1)
    closure_for(model, a_batch(0))()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="between first_step"):
        optimizer.count_steps(1, skipped=0)
    optimizer.abandon_step()
