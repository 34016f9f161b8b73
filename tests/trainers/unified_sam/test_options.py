"""The options of Unified SAM against the formulas written out: schedules, ASAM, limits, micro-batches."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainers.unified_sam.reference import (
    Batch,
    Group,
    Reference,
    a_batch,
    a_model,
    assert_close,
    closure_for,
    constant,
    same,
    train,
    weights_of,
)
from trainers.schedules import Schedule
from trainers.unified_sam import UnifiedSAM

pytestmark = pytest.mark.usefixtures("numbers")

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.5])
def test_the_adaptive_ascent_agrees_with_the_formula_written_out(lam: float, eta: float) -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.4, lam=lam, adaptive=True, eta=eta, **SGD)
    reference = Reference(theirs, [Group([0, 1, 2, 3], constant(0.4), constant(lam), eta)], **SGD)
    for number in range(10):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
    assert_close(ours, theirs)


def test_adaptive_and_plain_groups_go_together_under_one_norm_and_one_limit() -> None:
    ours, theirs = a_model(), a_model()
    params = list(ours.parameters())
    groups = [
        {"params": [params[0], params[2]], "adaptive": True, "eta": 0.1},
        {"params": [params[1], params[3]], "lam": 0.25, "rho": 0.7},
    ]
    optimizer = UnifiedSAM(groups, torch.optim.SGD, rho=0.4, max_perturbation=0.35, **SGD)
    reference = Reference(
        theirs,
        [Group([0, 2], constant(0.4), constant(1.0), 0.1), Group([1, 3], constant(0.7), constant(0.25))],
        max_perturbation=0.35,
        **SGD,
    )
    for number in range(10):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
    assert_close(ours, theirs)


def test_adaptive_sharpness_does_not_see_how_two_layers_share_their_scale() -> None:
    """Kwon et al. 2021, section 3: T makes the ascent invariant under rescalings that leave the function as it is."""
    for factor in (1.0, 7.0):
        first, second = nn.Linear(5, 7, bias=False).double(), nn.Linear(7, 3, bias=False).double()
        generator = torch.Generator().manual_seed(0)
        for layer, scale in ((first, factor), (second, 1 / factor)):
            layer.weight.data = scale * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        model = nn.Sequential(first, second)
        closure = closure_for(model, a_batch(0))
        optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.3, adaptive=True, eta=0.0, lr=0.1)
        closure()
        optimizer.first_step()
        loss = float(closure().detach())
        assert float(optimizer.last_perturbation_norm) == pytest.approx(0.3)
        if factor == 1.0:
            expected = loss
    assert loss == pytest.approx(expected, rel=1e-12)


def test_the_norm_of_an_adaptive_ascent_is_its_radius_and_the_gradient_s_stays_its_own() -> None:
    model = a_model()
    before = weights_of(model)
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.3, lam=0.5, adaptive=True, eta=0.1, lr=0.1)
    closure_for(model, a_batch(0))()
    gradients = [param.grad.clone() for param in model.parameters() if param.grad is not None]
    optimizer.first_step()
    moved = [(now - was) / (was.abs() + 0.1) for now, was in zip(weights_of(model), before, strict=True)]
    assert float(optimizer.last_perturbation_norm) == pytest.approx(norm_of(moved), rel=1e-9)
    assert float(optimizer.last_grad_norm) == pytest.approx(norm_of(gradients), rel=1e-12)


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors))


@pytest.mark.parametrize("limit", [0.05, 1e3])
def test_a_limit_shortens_longer_ascents_to_its_radius_and_leaves_others_alone(limit: float) -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.4, lam=0.0, max_perturbation=limit, **SGD)
    reference = Reference(theirs, [Group([0, 1, 2, 3], constant(0.4), constant(0.0))], max_perturbation=limit, **SGD)
    for number in range(10):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
        radius = 0.4 * float(optimizer.last_grad_norm)
        assert float(optimizer.last_perturbation_norm) == pytest.approx(min(limit, radius), rel=1e-9)
    assert_close(ours, theirs)


@pytest.mark.parametrize("rho", [0.0, 0.4])
@pytest.mark.parametrize("fused", [False, True])
def test_clipping_shortens_the_gradient_of_the_descent_and_not_that_of_the_ascent(fused: bool, rho: float) -> None:
    ours, theirs = a_model(), a_model()
    build = {"rho": rho, "lam": 0.0, "clip_norm": 0.2, "fused": fused}
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, **build, **SGD)
    reference = Reference(theirs, [Group([0, 1, 2, 3], constant(rho), constant(0.0))], clip_norm=0.2, **SGD)
    for number in range(10):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
        assert float(optimizer.last_grad_norm) > 0.2
        assert float(optimizer.last_perturbation_norm) == pytest.approx(rho * float(optimizer.last_grad_norm))
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["max_perturbation", "clip_norm"])
@pytest.mark.parametrize("limit", [0, -1.0, math.nan, math.inf, "none", True])
def test_a_limit_is_none_or_a_finite_number_above_zero(name: str, limit: object) -> None:
    model = a_model()
    message = f"{name} must be None or a finite number above 0, got {limit!r}"
    arguments: dict[str, Any] = {name: limit}
    with pytest.raises(ValueError, match=message):
        UnifiedSAM(model.parameters(), torch.optim.SGD, lr=0.1, **arguments)
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, lr=0.1)
    before = weights_of(model)
    setattr(optimizer, name, limit)
    with pytest.raises(ValueError, match=message):
        train(optimizer, model, range(1))
    assert same(weights_of(model), before)


@pytest.mark.parametrize(
    ("rho", "lam", "rho_at", "lam_at"),
    [
        (
            Schedule("linear", 0.1, 0.5, total_steps=11),
            Schedule("cosine", 1.0, 0.0, total_steps=11),
            lambda t: 0.1 + 0.04 * (t - 1),
            lambda t: (1 + math.cos(math.pi * (t - 1) / 10)) / 2,
        ),
        (
            Schedule("constant", 0.3, warmup_steps=4),
            Schedule("1-1/t", steps_per_t=3),
            lambda t: 0.3 * min(1, t / 4),
            lambda t: 1 - 1 / (1 + (t - 1) // 3),
        ),
        (
            Schedule("decreasing", 0.3),
            Schedule("1/t", 0.5),
            lambda t: min(0.3, 1 / (2 * (t - 1) + 1)),
            lambda t: 0.5 / t,
        ),
    ],
)
def test_rho_and_lambda_follow_their_schedules(
    rho: Schedule, lam: Schedule, rho_at: Callable[[int], float], lam_at: Callable[[int], float]
) -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=rho, lam=lam, **SGD)
    reference = Reference(theirs, [Group([0, 1, 2, 3], rho_at, lam_at)], **SGD)
    for number in range(11):
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
    assert_close(ours, theirs)


def test_settings_changed_between_steps_hold_from_the_next_step_on() -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.1, lam=1.0, **SGD)
    group = Group([0, 1, 2, 3], constant(0.1), constant(1.0))
    reference = Reference(theirs, [group], **SGD)
    for number in range(12):
        if number == 3:
            optimizer.param_groups[0]["rho"] = 0.5
            group.rho = constant(0.5)
        if number == 6:
            optimizer.param_groups[0]["lam"] = "1/t"
            group.lam = lambda t: 1 / t
        if number == 9:
            optimizer.param_groups[0].update(adaptive=True, eta=0.2)
            optimizer.max_perturbation = reference.max_perturbation = 0.3
            optimizer.clip_norm = reference.clip_norm = 0.1
            group.eta = 0.2
        optimizer.step(closure_for(ours, a_batch(number)))
        reference.step(a_batch(number))
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("rho", value) for value in (-0.1, math.nan, "1/t", None)],
        *[("lam", value) for value in (1.5, "t", Schedule("linear", 0.5, 1.5, total_steps=3))],
        *[("adaptive", value) for value in (1, "no", None)],
        *[("eta", value) for value in (-1.0, math.inf, "0")],
    ],
)
def test_a_setting_out_of_range_is_refused_whenever_it_comes(name: str, value: object) -> None:
    model = a_model()
    message = f"{name} must be"
    with pytest.raises(ValueError, match=message) as caught:
        UnifiedSAM([{"params": list(model.parameters()), name: value}], torch.optim.SGD, lr=0.1)
    assert str(caught.value).endswith(f"got {value!r}")
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, lr=0.1)
    before = weights_of(model)
    optimizer.param_groups[0][name] = value
    for step in (optimizer.first_step, lambda: train(optimizer, model, range(1))):
        with pytest.raises(ValueError, match=message):
            step()
        assert same(weights_of(model), before)
        assert not optimizer.is_perturbed


SHARES = (0.5, 0.3, 0.2)


def micro_batches(number: int) -> list[Batch]:
    return [a_batch(10 * number + part, size) for part, size in enumerate((5, 3, 2))]


@pytest.mark.parametrize("options", [{}, {"eta": 0.1, "max_perturbation": 0.2, "clip_norm": 0.3}])
def test_micro_batches_agree_with_the_formula_written_out(options: dict[str, float]) -> None:
    ours, theirs = a_model(), a_model()
    limits = {name: value for name, value in options.items() if name != "eta"}
    optimizer = UnifiedSAM(
        ours.parameters(), torch.optim.SGD, rho=0.3, lam=0.5, adaptive="eta" in options, **SGD, **options
    )
    group = Group([0, 1, 2, 3], constant(0.3), constant(0.5), options.get("eta"))
    reference = Reference(theirs, [group], **SGD, **limits)
    for number in range(6):
        optimizer.step_micro_batches([closure_for(ours, batch) for batch in micro_batches(number)], SHARES)
        reference.step(*micro_batches(number), shares=SHARES)
    assert optimizer.t == 6
    assert_close(ours, theirs)


def test_one_micro_batch_is_a_step_bit_for_bit() -> None:
    ours, theirs = a_model(), a_model()
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, rho=0.3, lam=0.5, **SGD) for m in (ours, theirs))
    for number in range(5):
        loss = one.step_micro_batches([closure_for(ours, a_batch(number))], [1.0])
        assert torch.equal(loss, other.step(closure_for(theirs, a_batch(number))))
        assert torch.equal(one.last_grad_norm, other.last_grad_norm)
    assert same(weights_of(ours), weights_of(theirs))


def test_micro_batches_report_the_mean_of_their_losses_and_norms() -> None:
    model = a_model()
    losses, norms = [], []
    for batch in micro_batches(0):
        model.zero_grad()
        losses.append(float(closure_for(model, batch)().detach()))
        norms.append(norm_of([param.grad for param in model.parameters() if param.grad is not None]))
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.3, lam=0.5, lr=0.1)
    loss = optimizer.step_micro_batches([closure_for(model, batch) for batch in micro_batches(0)], SHARES)
    assert float(loss) == pytest.approx(dot(losses))
    assert float(optimizer.last_grad_norm) == pytest.approx(dot(norms))
    assert float(optimizer.last_perturbation_norm) == pytest.approx(0.3 * (0.5 * dot(norms) + 0.5))


def dot(values: list[float]) -> float:
    return sum(share * value for share, value in zip(SHARES, values, strict=True))


def test_micro_batches_without_an_ascent_are_gradient_accumulation() -> None:
    ours, theirs = a_model(), a_model()
    optimizer = UnifiedSAM(ours.parameters(), torch.optim.SGD, rho=0.0, **SGD)
    whole = UnifiedSAM(theirs.parameters(), torch.optim.SGD, rho=0.0, **SGD)
    calls = 0

    def counted(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            nonlocal calls
            calls += 1
            return closure()

        return call

    for number in range(3):
        parts = micro_batches(number)
        optimizer.step_micro_batches([counted(closure_for(ours, batch)) for batch in parts], SHARES)
        union = torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])
        whole.step(closure_for(theirs, union))
    assert calls == 9
    assert_close(ours, theirs)


def test_a_closure_may_accumulate_the_gradient_of_its_batch_in_parts() -> None:
    ours, theirs = a_model(), a_model()
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, rho=0.3, lam=0.5, **SGD) for m in (ours, theirs))
    for number in range(5):
        parts = micro_batches(number)

        def in_parts(parts: list[Batch] = parts) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for share, (inputs, targets) in zip(SHARES, parts, strict=True):
                loss = share * nn.functional.cross_entropy(ours(inputs), targets)
                loss.backward()
                total += loss.detach()
            return total

        union = torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])
        torch.testing.assert_close(one.step(in_parts), other.step(closure_for(theirs, union)).detach())
    assert_close(ours, theirs)


def test_a_parameter_that_one_micro_batch_does_not_use_has_gradient_zero_there() -> None:
    used, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = UnifiedSAM([used, other], torch.optim.SGD, rho=0.3, lam=0.5, lr=0.1)

    def first() -> Tensor:
        loss = used.sum()
        loss.backward()
        return loss

    def second() -> Tensor:
        loss = (used + other).sum()
        loss.backward()
        return loss

    optimizer.step_micro_batches([first, second], [0.25, 0.75])
    assert used.tolist() == pytest.approx([0.9, 0.9])
    assert other.tolist() == pytest.approx([0.925, 0.925])


@pytest.mark.parametrize("bad_call", [1, 2, 3, 4])
def test_a_gradient_that_is_not_finite_in_any_micro_batch_skips_the_whole_step(bad_call: int) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, **SGD)
    train(optimizer, model, range(2))
    before, calls = weights_of(model), 0

    def spoilt() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure_for(model, a_batch(1))()
        if calls == bad_call:
            next(model.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
        return loss

    optimizer.step_micro_batches([spoilt, spoilt], [0.5, 0.5])
    assert calls == 4
    assert same(weights_of(model), before)
    assert int(optimizer.skipped_steps) == 1


@pytest.mark.parametrize("bad_call", [1, 2, 3, 4])
def test_a_micro_batch_that_raises_leaves_the_weights_as_they_were(bad_call: int) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, **SGD)
    train(optimizer, model, range(2))
    before, calls = weights_of(model), 0

    def breaking() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == bad_call:
            raise MemoryError
        return closure_for(model, a_batch(1))()

    with pytest.raises(MemoryError):
        optimizer.step_micro_batches([breaking, breaking], [0.5, 0.5])
    assert same(weights_of(model), before)
    assert not optimizer.is_perturbed
    assert optimizer.t == 2


@pytest.mark.parametrize("shares", [[], [1.0], [0.5, 0.6], [1.5, -0.5], [0.5, math.nan], [0.25, 0.25, 0.5]])
def test_shares_are_one_a_micro_batch_and_sum_to_one(shares: list[float]) -> None:
    model = a_model()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, lr=0.1)
    closure = closure_for(model, a_batch(0))
    with pytest.raises(ValueError, match="shares"):
        optimizer.step_micro_batches([closure, closure], shares)
    with pytest.raises(ValueError, match="at least one"):
        optimizer.step_micro_batches([], [])


def test_shares_may_be_numpys() -> None:
    models = a_model(), a_model()
    one, other = (UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1) for model in models)
    for optimizer, model, shares in ((one, models[0], [0.5, 0.5]), (other, models[1], np.array([0.5, 0.5], "float32"))):
        optimizer.step_micro_batches([closure_for(model, a_batch(number)) for number in range(2)], shares)
    assert same(weights_of(models[0]), weights_of(models[1]))
    assert torch.equal(one.last_grad_norm, other.last_grad_norm)


def test_running_statistics_move_once_a_micro_batch_from_its_first_pass() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.2, lam=0.5, lr=0.1)
    twin = nn.BatchNorm1d(5).double()
    for batch in micro_batches(0):
        twin(batch[0])
    optimizer.step_micro_batches([closure_for(model, batch) for batch in micro_batches(0)], SHARES, model=model)
    assert torch.equal(model[0].running_mean, twin.running_mean)
    assert int(model[0].num_batches_tracked) == 3
