"""The formulas of step sizes and constants, against those of the paper and of its published code."""

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from trainers.problem_settings import ProblemSettings
from trainers.problems import Problem, problem
from trainers.theory import (
    SAMPLINGS,
    ExpectedResidual,
    StepSizes,
    Theory,
    decreasing_step_sizes,
    full_gradient,
    gamma_star,
    independent_draws,
    neighbourhood,
    nice,
    nonconvex_step_sizes,
    rho_star,
    simplified_step_sizes,
)

LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def mixed(smoothness: Tensor, uniform_share: float) -> Tensor:
    """(1 − α) L_i / Σ L_j + α/n."""
    return (1 - uniform_share) * smoothness / smoothness.sum() + uniform_share / len(smoothness)


# Constants.


def test_one_draw_has_the_constants_of_the_paper() -> None:
    found = problem(ProblemSettings.of("ridge"))
    smoothness, sigma_star = found.smoothness, found.sigma_star
    for expected, one_draw in (
        (smoothness.max(), nice(smoothness, draws=1, sigma_star=sigma_star)),
        (smoothness.max(), Theory(found, "uniform_with_replacement", 1, lam=0.5).expected_residual),
        (smoothness.mean(), Theory(found, "lipschitz", 1, lam=0.5).expected_residual),
    ):
        L = float(expected)  # noqa: N806
        assert astuple(one_draw) == pytest.approx((L, 0, 2 * L * sigma_star, L))


def test_all_examples_at_once_are_the_full_gradient() -> None:
    found = problem(ProblemSettings.of("ridge"))
    for sampling in ("uniform", "nice"):
        assert Theory(found, sampling, 100, lam=0.5).expected_residual == full_gradient(found.L)
    table = nice(found.smoothness, draws=100, sigma_star=found.sigma_star)
    assert (table.A, table.B, table.C) == (0, 1, 0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_a_mixture_is_nearly_as_smooth_as_the_better_of_its_two_parts(alpha: float) -> None:
    """L_S ≤ min{L_max/α, L_avg/(1 − α)}, twice the better one for α = ½, and no weight exceeds 1/α."""
    for smoothness in (
        problem(ProblemSettings.of("ridge")).smoothness,
        torch.linspace(1, 1.5, 100, dtype=torch.float64),
    ):
        probabilities = mixed(smoothness, alpha)
        assert float(1 / (100 * probabilities.min())) <= 1 / alpha
        constants = independent_draws(smoothness, probabilities, draws=1, sigma_star=1.0)
        limit = min(float(smoothness.max()) / alpha, float(smoothness.mean()) / (1 - alpha))
        assert constants.L_S / limit <= 1


# Step sizes.


def random_constants(count: int = 200) -> Iterator[tuple[ExpectedResidual, float]]:
    """Constants as the rows of the table make them, with μ at most L_avg."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        n = int(torch.randint(2, 30, (), generator=generator))
        smoothness = torch.exp(3 * torch.randn(n, generator=generator, dtype=torch.float64))
        mu = float(smoothness.mean() * torch.rand((), generator=generator) ** 4)
        tau = int(torch.randint(1, n + 1, (), generator=generator))
        yield nice(smoothness, draws=tau, sigma_star=0.3), mu
        yield independent_draws(smoothness, mixed(smoothness, 0.2), draws=tau, sigma_star=0.3), mu
        yield full_gradient(float(smoothness.mean())), mu


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_long_form_is_the_one_of_the_published_code(lam: float) -> None:
    for er, mu in random_constants():
        A, B, L = er.A, er.B, er.L_S  # noqa: N806
        rho = 0.5 * mu / (L * (mu + 2 * (B * mu + A) * (1 - lam) ** 2))
        gamma = (mu - L * rho * (mu + 2 * (B * mu + A) * (1 - lam) ** 2)) / (
            2 * L * (B * mu + A) * (2 * L**2 * rho**2 * (1 - lam) ** 2 + 1)
        )
        assert 0.5 * rho_star(er, mu=mu, lam=lam) == pytest.approx(rho, rel=1e-12)
        assert gamma_star(er, mu=mu, lam=lam, rho=rho) == pytest.approx(gamma, rel=1e-12)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_simplified_form_is_the_one_of_the_published_code_and_within_the_long_one(lam: float) -> None:
    for er, mu in random_constants():
        A, B, L = er.A, er.B, er.L_S  # noqa: N806
        rho = 1 / (4 * L) if lam == 1.0 else min(1, mu / (2 * (B * mu + A) * (1 - lam) ** 2)) / (4 * L)
        gamma = min(2, mu / (8 * (B * mu + A))) / L
        sizes = simplified_step_sizes(er, mu=mu, lam=lam)
        assert sizes == pytest.approx((rho, gamma), rel=1e-12)
        limit = rho_star(er, mu=mu, lam=lam)
        assert limit / 4 <= sizes.rho * (1 + 1e-12)
        assert sizes.rho <= limit / 2 * (1 + 1e-12)
        assert sizes.gamma <= gamma_star(er, mu=mu, lam=lam, rho=sizes.rho)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_a_wider_ascent_leaves_a_shorter_descent_down_to_none_at_rho_star(lam: float) -> None:
    for er, mu in random_constants(20):
        limit = rho_star(er, mu=mu, lam=lam)
        gammas = [gamma_star(er, mu=mu, lam=lam, rho=share * limit) for share in (0, 0.1, 0.5, 0.9, 1 - 1e-9)]
        assert gammas == sorted(gammas, reverse=True)
        assert 0 <= gammas[-1] < 1e-6 * gammas[0]


def test_a_step_never_shrinks_by_more_than_everything() -> None:
    """γ*(ρ) μ ≤ ½, so that 1 − γμ is a contraction."""
    for er, mu in random_constants():
        assert 0 < gamma_star(er, mu=mu, lam=0.5, rho=0.0) * mu <= 0.5


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1])
def test_a_rho_outside_its_range_is_refused_with_the_rule_and_the_values(share: float) -> None:
    er = ExpectedResidual(A=2.0, B=0.0, C=0.0, L_S=2.0)
    limit = rho_star(er, mu=1.0, lam=0.0)
    message = rf"rho must lie in \[0, rho\*\) with rho\* = 0.1 for lambda = 0, got {share * limit!r}"
    with pytest.raises(ValueError, match=message.replace("-", r"\-")):
        gamma_star(er, mu=1.0, lam=0.0, rho=share * limit)


def test_decreasing_sizes_are_those_of_the_published_code_and_covered_at_every_step() -> None:
    found = problem(ProblemSettings.of("ridge"))
    theory = Theory(found, "lipschitz", 1, lam=0.5)
    largest = StepSizes(theory.rho, theory.gamma_at(theory.rho))
    for t in (0, 1, 2, 10, 100, 10_000, 1_000_000):
        rho, gamma = decreasing_step_sizes(t, mu=found.mu, largest=largest)
        assert rho == min(largest.rho, 1 / (2 * t + 1))
        assert gamma == min(largest.gamma, (2 * t + 1) / ((t + 1) ** 2 * found.mu))
        assert theory.covers(gamma, rho)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_sizes_of_the_nonconvex_theorem_stay_within_its_limits_and_fall_with_the_root_of_the_steps(lam: float) -> None:
    for er, _ in random_constants(50):
        for steps in (1, 100, 10**8):
            rho, gamma = nonconvex_step_sizes(er, lam=lam, steps=steps)
            q = (1 - lam) ** 2
            assert rho <= min(1 / (4 * er.L_S), 1 / (8 * er.B * er.L_S * q) if er.B * q else math.inf) * (1 + 1e-12)
            assert gamma <= (1 / (9 * er.B * er.L_S) if er.B else math.inf) * (1 + 1e-12)
            assert max(rho, gamma) <= 1 / (er.L_S * math.sqrt(steps)) * (1 + 1e-12)


@pytest.mark.parametrize(("lam", "expected"), [(0.5, 57 / 64), (0.75, 195 / 256)])
def test_the_neighbourhood_is_what_the_bound_of_one_step_leaves_at_the_minimum(lam: float, expected: float) -> None:
    """By hand 8 {3 [1/64 + q/16 · 33/32] + λ²/16 · 33/32}, as 1 + 2γρL² = 33/32 (Theorem 3.2).

    And γμN is the module's bound of one step where f(x) = f*, ∇f(x) = 0 and E‖g‖² = C.
    """
    A, B, C, L, mu, rho, gamma = 0.75, 0.5, 3.0, 4.0, 0.5, 1 / 16, 1 / 64  # noqa: N806
    er = ExpectedResidual(A, B, C, L)
    assert rho < rho_star(er, mu=mu, lam=lam)
    assert gamma < gamma_star(er, mu=mu, lam=lam, rho=rho)
    size = neighbourhood(er, StepSizes(rho, gamma), mu=mu, lam=lam)
    q = (1 - lam) ** 2
    ascent = gamma * L * rho * (q * C + lam**2)
    descent = L * gamma**2 * ((1 + 2 * L**2 * rho**2 * q) * C + 2 * L**2 * rho**2 * lam**2)
    assert size == pytest.approx(expected, rel=1e-12)
    assert gamma * mu * size == pytest.approx(ascent + descent, rel=1e-12)


# The theory of a run.


def test_the_neighbourhood_vanishes_where_neither_noise_nor_a_normalised_ascent_is_left() -> None:
    quiet = problem(ProblemSettings.of("ridge", targets="consistent", regulariser=0))
    noisy = problem(ProblemSettings.of("ridge"))

    def size(found: Problem, lam: float, tau: int, rho: float | None = None) -> float:
        theory = Theory(found, "nice", tau, lam=lam)
        radius = theory.rho if rho is None else rho
        return theory.neighbourhood(theory.gamma_at(radius), radius)

    assert size(quiet, 0.0, 1) == size(noisy, 0.0, 100) == size(quiet, 1.0, 1, rho=0.0) == 0
    assert size(quiet, 0.5, 1) > 0
    assert size(noisy, 0.0, 1) > 0
    assert size(noisy, 1.0, 100) > 0


def test_the_bound_is_the_geometric_fall_to_the_neighbourhood() -> None:
    theory = Theory(problem(ProblemSettings.of("ridge")), "lipschitz", 1, lam=0.5)
    rho = theory.rho
    gamma = theory.gamma_at(rho)
    N = neighbourhood(theory.expected_residual, StepSizes(rho, gamma), mu=0.04, lam=0.5)  # noqa: N806
    assert theory.bound(0, 2.0, gamma, rho) == pytest.approx(2 + N)
    assert theory.bound(1000, 2.0, gamma, rho) == pytest.approx((1 - 0.04 * gamma) ** 1000 * 2 + N)
    folded = 2.0
    for _ in range(1000):
        folded = theory.next_bound(folded, gamma, rho)
    assert folded <= theory.bound(1000, 2.0, gamma, rho)
    assert folded == pytest.approx((1 - 0.04 * gamma) ** 1000 * (2 - N) + N)


def test_half_of_rho_star_is_the_radius_taken() -> None:
    theory = Theory(problem(ProblemSettings.of("ridge")), "uniform", 4, lam=0.5)
    assert theory.rho == 0.5 * theory.rho_star == 0.5 * rho_star(theory.expected_residual, mu=0.04, lam=0.5)


@pytest.mark.parametrize("use", [Theory.bound, Theory.next_bound])
def test_a_bound_for_sizes_that_the_theorem_does_not_cover_is_refused(use: Callable[..., float]) -> None:
    theory = Theory(problem(ProblemSettings.of("ridge")), "uniform", 1, lam=0.5)
    start = (10, 1.0) if use is Theory.bound else (1.0,)
    gamma = theory.gamma_at(theory.rho)
    assert theory.covers(gamma, theory.rho)
    assert not theory.covers(1.01 * gamma, theory.rho)
    assert not theory.covers(gamma, theory.rho_star)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, gamma\*\] with gamma\* = .* got"):
        use(theory, *start, 1.01 * gamma, theory.rho)
    with pytest.raises(ValueError, match=r"rho must lie in \[0, rho\*\) with rho\* = .* got"):
        use(theory, *start, gamma, theory.rho_star)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "loss"}, f"sampling must be one of {', '.join(map(repr, SAMPLINGS))}, got 'loss'"),
        ({"batch_size": 0}, r"batch_size must lie in \[1, 100\], the number of examples, got 0"),
        ({"batch_size": 101}, r"batch_size must lie in \[1, 100\], the number of examples, got 101"),
        ({"lam": 1.5}, r"lam must lie in \[0, 1\], got 1.5"),
        ({"uniform_share": -0.1}, r"uniform_share must lie in \[0, 1\], got -0.1"),
    ],
)
def test_what_the_theorems_do_not_know_is_refused(changes: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"sampling": "uniform", "batch_size": 1, "lam": 0.5, **changes}
    with pytest.raises(ValueError, match=message):
        Theory(problem(ProblemSettings.of("ridge")), **settings)  # type: ignore[arg-type]


def test_no_sampling_takes_the_constants_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.theory.SAMPLINGS", (*SAMPLINGS, "stratified"))
    theory = Theory(problem(ProblemSettings.of("ridge")), "stratified", 4, lam=0.5)
    with pytest.raises(NotImplementedError, match="the constants of 'stratified' sampling are not derived yet"):
        _ = theory.expected_residual
