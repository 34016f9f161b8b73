"""Step sizes and predicted bounds of Unified SAM (arXiv 2503.02225), as pure functions and as `Theory` of one run.

f(x) = (1/n) Σ f_i(x), f_i is L_i-smooth, δ = f(x) − f*, q = (1 − λ)², σ* = f* − (1/n) Σ inf f_i. The stochastic
gradient g is unbiased and that of an L_S-smooth function, the same one in both passes of a step. One step gives

    E f(x⁺) ≤ f(x) − γ (1 − L_S ρ/2) ‖∇f(x)‖² + γ L_S ρ (q E‖g‖² + λ²)
              + L_S γ² [(1 + 2 L_S² ρ² q) E‖g‖² + 2 L_S² ρ² λ²],

by smoothness, with ‖g(y) − g(x)‖ ≤ L_S ρ ((1 − λ)‖g(x)‖ + λ) at the ascent point y. Expected residual, E‖g‖² ≤
2Aδ + B‖∇f‖² + C, and μ-PL, ‖∇f‖² ≥ 2μδ, turn it into E δ⁺ ≤ (1 − γμ) δ + γμ N where ρ < ρ* and γ ≤ γ*(ρ), which is
where `rho_star`, `gamma_star` and `neighbourhood` come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from trainers import catalog
from trainers.problems import Problem
from trainers.sampling import importance_probabilities, mixture_probabilities
from trainers.schedules import Schedule, learning_rate_at

SAMPLINGS = tuple(facts.name for facts in catalog.SAMPLINGS.values() if facts.is_static)
"""Those whose constants are known: their probabilities do not depend on x."""


@dataclass(frozen=True, slots=True)
class ExpectedResidual:
    """Constants of E‖g(x)‖² ≤ 2A (f(x) − f*) + B ‖∇f(x)‖² + C, all at least 0, with C = 2Aσ*.

    L_S: g is the gradient of an L_S-smooth function, whatever was drawn.
    """

    A: float
    B: float
    C: float
    L_S: float


class StepSizes(NamedTuple):
    """ρ of the ascent and γ of the descent."""

    rho: float
    gamma: float


def independent_draws(smoothness: Tensor, probabilities: Tensor, *, draws: int, sigma_star: float) -> ExpectedResidual:
    """τ independent draws with these probabilities and the weights 1/(τ n p_i): A = L_S/τ, B = 1 − 1/τ.

    L_S = max L_i/(n p_i): L_max for uniform draws, the mean L_i for p_i ∝ L_i. It holds as E‖g‖² of one draw is
    (1/n) Σ ‖∇f_i‖²/(n p_i), and ‖∇f_i‖² ≤ 2 L_i (f_i − inf f_i).
    smoothness, probabilities: (n,), positive. A mixture with the uniform distribution, (1 − α) L_i/Σ L_j + α/n, has
    L_S ≤ min{L_max/α, L_avg/(1 − α)}.
    """
    L_S = float((smoothness / (len(smoothness) * probabilities)).max())  # noqa: N806 (the paper's letter)
    A = L_S / draws  # noqa: N806
    return ExpectedResidual(A, 1 - 1 / draws, 2 * A * sigma_star, L_S)


def nice(smoothness: Tensor, *, draws: int, sigma_star: float) -> ExpectedResidual:
    """τ of n without replacement, each set of τ equally likely: A = (n−τ)L_max / (τ(n−1)), B = n(τ−1) / (τ(n−1)).

    smoothness: (n,), n at least 2. draws: τ, from 1 to n.
    """
    n, L_max = len(smoothness), float(smoothness.max())  # noqa: N806
    A = (n - draws) * L_max / (draws * (n - 1))  # noqa: N806
    return ExpectedResidual(A, n * (draws - 1) / (draws * (n - 1)), 2 * A * sigma_star, L_max)


def full_gradient(L: float) -> ExpectedResidual:  # noqa: N803
    """No sampling: A = C = 0, B = 1, and L_S is f's own L."""
    return ExpectedResidual(0.0, 1.0, 0.0, L)


def rho_star(er: ExpectedResidual, *, mu: float, lam: float) -> float:
    """ρ* = μ / {L_S [μ + 2(Bμ+A) q]} (Theorem 3.2): constant step sizes need ρ < ρ*."""
    return mu / (er.L_S * _ascent_cost(er, mu, lam))


def gamma_star(er: ExpectedResidual, *, mu: float, lam: float, rho: float) -> float:
    """γ*(ρ) = {μ − L_S ρ [μ + 2(Bμ+A) q]} / {2 L_S (Bμ+A)(1 + 2 L_S² ρ² q)} (Theorem 3.2); it falls in ρ, to 0 at ρ*.

    Raises ValueError where ρ lies outside [0, ρ*).
    """
    limit = rho_star(er, mu=mu, lam=lam)
    if not 0 <= rho < limit:
        raise ValueError(f"rho must lie in [0, rho*) with rho* = {limit:.6g} for lambda = {lam:g}, got {rho!r}")
    remaining = mu - er.L_S * rho * _ascent_cost(er, mu, lam)
    return remaining / (2 * er.L_S * (er.B * mu + er.A) * (1 + 2 * (er.L_S * rho * (1 - lam)) ** 2))


def simplified_step_sizes(er: ExpectedResidual, *, mu: float, lam: float) -> StepSizes:
    """The form of the authors' experiments: ρ = min{1, μ/(2(Bμ+A)q)} / (4L_S), γ = μ / (8(Bμ+A)L_S).

    ρ lies in [¼ρ*, ½ρ*], and γ is at most γ*(ρ). (They write γ = min{2, μ/(8(Bμ+A))}/L_S, whose 2 is never reached,
    as Bμ + A ≥ μ for every sampling.)
    """
    cost = (er.B * mu + er.A) * (1 - lam) ** 2
    share = 1.0 if 2 * cost <= mu else mu / (2 * cost)
    return StepSizes(share / (4 * er.L_S), mu / (8 * (er.B * mu + er.A) * er.L_S))


def decreasing_step_sizes(t: int, *, mu: float, largest: StepSizes) -> StepSizes:
    """ρ_t = min(ρ, 1/(2t+1)), γ_t = min(γ, (2t+1) / ((t+1)² μ)) at step t = 0, 1, … (Theorem 3.5).

    largest: ρ < ρ* and γ ≤ γ*(ρ), hence γ_t ≤ γ*(ρ_t) at every t. They lead to the minimum itself, δ_t = O(1/t).
    """
    return StepSizes(
        rho=Schedule("decreasing", start=largest.rho).value_at(t + 1),
        gamma=learning_rate_at("decreasing", t, lr=largest.gamma, total_steps=t + 1, mu=mu),
    )


def nonconvex_step_sizes(er: ExpectedResidual, *, lam: float, steps: int) -> StepSizes:
    """Sizes for functions that need not be PL (Theorem 3.7), both O(T^−½) for T steps.

    ρ = min{1/(4L_S), 1/(8BL_S q), 1/(L_S√T)}, γ = min{1/(9BL_S), 1/(L_S√T)}: then min_t E‖∇f(x_t)‖² is O(T^−½).
    """
    ascent, descent = 8 * er.B * (1 - lam) ** 2, 9 * er.B
    return StepSizes(
        rho=1 / (er.L_S * max(4, ascent, math.sqrt(steps))),
        gamma=1 / (er.L_S * max(descent, math.sqrt(steps))),
    )


def neighbourhood(er: ExpectedResidual, sizes: StepSizes, *, mu: float, lam: float) -> float:
    """N = (L_S/μ) {C [γ + ρq (1 + 2γρL_S²)] + ρλ² (1 + 2γρL_S²)}: where E δ ends, at most, with constant sizes.

    0 only where C is (interpolation, or the full gradient) and λ or ρ is.
    """
    rho, gamma = sizes
    excess = rho * (1 + 2 * gamma * rho * er.L_S**2)
    return er.L_S / mu * (er.C * (gamma + excess * (1 - lam) ** 2) + excess * lam**2)


def _ascent_cost(er: ExpectedResidual, mu: float, lam: float) -> float:
    return mu + 2 * (er.B * mu + er.A) * (1 - lam) ** 2


@dataclass(frozen=True)
class Theory:
    """What the theorems say of one run on a problem: plain SGD descent, constant λ, steps of one kind of sampling.

    sampling: "uniform_with_replacement" and "lipschitz" (p_i ∝ L_i, mixed with `uniform_share`/n) take the rows of
    independent draws, "nice" that of τ-nice sampling. "uniform", a fresh permutation every epoch, takes the τ-nice row
    too: that is how each of its steps is distributed by itself. They are not independent of each other, though, so
    that its bound is the one of independent τ-nice steps, proven for those and not for it; no run reports it.
    batch_size: τ, in every step; where τ is n, without replacement, the gradient is the full one.
    lam: λ in [0, 1].
    Raises ValueError, with the rule and the value, for what does not fit these.
    """

    problem: Problem
    sampling: str
    batch_size: int
    lam: float
    uniform_share: float = 0.0

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(map(repr, SAMPLINGS))}, got {self.sampling!r}")
        size = len(self.problem.targets)
        if not 1 <= self.batch_size <= size:
            raise ValueError(f"batch_size must lie in [1, {size}], the number of examples, got {self.batch_size!r}")
        for name, value in (("lam", self.lam), ("uniform_share", self.uniform_share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")

    @cached_property
    def expected_residual(self) -> ExpectedResidual:
        """A, B, C and L_S of this sampling."""
        smoothness, sigma_star, draws = self.problem.smoothness, self.problem.sigma_star, self.batch_size
        match self.sampling:
            case "uniform" | "nice":
                if draws == len(smoothness):
                    return full_gradient(self.problem.L)
                return nice(smoothness, draws=draws, sigma_star=sigma_star)
            case "uniform_with_replacement":
                probabilities = torch.full_like(smoothness, 1 / len(smoothness))
            case "lipschitz":
                probabilities = mixture_probabilities(importance_probabilities(smoothness), self.uniform_share)
            case _:
                raise NotImplementedError(f"the constants of {self.sampling!r} sampling are not derived yet")
        return independent_draws(smoothness, probabilities, draws=draws, sigma_star=sigma_star)

    @property
    def rho_star(self) -> float:
        """ρ*."""
        return rho_star(self.expected_residual, mu=self.problem.mu, lam=self.lam)

    @property
    def rho(self) -> float:
        """½ρ*, a choice of ours, as the theorem leaves no γ at ρ* itself; the paper's experiments have the smaller one
        of `simplified_step_sizes`."""
        return 0.5 * self.rho_star

    def gamma_at(self, rho: float) -> float:
        """γ*(ρ). Raises ValueError where ρ lies outside [0, ρ*)."""
        return gamma_star(self.expected_residual, mu=self.problem.mu, lam=self.lam, rho=rho)

    def covers(self, gamma: float, rho: float) -> bool:
        """Whether the bounds hold for these step sizes: 0 ≤ ρ < ρ* and γ ≤ γ*(ρ)."""
        return 0 <= rho < self.rho_star and 0 <= gamma <= self.gamma_at(rho)

    def neighbourhood(self, gamma: float, rho: float) -> float:
        """N of constant step sizes."""
        return neighbourhood(self.expected_residual, StepSizes(rho, gamma), mu=self.problem.mu, lam=self.lam)

    def bound(self, t: int, delta_0: float, gamma: float, rho: float) -> float:
        """(1 − γμ)^t δ_0 + N, which E δ_t does not exceed after t steps of these constant sizes (Theorem 3.2).

        delta_0: δ at the initial point. Raises ValueError for sizes that the theorem does not cover.
        """
        self._require_covered(gamma, rho)
        return float((1 - gamma * self.problem.mu) ** t * delta_0 + self.neighbourhood(gamma, rho))

    def next_bound(self, bound: float, gamma: float, rho: float) -> float:
        """(1 − γμ) bound + γμ N, which E δ does not exceed after one step from an E δ of at most `bound`.

        Repeated from δ_0, it bounds any sequence of covered step sizes, the decreasing ones among them.
        Raises ValueError for sizes that are not covered.
        """
        self._require_covered(gamma, rho)
        shrunk = gamma * self.problem.mu
        return (1 - shrunk) * bound + shrunk * self.neighbourhood(gamma, rho)

    def _require_covered(self, gamma: float, rho: float) -> None:
        limit = self.gamma_at(rho)
        if not 0 <= gamma <= limit:
            raise ValueError(f"gamma must lie in [0, gamma*] with gamma* = {limit:.6g} at rho = {rho:g}, got {gamma!r}")
