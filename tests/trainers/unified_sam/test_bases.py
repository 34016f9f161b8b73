"""Unified SAM around every optimizer of torch, and under every learning-rate scheduler."""

import copy
import io
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.trainers.unified_sam.reference import (
    Group,
    HostReads,
    Reference,
    a_batch,
    a_model,
    assert_close,
    closure_for,
    constant,
    same,
    weights_of,
)
from trainers.unified_sam import UnifiedSAM

pytestmark = pytest.mark.usefixtures("numbers")

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd-nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "adam-amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.01}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.7}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "asgd": (torch.optim.ASGD, {"lr": 0.1, "t0": 2.0}),
    "rprop": (torch.optim.Rprop, {"lr": 0.01}),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.05}),
    "muon": (torch.optim.Muon, {"lr": 0.05}),
}
KERNELS = [
    *[(name, {}) for name in BASES],
    *[(name, {"foreach": False}) for name in BASES if name != "muon"],
    *[(name, {"foreach": True}) for name in BASES if name != "muon"],
    *[(name, {"fused": True}) for name in ("sgd", "sgd-nesterov", "adam", "adam-amsgrad", "adamw", "adagrad")],
]


def model_for(name: str) -> nn.Module:
    """Muon takes matrices only."""
    if name != "muon":
        return a_model()
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 3, bias=False)).double()


def around(name: str, model: nn.Module, **kernel: bool) -> UnifiedSAM:
    base, settings = BASES[name]
    renamed = {"base_rho" if key == "rho" else key: value for key, value in settings.items()}
    return UnifiedSAM(model.parameters(), base, rho=0.3, lam=0.5, **renamed, **kernel)


@pytest.mark.parametrize(("name", "kernel"), KERNELS, ids=str)
def test_any_base_optimizer_steps_from_the_old_weights_along_the_gradient_of_the_ascent_point(
    name: str, kernel: dict[str, bool]
) -> None:
    ours, theirs = model_for(name), model_for(name)
    optimizer = around(name, ours, **kernel)
    base, settings = BASES[name]
    bare = base(theirs.parameters(), **settings)
    reference = Reference(theirs, [Group(list(range(len(weights_of(theirs)))), constant(0.3), constant(0.5))])
    for number in range(6):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.t += 1
        second = reference.second_gradient(weights_of(theirs), a_batch(number))
        for param, gradient in zip(theirs.parameters(), second, strict=True):
            param.grad = gradient
        bare.step()
    for one, other in zip(weights_of(ours), weights_of(theirs), strict=True):
        # A tiny gradient moves a weight by its sign in Adam and Rprop; Muon works in bfloat16.
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7 if name != "muon" else 1e-2)


@pytest.mark.parametrize(("name", "kernel"), [(n, k) for n, k in KERNELS if k in ({}, {"fused": True})], ids=str)
def test_with_any_base_optimizer_a_resumed_run_continues_exactly_and_skips_where_it_must(
    name: str, kernel: dict[str, bool]
) -> None:
    model = model_for(name)
    optimizer = around(name, model, **kernel)
    for number in range(3):
        optimizer.step(closure_for(model, a_batch(number)))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    resumed = UnifiedSAM(twin.parameters(), BASES[name][0], rho=9.0, lr=9.0, **kernel)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(3, 6):
        optimizer.step(closure_for(model, a_batch(number)))
        resumed.step(closure_for(twin, a_batch(number)))
    assert same(weights_of(model), weights_of(twin))
    before, state = weights_of(model), copy.deepcopy(optimizer.state_dict())
    for param in model.parameters():
        param.grad = torch.full_like(param, math.nan)
    optimizer.first_step()
    closure_for(model, a_batch(6))()
    optimizer.second_step()
    assert same(weights_of(model), before)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sgd", "sgd-nesterov", "adam", "adamw", "adagrad"])
def test_fused_base_optimizers_read_nothing_back_to_the_host(name: str) -> None:
    model = a_model()
    optimizer = around(name, model, fused=True)
    optimizer.step(closure_for(model, a_batch(0)))
    with HostReads() as reads:
        optimizer.step(closure_for(model, a_batch(1)))
    assert reads.count == 0


def test_the_rho_of_adadelta_is_its_own() -> None:
    weight = nn.Parameter(torch.ones(2))
    for optimizer in (
        UnifiedSAM([weight], torch.optim.Adadelta, rho=0.2, base_rho=0.7),
        UnifiedSAM([weight], partial(torch.optim.Adadelta, rho=0.7), rho=0.2),
        UnifiedSAM([{"params": [weight], "base_rho": 0.7}], torch.optim.Adadelta, rho=0.2),
    ):
        assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["base_rho"]) == (0.2, 0.7)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.4, "base_rho": 0.6})
        assert (optimizer.param_groups[1]["rho"], optimizer.param_groups[1]["base_rho"]) == (0.4, 0.6)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="LBFGS evaluates the loss itself within a step"):
        UnifiedSAM([nn.Parameter(torch.ones(2))], torch.optim.LBFGS, rho=0.2, lr=0.1)


def test_an_optimizer_of_sparse_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients alone"):
        UnifiedSAM([nn.Parameter(torch.ones(2))], torch.optim.SparseAdam, rho=0.2, lr=0.1)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "multiplicative": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9),
    "step": lambda opt: lr_scheduler.StepLR(opt, 2),
    "multi-step": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 4]),
    "constant": lambda opt: lr_scheduler.ConstantLR(opt, total_iters=3),
    "linear": lambda opt: lr_scheduler.LinearLR(opt, total_iters=3),
    "exponential": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "polynomial": lambda opt: lr_scheduler.PolynomialLR(opt, 6),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 6),
    "warm-restarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "cyclic": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=2),
    "one-cycle": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=8),
    "chained": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, total_iters=2), lr_scheduler.ExponentialLR(opt, 0.9)], optimizer=opt
    ),
    "sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=2), lr_scheduler.CosineAnnealingLR(opt, 4)], [2]
    ),
    "plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "swa": lambda opt: torch.optim.swa_utils.SWALR(opt, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("way", ["step", "micro-batches", "by hand"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rate_schedulers_act_on_it_as_on_sgd_without_warnings(name: str, way: str) -> None:
    ours, theirs = a_model(), a_model()
    settings = {"lr": 0.1, "momentum": 0.9}
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, **settings)
    bare = torch.optim.SGD(theirs.parameters(), **settings)
    reference = Reference(theirs, [Group([0, 1, 2, 3], constant(0.2), constant(0.5))], weight_decay=0.0, **settings)
    scheduler, bare_scheduler = SCHEDULERS[name](optimizer), SCHEDULERS[name](bare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(6):
            closure = closure_for(ours, a_batch(number))
            if way == "step":
                optimizer.step(closure)
            elif way == "micro-batches":
                optimizer.step_micro_batches([closure], [1.0])
            else:
                optimizer.zero_grad()
                closure()
                optimizer.first_step()
                closure()
                optimizer.second_step()
            bare.step()
            reference.lr, reference.momentum = bare.param_groups[0]["lr"], bare.param_groups[0]["momentum"]
            reference.step(a_batch(number))
            arguments = (1.0,) if name == "plateau" else ()
            scheduler.step(*arguments)
            bare_scheduler.step(*arguments)
            assert optimizer.param_groups[0]["lr"] == bare.param_groups[0]["lr"]
    assert_close(ours, theirs)


def test_hooks_run_once_a_step_whichever_way_it_is_taken() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    closure = closure_for(model, a_batch(0))
    optimizer.step(closure)
    optimizer.step_micro_batches([closure, closure], [0.5, 0.5])
    closure()
    optimizer.first_step()
    assert calls == ["before", "after"] * 2
    optimizer.second_step()
    assert calls == ["before", "after"] * 3


@pytest.mark.parametrize(
    ("name", "kernel"), [(n, k) for n, k in KERNELS if k in ({}, {"fused": True}) and n != "muon"], ids=str
)
def test_the_state_of_a_scalar_parameter_goes_to_another_precision(name: str, kernel: dict[str, bool]) -> None:
    base, settings = BASES[name]
    options = {**{"base_rho" if key == "rho" else key: value for key, value in settings.items()}, "rho": 0.1}

    def stepped(optimizer: UnifiedSAM, *weights: nn.Parameter) -> None:
        def closure() -> torch.Tensor:
            loss = torch.stack([weight.square().sum() for weight in weights]).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    single = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(3))
    optimizer = UnifiedSAM(single, base, **options, **kernel)
    stepped(optimizer, *single)
    double = nn.Parameter(single[0].detach().double()), nn.Parameter(single[1].detach().double())
    other = UnifiedSAM(double, base, **options, **kernel)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key, value in other.state[double[0]].items():
        if isinstance(value, torch.Tensor):  # a counter keeps its precision, a moment takes the parameter's
            is_counter = other.state[double[1]][key].dim() == 0
            assert value.dtype == (optimizer.state[single[0]][key].dtype if is_counter else torch.float64)
    stepped(other, *double)
    stepped(optimizer, *single)
    for one, theirs in zip(single, double, strict=True):
        torch.testing.assert_close(one.double(), theirs, rtol=1e-5, atol=1e-6)
