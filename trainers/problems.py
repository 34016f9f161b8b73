"""Synthetic problems with known constants: f(x) = (1/n) Σ f_i(x), f_i(x) = φ(a_iᵀx, b_i) + (r/2)‖x‖², in float64.

φ(z, b) is ½(z − b)² for `ridge` and log(1 + exp(−b z)) for `logistic`. Every constant of the theory of
arXiv 2503.02225 is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.dataset import Dataset, Split
from trainers.facts import Task
from trainers.objective import Objective
from trainers.problem_settings import ProblemSettings

__all__ = ["Problem", "ProblemSettings", "problem"]

_SEED = 0
_NEWTON_STEPS = 200


@dataclass(frozen=True, slots=True)
class _Loss:
    """φ(z, b) and its first and second derivative in z, elementwise; sup φ″ is the largest curvature."""

    task: Task
    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor], Tensor]
    largest_curvature: float


_LOSSES = {
    "ridge": _Loss(
        "regression",
        value=lambda z, b: 0.5 * (z - b).square(),
        slope=lambda z, b: z - b,
        curvature=lambda z, b: torch.ones_like(z),
        largest_curvature=1.0,
    ),
    "logistic": _Loss(
        "binary",
        value=lambda z, b: torch.logaddexp(torch.zeros_like(z), -b * z),
        slope=lambda z, b: -b * torch.sigmoid(-b * z),
        curvature=lambda z, b: torch.sigmoid(z) * torch.sigmoid(-z),
        largest_curvature=0.25,
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One problem and its constants. Points x are (…, d) in float64, any number at once.

    features: (n, d), rows a_i. targets: (n,), b_i.
    smoothness: (n,), L_i, the smallest Lipschitz constant of ∇f_i. L: that of ∇f.
    mu: the largest μ with ‖∇f(x)‖² ≥ 2μ (f(x) − f*) everywhere (PL). Ridge: the Hessian's smallest eigenvalue that is
    not 0. Logistic: r, the constant of strong convexity; far out, where f grows as its regulariser does, the quotient
    ‖∇f(x)‖² / 2(f(x) − f*) comes as close to r as one likes.
    solution: (d,), the minimiser, of least norm where there are several. f_star: its value f*.
    sigma_star: σ* = f* − (1/n) Σ inf f_i, at least 0, and 0 where the problem interpolates.
    """

    settings: ProblemSettings
    features: Tensor
    targets: Tensor
    smoothness: Tensor
    L: float
    mu: float
    solution: Tensor
    f_star: float
    sigma_star: float

    @property
    def regulariser(self) -> float:
        """r."""
        return self.settings.regulariser

    def values(self, x: Tensor) -> Tensor:
        """(…, n): every f_i(x)."""
        return _values(self._loss, self.features, self.targets, self.regulariser, x)

    def value(self, x: Tensor) -> Tensor:
        """(…): f(x)."""
        return self.values(x).mean(-1)

    def gradients(self, x: Tensor) -> Tensor:
        """(…, n, d): every ∇f_i(x)."""
        slopes = self._loss.slope(x @ self.features.T, self.targets)
        return slopes.unsqueeze(-1) * self.features + self.regulariser * x.unsqueeze(-2)

    def gradient(self, x: Tensor) -> Tensor:
        """(…, d): ∇f(x)."""
        return _gradient(self._loss, self.features, self.targets, self.regulariser, x)

    def hessian(self, x: Tensor) -> Tensor:
        """(d, d): ∇²f(x) at one point x; the same at every x for ridge."""
        return _hessian(self._loss, self.features, self.targets, self.regulariser, x)

    def suboptimality(self, x: Tensor) -> Tensor:
        """(…): δ = f(x) − f*, never negative. Ridge: from the distance to x*, so that nothing cancels near it."""
        if self.settings.kind == "logistic":
            return (self.value(x) - self.f_star).clamp_min(0)
        error = x - self.solution
        curved = (error @ self.features.T).square().mean(-1)
        return 0.5 * (curved + self.regulariser * error.square().sum(-1))

    def dataset(self) -> Dataset:
        """The rows, in float64. Validation and test are the training rows: it is a problem of optimisation, and so f
        itself is what a search minimises; where b is independent of A, fresh rows would only reward x = 0."""
        rows = Split(self.features, self.targets)
        return Dataset(rows, rows, rows, Objective(self._loss.task, self.regulariser))

    @property
    def _loss(self) -> _Loss:
        return _LOSSES[self.settings.kind]


@lru_cache(maxsize=8)
def problem(settings: ProblemSettings) -> Problem:
    """The problem of these settings; treat its tensors as read-only, they are shared."""
    loss, r = _LOSSES[settings.kind], settings.regulariser
    features, left, singular_values, right, targets = _drawn(settings)
    squared_norms = features.square().sum(1)
    curvature, n = loss.largest_curvature, settings.n_samples
    if settings.kind == "ridge":
        solution, f_star = _ridge_minimum(settings, left, singular_values, right, targets)
        infima = _ridge_infima(squared_norms, targets, r)
        has_null_space = settings.n_features > len(singular_values)
        mu = r if has_null_space and r > 0 else float(singular_values.min()) ** 2 / n + r
    else:
        solution = _logistic_minimiser(features, targets, r)
        f_star = float(_values(loss, features, targets, r, solution).mean())
        infima = _logistic_infima(squared_norms, r)
        mu = r
    return Problem(
        settings,
        features,
        targets,
        smoothness=curvature * squared_norms + r,
        L=curvature * float(singular_values.max()) ** 2 / n + r,
        mu=mu,
        solution=solution,
        f_star=f_star,
        sigma_star=max(0.0, f_star - float(infima.mean())),
    )


def _drawn(settings: ProblemSettings) -> tuple[Tensor, ...]:
    """A, its singular value decomposition (n, k), (k,), (d, k), and the targets. A square A is symmetric.

    The paper's experiment (c) has the eigenvalues 1, 10 and 98 from U[1, 2], hence the order of the draws.
    """
    generator = np.random.RandomState(_SEED)
    n, d, kappa = settings.n_samples, settings.n_features, settings.condition_number
    rank = min(n, d)
    if rank == 1:
        singular_values = np.ones(1)
    elif settings.spectrum == "geometric":
        singular_values = np.geomspace(kappa**-0.5, kappa**0.5, rank)
    else:
        singular_values = np.concatenate(([1.0, kappa], generator.uniform(1, min(2.0, kappa), rank - 2)))
    left, _ = np.linalg.qr(generator.standard_normal((n, rank)))
    right = left if n == d else np.linalg.qr(generator.standard_normal((d, rank)))[0]
    features = left @ np.diag(singular_values) @ right.T
    if settings.targets == "independent":
        targets = generator.standard_normal(n)
    else:
        targets = features @ generator.standard_normal(d)
    if settings.kind == "logistic":
        targets = np.where(targets < 0, -1.0, 1.0)
    return tuple(map(torch.from_numpy, (features, left, singular_values, right, targets)))


def _values(loss: _Loss, features: Tensor, targets: Tensor, regulariser: float, x: Tensor) -> Tensor:
    penalty = 0.5 * regulariser * x.square().sum(-1, keepdim=True)
    return loss.value(x @ features.T, targets) + penalty


def _gradient(loss: _Loss, features: Tensor, targets: Tensor, regulariser: float, x: Tensor) -> Tensor:
    return loss.slope(x @ features.T, targets) @ features / len(targets) + regulariser * x


def _hessian(loss: _Loss, features: Tensor, targets: Tensor, regulariser: float, x: Tensor) -> Tensor:
    n, d = features.shape
    curvatures = loss.curvature(features @ x, targets)
    return features.T @ (curvatures.unsqueeze(1) * features) / n + regulariser * torch.eye(d, dtype=features.dtype)


def _ridge_minimum(
    settings: ProblemSettings, left: Tensor, singular_values: Tensor, right: Tensor, targets: Tensor
) -> tuple[Tensor, float]:
    """x* and f* from A = UΣVᵀ, which also holds where AᵀA is singular and r is 0."""
    n, r = settings.n_samples, settings.regulariser
    coefficients = left.T @ targets
    damped = singular_values.square() + n * r
    solution = right @ (singular_values * coefficients / damped)
    if settings.interpolates:
        return solution, 0.0
    outside = targets - left @ coefficients
    residual = (n * r / damped * coefficients.square()).sum() + outside.square().sum()
    return solution, float(residual) / (2 * n)


def _ridge_infima(squared_norms: Tensor, targets: Tensor, regulariser: float) -> Tensor:
    """(n,): inf f_i = ½ b_i² r / (‖a_i‖² + r), at x = a_i b_i / (‖a_i‖² + r)."""
    return 0.5 * targets.square() * regulariser / (squared_norms + regulariser)


def _logistic_minimiser(features: Tensor, targets: Tensor, regulariser: float) -> Tensor:
    """(d,): x* by Newton's method, its steps halved until f falls enough, down to where float64 no longer improves."""
    terms = _LOSSES["logistic"], features, targets, regulariser
    x = torch.zeros(features.shape[1], dtype=features.dtype)
    last_decrement = float("inf")
    for _ in range(_NEWTON_STEPS):
        value, gradient = _values(*terms, x).mean(), _gradient(*terms, x)
        direction = torch.linalg.solve(_hessian(*terms, x), gradient)
        decrement = gradient @ direction  # about 2 (f(x) − f*)
        is_close = bool(decrement < 1e-8 * value)
        if is_close and decrement >= last_decrement / 2:
            return x
        share = 1.0
        while not is_close and _values(*terms, x - share * direction).mean() > value - 0.25 * share * decrement:
            share /= 2
        x = x - share * direction
        last_decrement = float(decrement)
    raise ArithmeticError(f"Newton's method did not find the minimum in {_NEWTON_STEPS} steps")


def _logistic_infima(squared_norms: Tensor, regulariser: float) -> Tensor:
    """(n,): inf f_i = min over the margin m = b aᵀx of log(1 + exp(−m)) + r m² / (2‖a_i‖²).

    The derivative is negative at 0, rising and concave above it, so that Newton's method from 0 rises to the root.
    """
    ratio = regulariser / squared_norms
    margin = torch.zeros_like(ratio)
    for _ in range(_NEWTON_STEPS):
        slope = ratio * margin - torch.sigmoid(-margin)
        margin = margin - slope / (ratio + torch.sigmoid(margin) * torch.sigmoid(-margin))
    return torch.logaddexp(torch.zeros_like(margin), -margin) + 0.5 * ratio * margin.square()
