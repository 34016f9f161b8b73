"""The predictions, against simulated runs that share nothing with the training loop."""

import math

import numpy as np
import pytest
import torch

from tests.trainers.simulation import Array, Draws, Sizes, drawn, unified_sam
from trainers.problem_settings import ProblemSettings
from trainers.problems import Problem, problem
from trainers.theory import (
    StepSizes,
    Theory,
    decreasing_step_sizes,
    independent_draws,
    nonconvex_step_sizes,
)


def suboptimality(
    found: Problem, draws: Draws, sizes: Sizes, start: Array, *, lam: float, record: set[int]
) -> dict[int, Array]:
    """δ of every run, (runs,), after the recorded numbers of steps; arguments as in `unified_sam`."""
    points = enumerate(unified_sam(found, draws, sizes, start, lam=lam), 1)
    return {t: found.suboptimality(torch.from_numpy(x)).numpy() for t, x in points if t in record}


def constant(theory: Theory, *, share: float = 1.0) -> StepSizes:
    """The theorem's sizes; share: of its γ."""
    return StepSizes(theory.rho, share * theory.gamma_at(theory.rho))


def always(sizes: tuple[float | Array, float | Array]) -> Sizes:
    return lambda t: sizes


# The bound.

BOUNDED = [
    ProblemSettings.of("ridge", n_samples=20, n_features=4, condition_number=2, regulariser=0.2),
    ProblemSettings.of("ridge", n_samples=20, n_features=2, condition_number=2, targets="consistent", regulariser=0),
    ProblemSettings.of("logistic", n_samples=20, n_features=3, condition_number=5, regulariser=0.5),
]


def far_out(found: Problem, least: float) -> tuple[Array, float]:
    """A point x* + c·z with z standard normal, and its δ: c is the least power of 2 from 1 on with δ ≥ least."""
    z = np.random.default_rng(1).standard_normal(len(found.solution))
    for power in range(64):
        x = found.solution.numpy() + 2.0**power * z
        delta = float(found.suboptimality(torch.from_numpy(x)))
        if delta >= least:
            return x, delta
    raise AssertionError(f"δ stays below {least}")


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("settings", BOUNDED, ids=str)
def test_the_measured_mean_stays_under_a_bound_far_below_the_start(settings: ProblemSettings, lam: float) -> None:
    """Every sampling; also fresh permutations, whose steps are not the independent ones of the theorem.

    Runs start at δ_0 ≥ 4N and take 2/(γμ) steps, so that the bound ends below (e⁻² + ¼) δ_0.
    """
    found = problem(settings)
    for sampling, tau, share in [
        ("uniform", 1, 0.0),
        ("uniform", 20, 0.0),
        ("nice", 5, 0.0),
        ("uniform_with_replacement", 2, 0.0),
        ("lipschitz", 1, 0.0),
        ("lipschitz", 4, 0.5),
    ]:
        theory = Theory(found, sampling, tau, lam=lam, uniform_share=share)
        rho, gamma = constant(theory)
        start, delta_0 = far_out(found, 4 * theory.neighbourhood(gamma, rho))
        steps = math.ceil(2 / (gamma * found.mu))
        record = {1, 3, steps // 4, steps // 2, steps}
        draws = drawn(theory, steps, 64)
        measured = suboptimality(found, draws, always((rho, gamma)), start, lam=lam, record=record)
        for t, deltas in measured.items():
            assert deltas.mean() <= theory.bound(t, delta_0, gamma, rho), (theory, t)
        assert theory.bound(steps, delta_0, gamma, rho) < 0.5 * delta_0, theory  # or a run that stays put would pass


def test_without_noise_the_bound_is_the_linear_rate_to_the_minimum_itself() -> None:
    """λ = 0 and an interpolating problem: nothing is left but (1 − γμ)^t δ_0, and runs stay below it."""
    found = problem(
        ProblemSettings.of("ridge", n_samples=10, n_features=2, condition_number=1, targets="consistent", regulariser=0)
    )
    theory = Theory(found, "lipschitz", 1, lam=0.0)
    rho, gamma = constant(theory)
    start = found.solution.numpy() + 1.0
    delta_0 = float(found.suboptimality(torch.from_numpy(start)))
    measured = suboptimality(found, drawn(theory, 300, 64), always((rho, gamma)), start, lam=0.0, record={300})
    bound = theory.bound(300, delta_0, gamma, rho)
    assert bound == pytest.approx((1 - gamma * found.mu) ** 300 * delta_0)
    assert bound < 1e-6 * delta_0
    assert measured[300].mean() <= bound


# Decreasing steps.


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_decreasing_steps_go_below_the_plateau_of_any_constant_ones(lam: float) -> None:
    """At the theorem's γ, and at shares of it, constant steps stall; decreasing ones fall as 1/t, as their bound."""
    found = problem(ProblemSettings.of("ridge", n_samples=10, n_features=2, condition_number=1, regulariser=0.1))
    theory = Theory(found, "lipschitz", 1, lam=lam)
    rho, gamma = constant(theory)
    start = found.solution.numpy() + 1.0
    draws, record = drawn(theory, 5000, 64), {1250, 2500, 3750, 5000}

    def mean_deltas(sizes: Sizes) -> dict[int, float]:
        runs = suboptimality(found, draws, sizes, start, lam=lam, record=record)
        return {t: float(deltas.mean()) for t, deltas in runs.items()}

    def decreasing(t: int) -> StepSizes:
        return decreasing_step_sizes(t, mu=found.mu, largest=StepSizes(rho, gamma))

    falling = mean_deltas(decreasing)
    for share in (1, 1 / 4, 1 / 16):
        stalled = mean_deltas(always(constant(theory, share=share)))
        assert stalled[5000] > 0.4 * stalled[1250]
        assert falling[5000] < 0.2 * min(stalled.values())
    assert falling[5000] == pytest.approx(falling[1250] / 4, rel=0.5)
    bound = float(found.suboptimality(torch.from_numpy(start)))
    bounds = {}
    for t in range(5000):
        bound = bounds[t + 1] = theory.next_bound(bound, decreasing(t).gamma, decreasing(t).rho)
    assert all(falling[t] <= bounds[t] for t in record)
    assert bounds[5000] == pytest.approx(bounds[1250] / 4, rel=0.1)


# Importance sampling.


def test_importance_sampling_beats_uniform_sampling_where_few_examples_are_rough() -> None:
    """The default ridge, one index a step, the theory's constant sizes, λ = ½, 100,000 steps from the paper's start,
    a standard normal one: (f(x_T) − f*) / (f(x_0) − f*).

    The fourth run leaves the weights out, as the published code does. It stalls at the minimum of Σ p_i f_i.
    """
    found, steps, lam = problem(ProblemSettings.of("ridge")), 100_000, 0.5
    samplings = ["lipschitz", "uniform_with_replacement", "uniform", "lipschitz"]
    names = ["lipschitz", "uniform_with_replacement", "uniform", "without weights"]
    theories = [Theory(found, sampling, 1, lam=lam) for sampling in samplings]
    draws = [drawn(theory, steps, 1, seed=seed) for seed, theory in enumerate(theories)]
    indices = np.concatenate([indices for indices, _ in draws], axis=1)
    weights = np.concatenate([weights for _, weights in draws], axis=1)
    weights[:, 3] = 1.0
    sizes = np.array([constant(theory) for theory in theories]).T[:, :, None]  # ρ and γ, (runs, 1) each
    start = np.random.default_rng(0).standard_normal(100)
    delta_0 = float(found.suboptimality(torch.from_numpy(start)))
    record = {80_000, 90_000, 100_000}
    deltas = suboptimality(found, (indices, weights), always((sizes[0], sizes[1])), start, lam=lam, record=record)
    relative = dict(zip(names, deltas[steps] / delta_0, strict=True))
    assert relative["lipschitz"] < 5e-4
    assert relative["uniform_with_replacement"] > 0.1
    assert relative["uniform"] > 0.1
    for theory, delta in zip(theories[:3], deltas[steps][:3], strict=True):
        rho, gamma = constant(theory)
        assert delta <= theory.bound(steps, delta_0, gamma, rho)

    p = (found.smoothness / found.smoothness.sum()).unsqueeze(1)
    hessian = found.features.T @ (p * found.features) + found.regulariser * torch.eye(100)
    wrong_minimiser = torch.linalg.solve(hessian, (p * found.features).T @ found.targets)
    stall = float(found.suboptimality(wrong_minimiser)) / delta_0
    assert 2e-3 < stall < 4e-3
    for recorded in deltas.values():
        assert 0.8 < recorded[3] / delta_0 / stall < 2
    assert relative["lipschitz"] < 0.25 * min(relative["without weights"], 3e-3)


# Beyond PL.


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gradients_of_a_nonconvex_function_fall_as_the_theorem_says(lam: float) -> None:
    """f_i(x) = 1 − exp(−½(a_iᵀx − b_i)²): ‖a_i‖²-smooth and at least 0, so that A = L_max, B = C = 0 with δ = f.

    By the inequality of one step, with D = 2A L_S γ (ρq + 9γ/8) and E = γ L_S λ² (ρ + 2 L_S² ρ² γ), min_t E‖∇f(x_t)‖²
    is at most 8/5 [(1 + D)^T δ_0/(γT) + E/γ], and so O(T^−½).
    """
    generator = np.random.default_rng(0)
    features, targets = generator.standard_normal((12, 3)), generator.standard_normal(12)
    smoothness = torch.from_numpy(np.square(features).sum(1))
    er = independent_draws(smoothness, torch.full((12,), 1 / 12, dtype=torch.float64), draws=1, sigma_star=0.0)
    bounds = {}
    for steps in (64, 1024, 16384):
        rho, gamma = nonconvex_step_sizes(er, lam=lam, steps=steps)
        x = np.tile(generator.standard_normal(3), (256, 1))
        z = x @ features.T - targets
        delta_0, q = float((1 - np.exp(-0.5 * z * z)).mean()), (1 - lam) ** 2
        growth = 2 * er.A * er.L_S * gamma * (rho * q + 9 / 8 * gamma)
        excess = gamma * er.L_S * lam**2 * (rho + 2 * er.L_S**2 * rho**2 * gamma)
        bounds[steps] = 8 / 5 * ((1 + growth) ** steps * delta_0 / (gamma * steps) + excess / gamma)
        smallest = math.inf
        for _ in range(min(steps, 1024)):  # the smallest of fewer steps is no smaller
            z = x @ features.T - targets
            full = (z * np.exp(-0.5 * z * z)) @ features / 12
            smallest = min(smallest, float(np.square(full).sum(1).mean()))
            i = generator.integers(12, size=256)

            def gradient(x: Array, a: Array = features[i], b: Array = targets[i]) -> Array:
                z = (a * x).sum(1, keepdims=True) - b[:, None]
                return z * np.exp(-0.5 * z * z) * a

            g = gradient(x)
            norms = np.maximum(np.sqrt((g * g).sum(1, keepdims=True)), 1e-300)
            x = x - gamma * gradient(x + rho * (1 - lam + lam / norms) * g)
        assert smallest <= bounds[steps]
    assert bounds[16384] < bounds[1024] / 3 < bounds[64] / 9
