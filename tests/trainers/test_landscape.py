import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainers.landscape import LossSurface, ascent_losses, landscape, loss_surface, unit
from trainers.metrics import LANDSCAPE
from trainers.objective import Objective

CLASSIFICATION, BINARY, REGRESSION = Objective("classification"), Objective("binary"), Objective("regression")
RHO = 0.1


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def mlp() -> nn.Sequential:
    """3 → 5 → 4, in float64: 44 weights."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    nn.utils.vector_to_parameters(random(44, seed=3), model.parameters())
    return model


INPUTS, CLASSES = random(30, 3, seed=1), torch.randint(4, (30,), generator=seeded(2))


def mlp_loss(weights: Tensor, regulariser: float = 0.0) -> Tensor:
    """f of `mlp` written out."""
    inner, inner_bias, outer, outer_bias = weights.split([15, 5, 20, 4])
    hidden = torch.tanh(INPUTS @ inner.view(5, 3).T + inner_bias)
    loss = F.cross_entropy(hidden @ outer.view(4, 5).T + outer_bias, CLASSES)
    return loss + 0.5 * regulariser * weights @ weights


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def hessian_of(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    hessian: Tensor = torch.autograd.functional.hessian(function, at)  # type: ignore[no-untyped-call]
    return hessian


def largest_increase(gradient: Tensor, hessian: Tensor, rho: float) -> float:
    """max_{‖e‖≤ρ} gᵀe + ½eᵀHe exactly: (νI − H)e = g with ν ≥ λ_max, ν ≥ 0 and ‖e‖ = ρ, or e inside and ν = 0."""
    eigenvalues, basis = torch.linalg.eigh(hessian)
    rotated = basis.T @ gradient
    low = max(float(eigenvalues[-1]), 0.0)
    high = low + float(gradient.norm()) / rho
    for _ in range(200):
        middle = (low + high) / 2
        is_long = float((rotated / (middle - eigenvalues)).norm()) > rho
        low, high = (middle, high) if is_long else (low, middle)
    displacement = basis @ (rotated / (high - eigenvalues))
    return float(gradient @ displacement + displacement @ hessian @ displacement / 2)


@pytest.mark.parametrize("rho", [0.01, 0.5, 20.0])
@pytest.mark.parametrize("is_convex", [True, False])
def test_one_step_is_below_ten_steps_and_these_are_just_below_the_maximum(rho: float, is_convex: bool) -> None:
    for seed in range(20):
        square = random(20, 20, seed=seed)
        hessian = square @ square.T / 20 if is_convex else (square + square.T) / 2
        gradient = random(20, seed=100 + seed)

        def value_and_gradient(e: Tensor, g: Tensor = gradient, h: Tensor = hessian) -> tuple[Tensor, Tensor]:
            return g @ e + e @ h @ e / 2, g + h @ e

        losses = ascent_losses(value_and_gradient, gradient, random(20), rho=rho, steps=10)
        maximum = largest_increase(gradient, hessian, rho)
        one_step = (
            rho * float(gradient.norm()) + rho**2 * float(gradient @ hessian @ gradient / gradient.norm() ** 2) / 2
        )
        assert float(losses[0]) == pytest.approx(one_step, rel=1e-12)
        assert one_step <= float(losses.max()) <= maximum * (1 + 1e-9)
        assert float(losses.max()) > (0.7 if rho == 20 else 0.999) * maximum
        if is_convex:
            assert (losses.diff() >= -1e-12 * maximum).all()


def test_at_a_minimum_one_step_finds_nothing_and_several_find_the_sharpest_direction() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    inputs = random(10, 3) * torch.tensor([3.0, 1.0, 0.1])
    metrics = landscape(model, REGRESSION, inputs, torch.zeros(10).double(), rho=RHO, generator=seeded())
    eigenvalue = float(torch.linalg.eigvalsh(inputs.T @ inputs / 10)[-1])
    assert metrics["sharpness_one_step"] == 0
    assert metrics["sharpness_multi_step"] == pytest.approx(RHO**2 * eigenvalue / 2, rel=1e-6)
    assert {metrics[f"loss_at_{at}_rho"] for at in ("minus_2", "minus", "plus", "plus_2")} == {0.0}


@pytest.mark.parametrize("regulariser", [0.0, 0.3])
def test_every_metric_of_a_small_network_is_what_its_definition_says(regulariser: float) -> None:
    objective = Objective("classification", regulariser)
    metrics = landscape(mlp(), objective, INPUTS, CLASSES, rho=RHO, generator=seeded())

    def f(weights: Tensor) -> Tensor:
        return mlp_loss(weights, regulariser)

    at = flat(mlp())
    hessian = hessian_of(f, at)
    (gradient,) = torch.autograd.grad(f(moving := at.clone().requires_grad_()), moving)
    direction = gradient / gradient.norm()
    for name, scale in (("minus_2", -2), ("minus", -1), ("plus", 1), ("plus_2", 2)):
        assert metrics[f"loss_at_{name}_rho"] == pytest.approx(float(f(at + scale * RHO * direction)), rel=1e-12)
    assert metrics["sharpness_one_step"] == pytest.approx(float(f(at + RHO * direction) - f(at)), rel=1e-10)
    assert metrics["sharpness_multi_step"] >= metrics["sharpness_one_step"]
    assert metrics["sharpness_multi_step"] == pytest.approx(largest_increase(gradient, hessian, RHO), rel=0.02)
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert metrics["hessian_max_eigenvalue"] == pytest.approx(largest, rel=1e-5)
    error = abs(metrics["hessian_trace"] - float(hessian.trace()))
    assert error < 3 * metrics["hessian_trace_standard_error"] < float(hessian.trace())


def test_its_metrics_are_those_that_a_run_reports() -> None:
    metrics = landscape(mlp(), CLASSIFICATION, INPUTS, CLASSES, rho=RHO, generator=seeded())
    assert set(metrics) == set(LANDSCAPE)
    assert all(type(value) is float for value in metrics.values())


def test_products_with_the_hessian_are_exact_in_every_direction() -> None:
    hessian = hessian_of(mlp_loss, flat(mlp()))
    with loss_surface(mlp(), CLASSIFICATION, INPUTS, CLASSES) as surface:
        columns = [surface.hessian_product(unit) for unit in torch.eye(44, dtype=torch.float64)]
    assert torch.allclose(torch.stack(columns), hessian, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("objective", [Objective("regression", 0.2), Objective("binary", 0.2)], ids=lambda o: o.task)
def test_linear_problems_have_the_curvature_of_the_textbook(objective: Objective) -> None:
    model = nn.Linear(4, 1, bias=False).double()
    inputs = random(50, 4)
    targets = random(50, seed=1) if objective.task == "regression" else random(50, seed=1).sign()
    probability = torch.sigmoid(inputs @ model.weight.detach()[0])
    curvature = torch.ones(50).double() if objective.task == "regression" else probability * (1 - probability)
    hessian = inputs.T @ (curvature[:, None] * inputs) / 50 + 0.2 * torch.eye(4).double()
    metrics = landscape(model, objective, inputs, targets, rho=RHO, generator=seeded())
    assert metrics["hessian_max_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-10)
    assert abs(metrics["hessian_trace"] - float(hessian.trace())) < 3 * metrics["hessian_trace_standard_error"]
    with loss_surface(model, objective, inputs, targets) as surface:
        products = torch.stack([surface.hessian_product(unit) for unit in torch.eye(4, dtype=torch.float64)])
    assert torch.allclose(products, hessian, rtol=1e-12)


def convolutional() -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36, 3),
    )
    model(torch.randn(20, 1, 6, 6))  # moves the running statistics away from 0 and 1
    return model


def image_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 1, 6, 6, generator=seeded(5)), torch.randint(3, (12,), generator=seeded(6))


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "versions": [param._version for param in model.parameters()],
        "gradients": [None if param.grad is None else param.grad.clone() for param in model.parameters()],
        "requires_grad": [param.requires_grad for param in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(left: object, right: object) -> None:
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right)
        for ours, theirs in zip(left, right, strict=True):
            assert_same(ours, theirs)
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


def test_a_model_is_left_bit_for_bit_as_it_was() -> None:
    model = convolutional()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    inputs, targets = image_batch()
    F.cross_entropy(model(inputs), targets).backward()
    before = state_of(model)
    landscape(model, CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded())
    assert_same(state_of(model), before)


class Breaking(nn.Module):
    """Draws from the global random state in every forward pass, and raises in one of them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.calls, self.at = 0, at

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("broken on purpose")
        return inputs + 0 * torch.rand(())


def test_a_model_is_left_as_it_was_also_where_it_raises() -> None:
    model = nn.Sequential(convolutional(), Breaking(at=20)).train()
    inputs, targets = image_batch()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        landscape(model, CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded())
    assert_same(state_of(model), before)


def test_it_is_the_landscape_of_the_model_in_evaluation_mode() -> None:
    model = convolutional()
    inputs, targets = image_batch()
    with loss_surface(model, CLASSIFICATION, inputs, targets) as surface:
        value = surface.value(surface.origin)
        same_value, gradient = surface.value_and_gradient(surface.origin)
    reference = copy.deepcopy(model).eval()
    loss = F.cross_entropy(reference(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([param.grad.flatten() for param in reference.parameters() if param.grad is not None])
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    assert float(same_value) == pytest.approx(float(value), rel=1e-7)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_the_numbers_depend_on_the_generator_and_on_nothing_else() -> None:
    inputs, targets = image_batch()
    model = convolutional()
    first = landscape(model, CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded(1))
    torch.manual_seed(99)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        again = landscape(model.eval(), CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded(1))
    other = landscape(model, CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded(2))
    assert first == again
    assert first["hessian_trace"] != other["hessian_trace"]
    assert first["hessian_max_eigenvalue"] == pytest.approx(other["hessian_max_eigenvalue"], rel=1e-4)


def test_chunks_of_any_size_make_the_same_landscape() -> None:
    whole = landscape(mlp(), CLASSIFICATION, INPUTS, CLASSES, rho=RHO, generator=seeded())
    for size in (1, 7, 30, 1000):
        parts = landscape(mlp(), CLASSIFICATION, INPUTS, CLASSES, rho=RHO, generator=seeded(), chunk_size=size)
        assert parts == pytest.approx(whole, rel=1e-9)


def test_single_precision_agrees_with_double() -> None:
    inputs, targets = image_batch()
    single = landscape(convolutional(), CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded())
    double = landscape(convolutional().double(), CLASSIFICATION, inputs.double(), targets, rho=RHO, generator=seeded())
    for metrics in (single, double):
        assert metrics.pop("hessian_max_eigenvalue_error") <= 1e-3 * metrics["hessian_max_eigenvalue"]
    assert single == pytest.approx(double, rel=1e-4)  # the trace as well: its signs are the same


class Attention(nn.Module):
    """Attention over 4 tokens, whose fused kernels cannot be differentiated twice, in a layer with a fast path that is
    taken without gradients only; and hardsigmoid, which cannot be differentiated twice either."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.gate = nn.Hardsigmoid()
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.layer(inputs)
        attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
        outputs: Tensor = self.head(self.gate(attended.mean(1)) * attended[:, 0])
        return outputs


def test_what_torch_differentiates_only_once_is_spelled_out() -> None:
    torch.manual_seed(8)
    model = Attention().double()
    inputs, targets = random(6, 4, 8), torch.randint(3, (6,))
    with loss_surface(model, CLASSIFICATION, inputs, targets) as surface:
        vector = random(len(surface.origin))
        product = surface.hessian_product(vector)
        _, above = surface.value_and_gradient(1e-6 * vector)
        _, below = surface.value_and_gradient(-1e-6 * vector)
        value, same_value = surface.value(surface.origin), surface.value_and_gradient(surface.origin)[0]
    assert torch.allclose(product, (above - below) / 2e-6, rtol=1e-5, atol=1e-7)
    assert float(value) == pytest.approx(float(same_value), rel=1e-12)
    metrics = landscape(model, CLASSIFICATION, inputs, targets, rho=RHO, generator=seeded())
    assert all(math.isfinite(value) for value in metrics.values())


class Padded(nn.Module):
    """Compares normalised keys, one of which is the padding's vector of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(3, 4, bias=False).double()

    def forward(self, inputs: Tensor) -> Tensor:
        keys = F.normalize(self.key(F.pad(inputs.view(-1, 1, 3), (0, 0, 0, 1))), dim=-1)
        assert (keys[:, 1] == 0).all()
        assert torch.allclose(keys[:, 0].norm(dim=-1), torch.ones(()).double())
        assert torch.equal(F.normalize(keys, p=1.0, dim=-1)[:, 1], keys[:, 1])
        return (keys @ keys.transpose(1, 2)).flatten(1)


def test_a_vector_of_zeros_can_be_normalised_and_differentiated_twice() -> None:
    model = Padded()
    with loss_surface(model, CLASSIFICATION, INPUTS, CLASSES) as surface:
        vector = random(12)
        product = surface.hessian_product(vector)
        above, below = (surface.value_and_gradient(sign * 1e-6 * vector)[1] for sign in (1, -1))
    assert torch.allclose(product, (above - below) / 2e-6, rtol=1e-5, atol=1e-7)


class Wave(nn.Module):
    """Near its highest point: f = ½(sin w + 1)² falls to both sides of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([math.pi / 2 - 0.01]).double())

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sin(self.weight) * inputs


def test_where_every_step_overshoots_one_step_is_negative_and_the_multi_step_sharpness_is_zero() -> None:
    metrics = landscape(Wave(), REGRESSION, torch.ones(1, 1).double(), -torch.ones(1), rho=1, generator=seeded())
    assert metrics["sharpness_one_step"] < -0.1
    assert metrics["sharpness_multi_step"] == 0
    assert metrics["hessian_max_eigenvalue"] < -1


class Tied(nn.Module):
    """z = (w·a)·w, the same weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False).double()
        self.second = nn.Linear(1, 1, bias=False).double()
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(inputs))
        return outputs


def test_a_weight_used_twice_is_one_weight() -> None:
    model = Tied()
    w = model.first.weight.item()
    metrics = landscape(model, REGRESSION, torch.ones(1, 1).double(), torch.ones(1), rho=RHO, generator=seeded())
    assert metrics["hessian_max_eigenvalue"] == pytest.approx(6 * w**2 - 2, rel=1e-9)  # of ½(w² − 1)²
    assert metrics["hessian_trace"] == pytest.approx(6 * w**2 - 2, rel=1e-9)


class Partly(nn.Module):
    """Of its weights one is frozen and one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.tensor([2.0]).double())
        self.frozen = nn.Parameter(torch.tensor([3.0]).double(), requires_grad=False)
        self.unused = nn.Parameter(torch.tensor([5.0]).double())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used * self.frozen * inputs


def test_frozen_weights_are_no_directions_and_unused_ones_are_flat() -> None:
    inputs, targets = torch.ones(1, 1).double(), torch.zeros(1).double()
    metrics = landscape(Partly(), REGRESSION, inputs, targets, rho=RHO, generator=seeded())
    assert metrics["hessian_max_eigenvalue"] == pytest.approx(9)
    assert metrics["hessian_trace"] == pytest.approx(9)
    assert metrics["loss_at_plus_rho"] == pytest.approx(0.5 * (3 * (2 + RHO)) ** 2)
    with loss_surface(Partly(), REGRESSION, inputs, targets) as surface:
        assert len(surface.origin) == 2


class Constant(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.detach().clone()


def test_a_loss_that_no_weight_changes_is_flat() -> None:
    metrics = landscape(Constant(3, 3), CLASSIFICATION, torch.zeros(2, 3), CLASSES[:2] % 3, rho=RHO, generator=seeded())
    at = {name: value for name, value in metrics.items() if name.startswith("loss")}
    assert list(at.values()) == pytest.approx(4 * [math.log(3)])
    assert {value for name, value in metrics.items() if name not in at} == {0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_make_numbers_that_are_not(bad: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = bad
        model[2].weight[0, 0] = bad
    metrics = landscape(model, CLASSIFICATION, INPUTS, CLASSES, rho=RHO, generator=seeded())
    assert not any(math.isfinite(value) for value in metrics.values())


def test_a_radius_at_which_the_loss_overflows_leaves_the_curvature_finite() -> None:
    model = nn.Linear(3, 1)
    metrics = landscape(model, REGRESSION, INPUTS.float(), torch.ones(30), rho=1e30, generator=seeded())
    finite = {name for name, value in metrics.items() if math.isfinite(value)}
    eigenvalue = {"hessian_max_eigenvalue", "hessian_max_eigenvalue_error"}
    assert finite == eigenvalue | {"hessian_trace", "hessian_trace_standard_error"}


def test_a_direction_has_length_one_where_there_is_a_direction() -> None:
    assert unit(torch.tensor([3.0, -4.0])).tolist() == pytest.approx([0.6, -0.8])
    assert unit(torch.tensor([3e-15, -4e-15])).tolist() == pytest.approx([0.6, -0.8])
    assert unit(torch.zeros(2)).tolist() == [0, 0]
    for bad in ([math.nan, 1.0], [math.inf, 1.0], [3e38, 3e38]):
        assert unit(torch.tensor(bad)).isnan().all()


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_radius_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match=f"rho must be a finite number above 0, got {rho}"):
        landscape(mlp(), CLASSIFICATION, INPUTS, CLASSES, rho=rho, generator=seeded())


def test_a_landscape_needs_an_example_and_a_weight() -> None:
    with (
        pytest.raises(ValueError, match="at least one example"),
        loss_surface(mlp(), CLASSIFICATION, INPUTS[:0], CLASSES[:0]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="a weight that requires a gradient"),
        loss_surface(mlp().requires_grad_(False), CLASSIFICATION, INPUTS, CLASSES),
    ):
        pass


def test_big_inputs_go_through_the_model_in_small_chunks() -> None:
    sizes = []

    class Watching(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            sizes.append(len(inputs))
            return super().forward(inputs)

    inputs = torch.zeros(10, 2**16)
    with loss_surface(Watching(2**16, 2), CLASSIFICATION, inputs, torch.zeros(10, dtype=torch.int64)) as surface:
        assert isinstance(surface, LossSurface)
        surface.value(surface.origin)
    assert sizes == [4, 4, 2]
