"""Steps that a gradient without a norm skips, and what asking for it costs."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.unified_sam.reference import (
    HostReads,
    a_batch,
    a_model,
    assert_close,
    closure_for,
    in_two_groups,
    same,
    train,
    weights_of,
)
from trainers.schedules import Schedule
from trainers.unified_sam import UnifiedSAM
from trainers.unified_sam.ascent import _zero_unless

pytestmark = pytest.mark.usefixtures("numbers")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("bad_value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_the_step(bad_pass: int, bad_value: float, fused: bool) -> None:
    model, twin = a_model(), a_model()
    build = {"rho": 0.2, "lam": 0.5, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "fused": fused}
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, **build)
    other = UnifiedSAM(twin.parameters(), torch.optim.SGD, **build)
    passes = 0

    def spoilt() -> Tensor:
        nonlocal passes
        passes += 1
        loss = closure_for(model, a_batch(1))()
        if passes == bad_pass:
            next(model.parameters()).grad.view(-1)[0] = bad_value  # type: ignore[union-attr]
        return loss

    for number in (0, 2):
        optimizer.step(closure_for(model, a_batch(number)))
        other.step(closure_for(twin, a_batch(number)))
        if number == 0:
            before = weights_of(model)
            optimizer.step(spoilt)
            assert passes == 2
            assert same(weights_of(model), before)
            assert (float(optimizer.last_perturbation_norm) == 0) == (bad_pass == 1)
    assert int(optimizer.skipped_steps) == 1
    assert int(other.skipped_steps) == 0
    assert optimizer.t == 3
    assert same(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("fused", [False, True])
def test_a_first_step_that_is_skipped_leaves_no_momentum(fused: bool) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=0.5, lr=0.1, momentum=0.9, fused=fused)
    weight.grad = torch.full((3,), math.nan)
    optimizer.first_step()
    weight.grad = torch.ones(3)
    optimizer.second_step()
    assert weight.tolist() == [1, 1, 1]
    assert int(optimizer.skipped_steps) == 1
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_reads_nothing_back_from_a_device_with_a_fused_base_and_one_flag_with_another(
    fused: bool, numbers: str
) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.1, lam=0.5, lr=0.1, momentum=0.9, fused=fused)
    optimizer.step(closure_for(model, a_batch(0)))
    closure = closure_for(model, a_batch(1))
    with HostReads() as reads:
        optimizer.step(closure)
    assert reads.count == (0 if fused else flags_read(numbers))


def flags_read(numbers: str) -> int:
    """How often a step waits for a device with kernels that cannot be told to skip."""
    return 1 if numbers == "tensors" else 0


def test_a_fused_base_that_keeps_no_state_reads_nothing_back_either() -> None:
    model, twin = a_model(), a_model()
    build = {"rho": 0.1, "lam": 0.5, "lr": 0.1, "momentum": 0.0}
    fused = UnifiedSAM(model.parameters(), torch.optim.SGD, fused=True, **build)
    plain = UnifiedSAM(twin.parameters(), torch.optim.SGD, **build)
    with HostReads() as reads:
        for number in range(3):
            fused.step(closure_for(model, a_batch(number)))
    assert reads.count == 0
    for number in range(3):
        plain.step(closure_for(twin, a_batch(number)))
    assert_close(model, twin)
    before = weights_of(model)
    for param in model.parameters():
        param.grad = torch.full_like(param, math.nan)
    fused.first_step()
    closure_for(model, a_batch(3))()
    fused.second_step()
    assert same(weights_of(model), before)
    assert int(fused.skipped_steps) == 1


def test_momentum_that_is_turned_on_later_starts_from_a_whole_step() -> None:
    model, twin = a_model(), a_model()
    for net, fused in ((model, True), (twin, False)):
        optimizer = UnifiedSAM(net.parameters(), torch.optim.SGD, rho=0.1, lam=0.5, lr=0.1, fused=fused)
        for number in range(4):
            optimizer.param_groups[0]["momentum"] = 0.9 if number >= 1 else 0.0
            optimizer.step(closure_for(net, a_batch(number)))
    assert_close(model, twin)


@pytest.mark.parametrize("fused", [True, False])
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
def test_no_option_adds_to_what_a_step_reads_back_from_a_device(
    options: dict[str, Any], micro_batches: int, fused: bool, numbers: str
) -> None:
    model = a_model()
    optimizer = in_two_groups(model, lr=0.1, momentum=0.9, fused=fused, **options)
    optimizer.param_groups[1]["rho"] = 0.3
    optimizer.step(closure_for(model, a_batch(0)))
    closures = [closure_for(model, a_batch(number)) for number in range(micro_batches)]
    with HostReads() as reads:
        optimizer.step_micro_batches(closures, [1 / micro_batches] * micro_batches, model=model)
    assert reads.count == (0 if fused else flags_read(numbers))


def not_a_number(model: nn.Module, optimizer: UnifiedSAM) -> None:
    """A step whose first gradient is not a number, by hand."""
    for param in model.parameters():
        param.grad = torch.full_like(param, math.nan)
    optimizer.first_step()
    closure_for(model, a_batch(9))()
    optimizer.second_step()


FUSED_BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("kernel", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("name", FUSED_BASES)
def test_a_fused_base_goes_on_from_the_state_of_one_that_is_not(name: str, kernel: dict[str, bool]) -> None:
    base, settings = FUSED_BASES[name]
    model, twin = a_model(), a_model()
    plain = UnifiedSAM(model.parameters(), base, rho=0.1, lr=0.1, **settings, **kernel)
    train(plain, model, range(2))
    fused = UnifiedSAM(twin.parameters(), base, rho=0.1, lr=0.1, fused=True, **settings)
    twin.load_state_dict(model.state_dict())
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    train(plain, model, range(2, 4))
    train(fused, twin, range(2, 4))
    assert same(weights_of(model), weights_of(twin))
    not_a_number(twin, fused)
    assert same(weights_of(model), weights_of(twin))
    assert int(fused.skipped_steps) == 1


@pytest.mark.parametrize("other", [{"fused": False}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("name", FUSED_BASES)
def test_a_base_that_is_fused_in_one_group_only_steps_and_skips_in_both(name: str, other: dict[str, bool]) -> None:
    base, settings = FUSED_BASES[name]
    models = a_model(), a_model()
    for model, kernels in zip(models, (({}, other), ({"fused": False}, {"fused": False})), strict=True):
        groups = [
            {"params": list(layer.parameters()), **kernel}
            for layer, kernel in zip((model[0], model[2]), kernels, strict=True)
        ]
        optimizer = UnifiedSAM(groups, base, rho=0.1, lr=0.1, fused=True, **settings)
        train(optimizer, model, range(3))
        not_a_number(model, optimizer)
        train(optimizer, model, range(3, 5))
        assert (optimizer.t, int(optimizer.skipped_steps)) == (6, 1)
    assert_close(*models)


def kernels_of(optimizer: UnifiedSAM) -> list[bool | None]:
    return [group["fused"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", FUSED_BASES)
def test_on_a_device_a_base_is_fused_by_default_and_reads_nothing_back(name: str, numbers: str) -> None:
    base, settings = FUSED_BASES[name]
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), base, rho=0.1, lr=0.1, **settings)
    assert kernels_of(optimizer) == [True if numbers == "tensors" else None]
    train(optimizer, model, range(1))
    with HostReads() as reads:
        train(optimizer, model, range(1, 3))
    assert reads.count == 0 or numbers == "floats"
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(set(kernels_of(optimizer))) == 1


@pytest.mark.parametrize("kernel", [{"foreach": False}, {"foreach": True}, {"fused": False}], ids=str)
@pytest.mark.parametrize("name", FUSED_BASES)
def test_a_kernel_that_is_asked_for_is_taken(name: str, kernel: dict[str, bool]) -> None:
    base, _ = FUSED_BASES[name]
    model = a_model()
    by_arguments = UnifiedSAM(model.parameters(), base, lr=0.1, **kernel)
    groups = [{"params": list(model[0].parameters()), **kernel}, {"params": list(model[2].parameters())}]
    by_group = UnifiedSAM(groups, base, lr=0.1)
    for optimizer in (by_arguments, by_group):
        assert True not in kernels_of(optimizer)
        assert all(optimizer.param_groups[0][name] is value for name, value in kernel.items())


def test_nothing_else_is_fused_by_default() -> None:
    """Other optimizers, classes and functions around one, steps that are to be differentiated, devices without."""
    weight = [nn.Parameter(torch.ones(2))]

    class Derived(torch.optim.SGD):
        """It may step otherwise."""

    for base in (Derived, lambda params, **settings: torch.optim.SGD(params, **settings)):
        assert kernels_of(UnifiedSAM(weight, base, lr=0.1)) == [None]
    assert kernels_of(UnifiedSAM(weight, torch.optim.SGD, lr=0.1, differentiable=True)) == [None]
    assert "fused" not in UnifiedSAM(weight, torch.optim.RMSprop, lr=0.1).param_groups[0]
    elsewhere = [nn.Parameter(torch.ones(2, device="meta"))]
    assert kernels_of(UnifiedSAM(elsewhere, torch.optim.SGD, lr=0.1)) == [None]


def test_a_class_of_one_s_own_is_asked_to_skip_by_not_being_called() -> None:
    class Careless(torch.optim.SGD):
        """It was built with fused=True, and heeds no flag."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for param in group["params"]:
                    param.sub_(0.1)

    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), Careless, rho=0.1, lr=0.1, fused=True)
    before = weights_of(model)
    not_a_number(model, optimizer)
    assert same(weights_of(model), before)


def by_pickle(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_state_dict(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    """Into an optimizer that was not built with fused kernels."""
    base, twin = type(optimizer.base), copy.deepcopy(model)
    other = UnifiedSAM(twin.parameters(), base, lr=9.0)
    other.load_state_dict(optimizer.state_dict())
    return twin, other


@pytest.mark.parametrize("carry", [by_state_dict, lambda *pair: copy.deepcopy(pair), by_pickle])
@pytest.mark.parametrize("name", FUSED_BASES)
def test_a_fused_base_reads_nothing_back_however_it_was_carried(
    name: str, carry: Callable[[nn.Module, UnifiedSAM], tuple[nn.Module, UnifiedSAM]]
) -> None:
    base, settings = FUSED_BASES[name]
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), base, rho=0.1, lr=0.1, fused=True, **settings)
    train(optimizer, model, range(2))
    model, optimizer = carry(model, optimizer)
    with HostReads() as reads:
        train(optimizer, model, range(2, 4))
    assert reads.count == 0
    before = weights_of(model)
    not_a_number(model, optimizer)
    assert same(weights_of(model), before)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_where_the_first_steps_are_skipped_on_the_device_the_next_one_is_a_first_step(name: str) -> None:
    model, twin = a_model(), a_model()
    for net, skips in ((model, 2), (twin, 0)):
        optimizer = UnifiedSAM(net.parameters(), FUSED_BASES[name][0], rho=0.1, lr=0.1, fused=True)
        with HostReads() as reads:
            for _ in range(skips):
                not_a_number(net, optimizer)
            train(optimizer, net, range(3))
        assert reads.count == 0
    assert same(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("buffer", [{}, {"momentum_buffer": None}])
def test_a_look_at_the_state_does_not_count_as_momentum(buffer: dict[str, None]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, fused=True)
    optimizer.state[weight].update(buffer)
    weight.grad = torch.full((3,), math.nan)
    optimizer.first_step()
    weight.grad = torch.ones(3)
    optimizer.second_step()
    assert weight.tolist() == [1, 1, 1]
    assert optimizer.state[weight] == buffer


@pytest.mark.parametrize("options", [{}, {"dampening": 0.5}, {"nesterov": True}], ids=str)
@pytest.mark.parametrize("skipped_at", [None, 2, 3])
def test_a_parameter_of_fused_sgd_may_have_its_first_gradient_late(
    options: dict[str, Any], skipped_at: int | None, numbers: str
) -> None:
    outcomes = []
    for fused in (True, False):
        used, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        optimizer = UnifiedSAM([used, late], torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, fused=fused, **options)
        for number in range(5):

            def closure(used: Tensor = used, late: Tensor = late, number: int = number) -> Tensor:
                loss = used.square().sum() + (late.square().sum() if number >= 2 else 0)
                (loss * (math.nan if number == skipped_at else 1)).backward()
                return loss

            with HostReads() as reads:
                optimizer.step(closure)
        assert (optimizer.param_groups[0]["fused"], reads.count) == (fused, 0 if fused else flags_read(numbers))
        outcomes.append([used.detach(), late.detach()])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)
        assert float(one[0]) < 0.9


@pytest.mark.parametrize(
    "options", [{}, {"adaptive": True, "eta": 0.0}, {"lam": 0.0, "max_perturbation": 0.1}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad_value", [math.nan, math.inf, -math.inf])
def test_after_a_first_gradient_that_is_not_finite_the_second_pass_runs_at_the_weights(
    bad_value: float, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    first, second = nn.Parameter(torch.arange(6.0).to(dtype)), nn.Parameter(torch.ones(2, 3, dtype=dtype))
    groups = [{"params": [first], "rho": 0.3}, {"params": [second]}]
    optimizer = UnifiedSAM(groups, torch.optim.SGD, rho=0.1, lr=0.1, **options)
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        assert first.tolist() == [0, 1, 2, 3, 4, 5]
        assert second.tolist() == [[1, 1, 1]] * 2
        loss = first.sum() + second.sum()
        loss.backward()
        if passes == 1:
            first.grad[0] = bad_value  # type: ignore[index]
        return loss

    with HostReads() as reads:
        optimizer.first_step()  # without gradients, after which nothing is left to read
        optimizer.abandon_step()
    assert reads.count == 0
    optimizer.step(closure)
    assert passes == 2
    assert first.tolist() == [0, 1, 2, 3, 4, 5]
    assert int(optimizer.skipped_steps) == 1
    assert not math.isfinite(float(optimizer.last_grad_norm))
    assert float(optimizer.last_perturbation_norm) == 0


def test_a_group_with_radius_zero_is_not_touched_even_where_its_gradient_is_infinite() -> None:
    still, moved = nn.Parameter(torch.tensor([-0.0, 1.0])), nn.Parameter(torch.ones(2))
    optimizer = UnifiedSAM([{"params": [still], "rho": 0.0}, {"params": [moved]}], torch.optim.SGD, rho=0.1, lr=0.1)
    for gradient in (1.0, math.inf):
        still.grad, moved.grad = torch.full((2,), gradient), torch.ones(2)
        optimizer.first_step()
        assert still.tolist() == [0, 1]
        assert math.copysign(1, float(still.detach()[0])) == -1  # -0.0 + 0 · g would be 0.0
        assert (moved.tolist() == [1, 1]) == (gradient == math.inf)
        optimizer.abandon_step()


def test_a_group_without_gradients_brings_nothing_from_another_device() -> None:
    used, unused = (nn.Parameter(torch.ones(2, device="meta")) for _ in range(2))
    groups = [{"params": [used], "rho": 0.3}, {"params": [unused]}]
    optimizer = UnifiedSAM(groups, torch.optim.SGD, rho=0.1, lr=0.1, max_perturbation=1.0)
    for gradient in (torch.ones(2, device="meta"), None):
        used.grad = gradient
        with HostReads() as reads:
            optimizer.first_step()
            optimizer.abandon_step()
        assert reads.count == 0
        assert optimizer.last_grad_norm.device.type == "meta"


def test_a_step_without_any_gradient_changes_nothing_but_the_count() -> None:
    model = a_model()
    optimizer = in_two_groups(model, rho=0.1, lr=0.1, momentum=0.9, clip_norm=1.0)
    before = weights_of(model)
    optimizer.step(lambda: torch.zeros(()))
    assert same(weights_of(model), before)
    assert (optimizer.t, int(optimizer.skipped_steps), float(optimizer.last_grad_norm)) == (1, 0, 0)


def test_host_reads_are_seen() -> None:
    value = torch.ones(())
    with HostReads() as reads:
        float(value)
        bool(value)
        value.tolist()
    assert reads.count >= 2
    with HostReads() as moves:
        value.to("meta")
        torch.empty((), device="meta").copy_(value)
    assert moves.count == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_zeroed_on_a_device_by_the_flag_alone(dtype: torch.dtype) -> None:
    """What the ascent does where a look at the flag would make the host wait."""
    for flag in (True, False):
        gradients = [torch.tensor([1.5, -2.0, math.inf, math.nan], dtype=dtype), torch.ones(2, 3, dtype=dtype).T]
        before = [gradient.clone() for gradient in gradients]
        _zero_unless(torch.tensor(flag), gradients)
        for gradient, old in zip(gradients, before, strict=True):
            torch.testing.assert_close(gradient, old if flag else torch.zeros_like(old), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("bad_pass", [1, 2])
def test_a_skipped_step_leaves_the_running_statistics(bad_pass: int, micro_batches: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, lr=0.1)
    inputs = torch.randn(8, 3)
    passes = 0

    def closure(bad: bool = False) -> Tensor:
        nonlocal passes
        passes += 1
        loss = model(inputs * (math.inf if bad and passes == bad_pass else 1)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure, model=model)
    before, passes = copy.deepcopy(model.state_dict()), 0
    shares = [1 / micro_batches] * micro_batches
    optimizer.step_micro_batches([lambda: closure(bad=True)] * micro_batches, shares, model=model)
    assert int(optimizer.skipped_steps) == 1
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    optimizer.step(closure, model=model)
    assert int(model[1].num_batches_tracked) == 2
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_where_the_norm_of_an_adaptive_ascent_overflows_the_step_is_skipped(numbers: str) -> None:
    """Though that of the gradient itself does not."""
    weight = nn.Parameter(torch.full((4,), 1e15))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, lr=1.0, rho=0.1, lam=1.0, adaptive=True)
    loss_scale = 1e10

    def closure() -> Tensor:
        loss = (weight * loss_scale).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert int(optimizer.skipped_steps) == 1
    assert weight.tolist() == [torch.tensor(1e15).item()] * 4
    assert not math.isfinite(float(optimizer.last_grad_norm))
    loss_scale = 1.0
    optimizer.step(closure)
    assert int(optimizer.skipped_steps) == 1
