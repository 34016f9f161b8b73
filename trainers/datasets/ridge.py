"""Synthetic ridge regression with known constants: experiment (c) of arXiv 2503.02225.

f(x) = (1/n) Σ f_i(x),  f_i(x) = ½ (a_iᵀx − b_i)² + (r/2)‖x‖²,  n = d = 100,  r = 3/n.
A = QΛQᵀ has the eigenvalues 1, 10 and 98 drawn from U[1, 2]; b is standard normal. So f is strongly convex (hence
μ-PL) with μ = 1/n + r = 0.04, and L = 100/n + r = 1.03, while single rows are up to ten times rougher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.dataset import Dataset, Split
from trainers.objective import Objective

_SEED = 0
_N = 100


@dataclass(frozen=True, slots=True)
class RidgeProblem:
    """features: (n, d), rows a_i. targets: (n,), b_i. regulariser: r. All in float64."""

    features: Tensor
    targets: Tensor
    regulariser: float

    def hessian(self) -> Tensor:
        """(d, d): AᵀA/n + r·I, the same at every x; its extreme eigenvalues are μ and L."""
        n, d = self.features.shape
        return self.features.T @ self.features / n + self.regulariser * torch.eye(d, dtype=torch.float64)

    def smoothness(self) -> Tensor:
        """(n,): L_i = ‖a_i‖² + r."""
        return self.features.square().sum(1) + self.regulariser

    def solution(self) -> Tensor:
        """(d,): the minimiser x*."""
        right = self.features.T @ self.targets / len(self.targets)
        solution: Tensor = torch.linalg.solve(self.hessian(), right)
        return solution

    def value(self, x: Tensor) -> Tensor:
        """(): f(x), for x (d,) in float64."""
        residuals = self.features @ x - self.targets
        return 0.5 * residuals.square().mean() + 0.5 * self.regulariser * x.square().sum()


def ridge_problem() -> RidgeProblem:
    """The problem, the same in every run."""
    generator = np.random.RandomState(_SEED)
    eigenvalues = np.concatenate(([1.0, 10.0], generator.uniform(1, 2, _N - 2)))
    orthogonal, _ = np.linalg.qr(generator.standard_normal((_N, _N)))
    features = orthogonal @ np.diag(eigenvalues) @ orthogonal.T
    return RidgeProblem(torch.from_numpy(features), torch.from_numpy(generator.standard_normal(_N)), regulariser=3 / _N)


def load_ridge() -> Dataset:
    """The problem in float32. Validation and test are the training rows: it is a problem of optimisation, b is
    independent of A, and so f itself is what a search minimises; fresh rows would only reward x = 0."""
    problem = ridge_problem()
    rows = Split(problem.features.float(), problem.targets.float())
    return Dataset(rows, rows, rows, Objective("regression", problem.regulariser))
