"""Unified SAM on the synthetic problems in plain NumPy, float64: many runs at once, nothing of the training loop."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from trainers.problems import Problem
from trainers.theory import Theory

Array = NDArray[np.float64]
Sizes = Callable[[int], tuple[float | Array, float | Array]]
"""ρ and γ of step t = 0, 1, …"""
Draws = tuple[NDArray[np.int64], Array]
"""Indices and weights of every step, (steps, runs, τ); the weights are those of a mean over the τ."""


def importance(theory: Theory) -> tuple[Array, Array]:
    """p_i = (1 − α) L_i/Σ L_j + α/n, and the weights 1/(n p_i); (n,) each."""
    L, n = theory.problem.smoothness.numpy(), len(theory.problem.targets)  # noqa: N806
    p = (1 - theory.uniform_share) * L / L.sum() + theory.uniform_share / n
    return p, 1 / (n * p)


def drawn(theory: Theory, steps: int, runs: int, *, seed: int = 0) -> Draws:
    """Independent runs of the sampling, each with its own draws."""
    generator = np.random.default_rng(seed)
    n, tau = len(theory.problem.targets), theory.batch_size
    shape = (steps, runs, tau)
    if theory.sampling == "uniform_with_replacement":
        return generator.integers(n, size=shape), np.ones(shape)
    if theory.sampling == "nice":
        return generator.random((steps, runs, n)).argsort(-1)[:, :, :tau], np.ones(shape)
    if theory.sampling == "uniform":
        epochs = math.ceil(steps * tau / n)
        orders = generator.random((epochs, runs, n)).argsort(-1)  # a permutation per epoch and run
        return orders.reshape(epochs, runs, n // tau, tau).swapaxes(1, 2).reshape(-1, runs, tau)[:steps], np.ones(shape)
    p, weights = importance(theory)
    indices = generator.choice(n, size=shape, p=p)
    return indices, weights[indices]


def unified_sam(found: Problem, draws: Draws, sizes: Sizes, start: Array, *, lam: float) -> Iterator[Array]:
    """The points of all runs, (runs, d), after each step. start: (d,), or (runs, d). sizes: ρ and γ at t."""
    indices, weights = draws
    features, targets, r = found.features.numpy(), found.targets.numpy(), found.regulariser
    is_ridge = found.settings.kind == "ridge"
    x = np.broadcast_to(start, (indices.shape[1], len(found.solution)))
    for t in range(len(indices)):
        a, b, w = features[indices[t]], targets[indices[t]], weights[t] / indices.shape[2]

        def gradient(x: Array, a: Array = a, b: Array = b, w: Array = w) -> Array:
            z = (a * x[:, None]).sum(2)
            slopes = z - b if is_ridge else -b / (1 + np.exp(b * z))
            return ((w * slopes)[:, :, None] * a).sum(1) + r * w.sum(1, keepdims=True) * x

        rho, gamma = sizes(t)
        g = gradient(x)
        norms = np.maximum(np.sqrt((g * g).sum(1, keepdims=True)), 1e-300)
        x = x - gamma * gradient(x + rho * (1 - lam + lam / norms) * g)
        yield x
