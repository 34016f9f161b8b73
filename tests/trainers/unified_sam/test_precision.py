"""Unified SAM under autocast to bfloat16, and to float16 with a GradScaler."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from tests.trainers.unified_sam.reference import Batch, HostReads, a_batch, a_model, same, weights_of
from trainers.unified_sam import UnifiedSAM

pytestmark = pytest.mark.usefixtures("numbers")

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def single(number: int) -> Batch:
    inputs, targets = a_batch(number)
    return inputs.float(), targets


def scaled_closure(model: nn.Module, batch: Batch, scaler: GradScaler | None) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(batch[0]).float(), batch[1])
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def autocast_closure(
    model: nn.Module, batch: Batch, dtype: torch.dtype, scaler: GradScaler | None = None
) -> Callable[[], Tensor]:
    inner = scaled_closure(model, batch, scaler)

    def closure() -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return inner()

    return closure


def gradients_at(model: nn.Module, weights: list[Tensor], closure: Callable[[], Tensor]) -> list[Tensor]:
    """The closure's gradients at other weights, which the model does not keep."""
    own = weights_of(model)
    for param, weight in zip(model.parameters(), weights, strict=True):
        param.data, param.grad = weight.clone(), None
    closure()
    for param, weight in zip(model.parameters(), own, strict=True):
        param.data = weight
    return [param.grad for param in model.parameters() if param.grad is not None]


def test_a_step_under_autocast_to_bfloat16_ascends_and_descends_by_the_formula() -> None:
    model, twin = a_model().float(), a_model().float()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.5, lam=0.3, lr=0.1)
    for number in range(5):
        optimizer.step(autocast_closure(model, single(number), torch.bfloat16))
        closure = autocast_closure(twin, single(number), torch.bfloat16)
        weights = weights_of(twin)
        first = gradients_at(twin, weights, closure)
        norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in first))
        ascended = [w + 0.5 * (0.7 + 0.3 / norm) * g for w, g in zip(weights, first, strict=True)]
        second = gradients_at(twin, ascended, closure)
        for param, weight, gradient in zip(twin.parameters(), weights, second, strict=True):
            param.data = weight - 0.1 * gradient
        for one, other in zip(weights_of(model), weights_of(twin), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # a bfloat16 activation may round otherwise


def test_an_autocast_around_the_whole_step_sees_the_ascent() -> None:
    """Autocast keeps the weights it has cast until it ends, and does not notice that they move."""
    inside, around = a_model().float(), a_model().float()
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, rho=0.5, lam=0.5, **SGD) for m in (inside, around))
    for number in range(3):
        one.step(autocast_closure(inside, single(number), torch.bfloat16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other.step(scaled_closure(around, single(number), None))
            loss = nn.functional.cross_entropy(around(single(0)[0]).float(), single(0)[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = nn.functional.cross_entropy(inside(single(0)[0]).float(), single(0)[1])
    assert same(weights_of(inside), weights_of(around))
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.2, "adaptive": True, "max_perturbation": 0.1}, {"rho": 0.0}])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_scale_of_a_scaler_does_not_show_in_the_step(options: dict[str, float], micro_batches: int) -> None:
    """A power of two: scaling is exact, so that the weights are equal bit for bit."""
    plain, scaled = a_model().float(), a_model().float()
    build = {"rho": 0.3, "lam": 0.3, **SGD, **options}
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, **build) for m in (plain, scaled))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    shares = [1 / micro_batches] * micro_batches
    for number in range(4):
        batches = [single(10 * number + part) for part in range(micro_batches)]
        loss = one.step_micro_batches([scaled_closure(plain, batch, None) for batch in batches], shares)
        closures = [scaled_closure(scaled, batch, scaler) for batch in batches]
        assert torch.equal(loss, other.step_micro_batches(closures, shares, scaler=scaler))
        assert torch.equal(one.last_grad_norm, other.last_grad_norm)
        assert scaler.get_scale() == 2.0 ** (10 + (number + 1) // 2)  # one update a step
    assert same(weights_of(plain), weights_of(scaled))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad_pass", [1, 2])
def test_an_overflow_in_either_pass_skips_the_step_and_halves_the_scale_once(bad_pass: int, fused: bool) -> None:
    model, twin = a_model().float(), a_model().float()
    build = {"rho": 0.3, "lam": 0.3, "fused": fused, **SGD}
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, **build) for m in (model, twin))
    scaler, passes = GradScaler("cpu", init_scale=2.0**10), 0

    def overflowing() -> Tensor:
        nonlocal passes
        passes += 1
        loss = scaled_closure(model, single(1), scaler)()
        if passes == bad_pass:
            next(model.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
        return loss

    one.step(scaled_closure(model, single(0), scaler), scaler=scaler)
    before = weights_of(model)
    one.step(overflowing, scaler=scaler)
    assert passes == 2
    assert same(weights_of(model), before)
    assert scaler.get_scale() == 2.0**9
    one.step(scaled_closure(model, single(2), scaler), scaler=scaler)
    for number in (0, 2):
        other.step(scaled_closure(twin, single(number), None))
    assert same(weights_of(model), weights_of(twin))
    assert (one.t, int(one.skipped_steps)) == (3, 1)


def test_float16_training_finds_its_scale_and_goes_on() -> None:
    model = a_model().float()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.1, lam=0.5, lr=0.5)
    scaler = GradScaler("cpu", init_scale=2.0**22)
    losses = []
    for _ in range(40):
        losses.append(optimizer.step(autocast_closure(model, single(0), torch.float16, scaler), scaler=scaler).detach())
    assert 0 < int(optimizer.skipped_steps) < 20
    assert scaler.get_scale() == 2.0**22 / 2 ** int(optimizer.skipped_steps)
    assert losses[-1] < 0.5 * losses[0]


def test_steps_by_hand_take_a_scaler_too() -> None:
    model, twin = a_model().float(), a_model().float()
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, rho=0.3, lam=0.3, **SGD) for m in (model, twin))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for number in range(3):
        closure = scaled_closure(model, single(number), scaler)
        closure()
        one.first_step(scaler=scaler)
        closure()
        one.second_step(scaler=scaler)
        one.zero_grad()
        other.step(scaled_closure(twin, single(number), None))
    assert same(weights_of(model), weights_of(twin))
    assert scaler.get_scale() == 2.0**13


def test_a_scaler_goes_on_after_a_pass_that_raised() -> None:
    model = a_model().float()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.3, lam=0.3, **SGD)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    closure = scaled_closure(model, single(0), scaler)

    def breaking() -> Tensor:
        if optimizer.is_perturbed:
            raise MemoryError
        return closure()

    with pytest.raises(MemoryError):
        optimizer.step(breaking, scaler=scaler)
    assert scaler.get_scale() == 2.0**10
    optimizer.step(closure, scaler=scaler)
    assert scaler.get_scale() == 2.0**11


def test_a_scaler_that_is_off_changes_nothing() -> None:
    model, twin = a_model().float(), a_model().float()
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, rho=0.3, lam=0.3, **SGD) for m in (model, twin))
    scaler = GradScaler("cpu", enabled=False)
    for number in range(3):
        one.step(scaled_closure(model, single(number), scaler), scaler=scaler)
        other.step(scaled_closure(twin, single(number), None))
    assert same(weights_of(model), weights_of(twin))


def test_a_scaled_step_reads_nothing_back_to_the_host() -> None:
    model = a_model().float()
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=0.3, lam=0.3, fused=True, **SGD)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    closure = scaled_closure(model, single(0), scaler)
    optimizer.step(closure, scaler=scaler)
    with HostReads() as reads:
        optimizer.step(closure, scaler=scaler)
    assert reads.count == 0


def test_float16_parameters_are_refused_under_a_scaler_and_stay_as_they_were() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=0.3, lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0)

    def closure() -> Tensor:
        loss = weight.float().sum()
        scaler.scale(loss).backward()
        return loss

    with pytest.raises(ValueError, match="needs parameters in float32 under autocast, got gradients in float16"):
        optimizer.step(closure, scaler=scaler)
    assert weight.tolist() == [1, 1, 1]
    assert not optimizer.is_perturbed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adaptive", [False, True])
def test_parameters_of_low_precision_ascend_by_a_norm_taken_in_float32(dtype: torch.dtype, adaptive: bool) -> None:
    weight = nn.Parameter(torch.ones(4096, dtype=dtype))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=32.0, adaptive=adaptive, eta=1.0, lr=0.1)
    weight.grad = torch.full_like(weight, 300.0)
    optimizer.first_step()
    # ‖g‖ = 300 · 64; ε = ρ/64 everywhere for l2, and twice that for T = 2: ρ · T² g / ‖T g‖
    assert float(optimizer.last_grad_norm) == 300 * 64
    assert weight.float().tolist() == pytest.approx([2.0 if adaptive else 1.5] * 4096, rel=4e-3)
    assert float(optimizer.last_perturbation_norm) == pytest.approx(32, rel=4e-3)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("gradient", "count"), [(2e-7, 4), (30000.0, 4096), (60000.0, 4)])
def test_float16_parameters_ascend_also_by_a_scale_out_of_the_range_of_float16(
    gradient: float, count: int, adaptive: bool
) -> None:
    weight = nn.Parameter(torch.full((count,), 3.0, dtype=torch.float16))
    optimizer = UnifiedSAM([weight], torch.optim.SGD, rho=20.0, adaptive=adaptive, eta=0.0, lr=0.1)
    weight.grad = torch.full_like(weight, gradient)
    optimizer.first_step()
    moved = 20 / math.sqrt(count) * (3 if adaptive else 1)  # ρ · T² g / ‖T g‖
    assert weight.tolist() == pytest.approx([3 + moved] * count, rel=1e-3)
    assert float(optimizer.last_perturbation_norm) == pytest.approx(20, rel=1e-3)
    optimizer.abandon_step()
    assert weight.tolist() == [3] * count


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("by_hand", [False, True])
def test_an_autocast_around_several_steps_sees_every_one(rho: float, by_hand: bool) -> None:
    inside, around = a_model().float(), a_model().float()
    one, other = (UnifiedSAM(m.parameters(), torch.optim.SGD, rho=rho, lam=0.5, **SGD) for m in (inside, around))
    closure = scaled_closure(around, single(0), None)
    expected = [one.step(autocast_closure(inside, single(0), torch.bfloat16)) for _ in range(4)]
    losses = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(4):
            if by_hand:
                other.zero_grad()
                losses.append(closure())
                other.first_step()
                closure()
                other.second_step()
            else:
                losses.append(other.step(closure))
    assert losses == expected
    assert losses[3] < losses[0]
