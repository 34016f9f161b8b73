"""The formulas, against exact expectations: every possible draw enumerated, in float64."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trainers.problem_settings import ProblemSettings
from trainers.problems import Problem, problem
from trainers.theory import SAMPLINGS, StepSizes, Theory


def mixed(smoothness: Tensor, uniform_share: float) -> Tensor:
    """(1 − α) L_i / Σ L_j + α/n."""
    return (1 - uniform_share) * smoothness / smoothness.sum() + uniform_share / len(smoothness)


LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]
ROWS = [
    ("uniform_with_replacement", 1, 0.0),
    ("uniform_with_replacement", 3, 0.0),
    ("nice", 1, 0.0),
    ("nice", 3, 0.0),
    ("nice", 5, 0.0),
    ("uniform", 2, 0.0),
    ("lipschitz", 1, 0.0),
    ("lipschitz", 3, 0.0),
    ("lipschitz", 1, 0.5),
    ("lipschitz", 2, 0.3),
]
"""Sampling, τ and α: every row of the table, for five examples."""

PROBLEMS = [
    ProblemSettings.of(
        kind,
        n_samples=5,
        n_features=d,
        condition_number=kappa if d > 1 else 1.0,
        spectrum="geometric",
        targets=targets,
        regulariser=r,
    )
    for kind, d, kappa, targets, r in [
        ("ridge", 3, 1.0, "independent", 0.0),
        ("ridge", 3, 10.0, "independent", 0.6),
        ("ridge", 5, 3.0, "consistent", 0.0),
        ("ridge", 8, 10.0, "independent", 0.0),
        ("ridge", 1, 1.0, "independent", 0.1),
        ("logistic", 2, 3.0, "independent", 0.2),
        ("logistic", 4, 10.0, "consistent", 0.01),
    ]
]


def theories(found: Problem, lam: float = 0.5) -> Iterator[Theory]:
    for sampling, tau, share in ROWS:
        yield Theory(found, sampling, tau, lam=lam, uniform_share=share)


def test_every_sampling_of_the_theory_has_a_row() -> None:
    assert {sampling for sampling, _, _ in ROWS} == set(SAMPLINGS)


def draws(theory: Theory) -> tuple[Tensor, Tensor]:
    """Every outcome of a step, written out: probabilities (m,), and weights (m, n) with g = Σ_i weight_i ∇f_i."""
    n, tau = len(theory.problem.targets), theory.batch_size
    if theory.sampling in ("uniform", "nice"):
        outcomes = list(itertools.combinations(range(n), tau))
        probabilities = [1 / len(outcomes)] * len(outcomes)
        per_example = [1.0] * n
    else:
        p = [1 / n] * n
        if theory.sampling == "lipschitz":
            p = mixed(theory.problem.smoothness, theory.uniform_share).tolist()
        outcomes = list(itertools.product(range(n), repeat=tau))
        probabilities = [math.prod(p[i] for i in outcome) for outcome in outcomes]
        per_example = [1 / (n * p_i) for p_i in p]
    weights = torch.zeros(len(outcomes), n, dtype=torch.float64)
    for row, outcome in enumerate(outcomes):
        for i in outcome:
            weights[row, i] += per_example[i] / tau
    return torch.tensor(probabilities, dtype=torch.float64), weights


def points(found: Problem, count: int = 12) -> Tensor:
    """(count, d), from next to the minimum to far away."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(-3, 1.5, count, dtype=torch.float64).unsqueeze(1)
    return found.solution + scales * torch.randn(count, len(found.solution), generator=generator, dtype=torch.float64)


def second_moments(theory: Theory, x: Tensor) -> Tensor:
    """(count,): E‖g(x)‖²."""
    probabilities, weights = draws(theory)
    gradients = torch.einsum("mi,cid->cmd", weights, theory.problem.gradients(x))
    return gradients.square().sum(2) @ probabilities


def residual_bounds(theory: Theory, x: Tensor) -> Tensor:
    """(count,): 2Aδ + B‖∇f‖² + C."""
    er, found = theory.expected_residual, theory.problem
    return 2 * er.A * found.suboptimality(x) + er.B * found.gradient(x).square().sum(1) + er.C


def covered_sizes(theory: Theory) -> Iterator[StepSizes]:
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        rho = share * theory.rho_star
        for part in (0.1, 1.0):
            yield StepSizes(rho, part * theory.gamma_at(rho))


# The expected residual.


@pytest.mark.parametrize("settings", PROBLEMS, ids=str)
def test_the_weighted_gradient_is_unbiased(settings: ProblemSettings) -> None:
    for theory in theories(problem(settings)):
        probabilities, weights = draws(theory)
        assert float(probabilities.sum()) == pytest.approx(1)
        torch.testing.assert_close(probabilities @ weights, torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("settings", PROBLEMS, ids=str)
def test_the_expected_residual_condition_holds_at_every_point(settings: ProblemSettings) -> None:
    found = problem(settings)
    for theory in theories(found):
        x = points(found)
        assert bool((second_moments(theory, x) <= residual_bounds(theory, x) * (1 + 1e-9) + 1e-15).all()), theory


@pytest.mark.parametrize(("sampling", "tau", "share"), ROWS)
def test_the_expected_residual_condition_holds_with_equality_somewhere(sampling: str, tau: int, share: float) -> None:
    """Where only the example of the largest L_i/(n p_i) is left to fit; with p_i ∝ L_i, everywhere."""
    found = problem(
        ProblemSettings.of("ridge", n_samples=5, n_features=5, condition_number=3, targets="consistent", regulariser=0)
    )
    theory = Theory(found, sampling, tau, lam=0.5, uniform_share=share)
    worst = torch.zeros(5, dtype=torch.float64)
    worst[found.smoothness.argmax()] = 1.0
    x = found.solution + torch.linalg.solve(found.features, worst)
    if sampling == "lipschitz" and share == 0:
        x = points(found, 1)[0]
    ratio = second_moments(theory, x.unsqueeze(0)) / residual_bounds(theory, x.unsqueeze(0))
    assert float(ratio) == pytest.approx(1, rel=1e-9)


def test_on_the_default_ridge_the_condition_for_importance_sampling_is_nearly_an_equality_far_out() -> None:
    """Far from the minimum E‖g‖² / (2Aδ) is a quotient of quadratic forms, whose largest value is an eigenvalue."""
    found = problem(ProblemSettings.of("ridge"))
    largest = {}
    for sampling, probabilities in (
        ("lipschitz", mixed(found.smoothness, 0.0)),
        ("uniform_with_replacement", torch.full((100,), 0.01, dtype=torch.float64)),
    ):
        identity = torch.eye(100, dtype=torch.float64)
        hessians = torch.einsum("id,ie->ide", found.features, found.features) + found.regulariser * identity
        moment = torch.einsum("i,ide,ief->df", 1 / (100**2 * probabilities), hessians, hessians)
        lower = torch.linalg.cholesky(found.hessian(found.solution))
        quotient = torch.linalg.solve_triangular(lower, moment, upper=False)
        quotient = torch.linalg.solve_triangular(lower, quotient.T.contiguous(), upper=False)
        _, vectors = torch.linalg.eigh(quotient)
        x = found.solution + 1e6 * torch.linalg.solve(lower.T, vectors[:, -1])
        squared_norms = found.gradients(x).square().sum(1)
        second_moment = float((squared_norms / (100**2 * probabilities)).sum())
        bound = float(residual_bounds(Theory(found, sampling, 1, lam=0.5), x.unsqueeze(0)))
        largest[sampling] = second_moment / bound
    assert 0.95 < largest["lipschitz"] <= 1
    assert 0.5 < largest["uniform_with_replacement"] <= 1


@pytest.mark.parametrize("settings", PROBLEMS, ids=str)
def test_no_sampled_function_is_rougher_than_its_constant_says(settings: ProblemSettings) -> None:
    """The largest eigenvalue of Σ w_i ∇²f_i, at the origin, where every f_i is roughest."""
    found = problem(settings)
    curvature = (found.smoothness - found.regulariser) / found.features.square().sum(1)
    for theory in theories(found):
        _, weights = draws(theory)
        hessians = torch.einsum("mi,i,id,ie->mde", weights, curvature, found.features, found.features)
        roughest = torch.linalg.eigvalsh(hessians)[:, -1] + found.regulariser * weights.sum(1)
        assert float(roughest.max()) <= theory.expected_residual.L_S * (1 + 1e-12)
        if theory.sampling != "uniform" and theory.batch_size == 1:
            assert float(roughest.max()) == pytest.approx(theory.expected_residual.L_S)


# One step, exactly.


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("settings", PROBLEMS, ids=str)
def test_one_step_falls_by_as_much_as_the_theorem_says(settings: ProblemSettings, lam: float) -> None:
    """E δ⁺ ≤ (1 − γμ) δ + γμ N at every point, for every sampling and all covered sizes, the limits included."""
    found = problem(settings)
    x = points(found)
    gradients = found.gradients(x)
    for theory in theories(found, lam):
        probabilities, weights = draws(theory)
        g = torch.einsum("mi,cid->cmd", weights, gradients)
        norms = torch.linalg.vector_norm(g, dim=2, keepdim=True)
        for rho, gamma in covered_sizes(theory):
            ascended = x.unsqueeze(1) + rho * (1 - lam + lam / norms.clamp_min(1e-300)) * g
            descent = torch.einsum("mi,cmid->cmd", weights, found.gradients(ascended))
            after = found.suboptimality(x.unsqueeze(1) - gamma * descent) @ probabilities
            for delta, expected in zip(found.suboptimality(x).tolist(), after.tolist(), strict=True):
                assert expected <= theory.next_bound(delta, gamma, rho) * (1 + 1e-9) + 1e-15, (theory, rho, gamma)
