import copy
import math
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.unified_sam.reference import (
    Closure,
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
from trainers.batchnorm import frozen_running_statistics
from trainers.unified_sam import UnifiedSAM
from trainers.unified_sam.ascent import ascent_scale


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
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.AdamW, rho=0.0, lam=0.5, lr=0.01)
    base = torch.optim.AdamW(theirs.parameters(), lr=0.01)
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


def test_the_norm_of_low_precision_gradients_is_taken_in_float32() -> None:
    weight = nn.Parameter(torch.zeros(2000, dtype=torch.float16))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    weight.grad = torch.full_like(weight, 300.0)  # squares overflow float16
    optimizer.first_step()
    assert optimizer.last_grad_norm.dtype == torch.float32
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


@pytest.mark.parametrize(("fused", "expected"), [(True, 0), (False, 1)])
def test_a_step_reads_nothing_back_to_the_host_with_a_fused_base_and_one_flag_with_another(
    fused: bool, expected: int
) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.1, lam=0.5, lr=0.1, momentum=0.9, fused=fused)
    optimizer.step(closure_for(model, a_batch(0)))
    closure = closure_for(model, a_batch(1))
    with HostReads() as reads:
        optimizer.step(closure)
    assert reads.count == expected


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


@pytest.mark.parametrize("rho", ["0.1", None, True, [0.1], 10**400])
def test_a_rho_that_is_no_finite_number_is_refused(rho: object) -> None:
    with pytest.raises(ValueError, match=r"rho must be a finite number of at least 0 or a Schedule, got ") as caught:
        UnifiedSAM([nn.Parameter(torch.ones(2))], torch.optim.SGD, rho=rho, lr=0.1)  # type: ignore[arg-type]
    assert str(caught.value).endswith(repr(rho))


@pytest.mark.parametrize("lam", ["0.5", None, True, False, [0.5]])
def test_a_lambda_that_is_neither_number_nor_schedule_is_refused(lam: object) -> None:
    with pytest.raises(
        ValueError, match=r"lam must be a number in \[0, 1\], '1/t', '1-1/t' or a Schedule within \[0, 1\], got "
    ) as caught:
        UnifiedSAM([nn.Parameter(torch.ones(2))], torch.optim.SGD, lam=lam, lr=0.1)  # type: ignore[arg-type]
    assert str(caught.value).endswith(repr(lam))


def test_rho_and_lambda_are_checked_at_construction_and_for_added_groups() -> None:
    weight = nn.Parameter(torch.ones(2))
    for rho in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"rho must be a finite number of at least 0 or a Schedule, got {rho}"):
            UnifiedSAM([weight], torch.optim.SGD, rho=rho, lam=1.0, lr=0.1)
    for lam in (-0.1, 1.5, math.nan, "t"):
        with pytest.raises(ValueError, match="lam must"):
            UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=lam, lr=0.1)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        UnifiedSAM([{"params": [weight], "lam": 1.5}], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.1, lam=1.0, lr=0.1)
    with pytest.raises(ValueError, match="got -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": -1})
    assert len(optimizer.param_groups) == 1


def test_an_added_group_is_trained_with_the_defaults() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = UnifiedSAM([first], torch.optim.SGD, rho=0.1, lam="1/t", lr=0.1, momentum=0.5)
    optimizer.add_param_group({"params": [second], "lr": 0.2})

    def closure() -> Tensor:
        loss = (first + second).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert first.tolist() == pytest.approx([0.9, 0.9])
    assert second.tolist() == pytest.approx([0.8, 0.8])
    assert optimizer.param_groups[1]["lam"] == "1/t"


def by_state_dict(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    twin = a_model(seed=5)
    twin.load_state_dict(model.state_dict())
    other = UnifiedSAM(twin.parameters(), torch.optim.SGD, rho=9.0, lam=0.0, lr=9.0, momentum=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin, other


def by_pickle(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_deepcopy(model: nn.Module, optimizer: UnifiedSAM) -> tuple[nn.Module, UnifiedSAM]:
    return copy.deepcopy((model, optimizer))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("carry", [by_state_dict, by_pickle, by_deepcopy])
@pytest.mark.parametrize("lam", ["1/t", "1-1/t"])
def test_a_resumed_run_continues_exactly(
    lam: str, carry: Callable[[nn.Module, UnifiedSAM], tuple[nn.Module, UnifiedSAM]], fused: bool
) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=lam, lr=0.1, momentum=0.9, fused=fused)
    for number in range(5):
        optimizer.step(closure_for(model, a_batch(number)))
    at_the_cut = weights_of(model)
    twin, resumed = carry(model, optimizer)
    for number in range(5, 10):
        optimizer.step(closure_for(model, a_batch(number)))
    assert same(weights_of(twin), at_the_cut)
    for number in range(5, 10):
        resumed.step(closure_for(twin, a_batch(number)))
    assert resumed.t == 10
    assert same(weights_of(model), weights_of(twin))
    assert not same(weights_of(model), at_the_cut)


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=1.0, lr=0.1)
    with pytest.raises(ValueError, match="not a state of UnifiedSAM"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


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
