"""What the paper has published, as data."""

from __future__ import annotations

from service.analysis.aggregation import Summary
from service.study import Scalar

SOURCE = (
    "D. Oikonomou, N. Loizou, Sharpness-Aware Minimization: General Analysis and Improved Rates, ICLR 2025, "
    "arXiv 2503.02225, Table 2"
)
SEEDS = 3
RHOS = (0.1, 0.2, 0.3, 0.4)
LAMBDAS: tuple[Scalar, ...] = (0.0, 0.5, 1.0, "1/t", "1-1/t")


def _accuracy(mean: float, std: float) -> Summary:
    return Summary(mean=mean / 100, std=std / 100, n=SEEDS, low=None, high=None)


_ROWS = {
    0.1: ((95.70, 0.01), (95.68, 0.11), (95.90, 0.08), (95.84, 0.07), (95.81, 0.03)),
    0.2: ((95.80, 0.05), (95.77, 0.09), (95.93, 0.07), (95.71, 0.13), (95.98, 0.10)),
    0.3: ((95.35, 0.30), (95.88, 0.10), (95.95, 0.09), (95.68, 0.02), (95.99, 0.06)),
    0.4: ((95.46, 0.02), (95.76, 0.10), (95.62, 0.05), (95.46, 0.27), (95.79, 0.07)),
}

WRN_28_10_CIFAR10: dict[tuple[float, Scalar], Summary] = {
    (rho, lam): _accuracy(*cell) for rho, row in _ROWS.items() for lam, cell in zip(LAMBDAS, row, strict=True)
}
"""Test accuracy of WRN-28-10 on CIFAR-10 by (ρ, λ), mean and standard deviation over 3 seeds."""

SGD_WRN_28_10_CIFAR10 = _accuracy(95.35, 0.06)
"""The same without any perturbation."""
