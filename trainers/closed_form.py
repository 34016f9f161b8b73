"""Steps of Unified SAM on a synthetic problem, its gradients written out: what needs a million steps needs no autograd.

With A, b and w a batch's rows, targets and weights, the gradient at x is Aᵀ(w φ′(Ax, b))/τ + r w̄ x. In NumPy a step of
one index and 100 columns takes a twentieth of what the model, autograd and the optimizer take, whose every tensor costs
more than its arithmetic (docs/benchmarks.md). The numbers are theirs, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from trainers.problems import Problem
from trainers.sampling import MiniBatch
from trainers.unified_sam.ascent import ascent_scale

_Array = NDArray[np.float64]


class Sizes(NamedTuple):
    """Of one step: the learning rate, and ρ and λ of the ascent before it."""

    lr: float
    rho: float
    lam: float


@dataclass(slots=True)
class StepSums:
    """Sums over steps, those left out whose first gradient has no finite norm.

    loss: of the examples' weighted losses with their regulariser. grad_norm, perturbation_norm: over `steps` steps.
    examples: of these steps. skipped: steps that left x where it was, as a gradient of theirs has no finite norm.
    """

    loss: float = 0.0
    grad_norm: float = 0.0
    perturbation_norm: float = 0.0
    examples: int = 0
    steps: int = 0
    skipped: int = 0


class ClosedFormSteps:
    """x⁺ = x − γ g(x + s·g(x)), with the s of `ascent_scale`, for the batches of a problem, on the CPU in float64.

    The descent is plain: no momentum, no weight decay, no limit on a norm.
    """

    def __init__(self, problem: Problem) -> None:
        self._features: _Array = np.ascontiguousarray(problem.features.numpy())
        self._targets: _Array = problem.targets.numpy()
        self._regulariser = problem.regulariser
        self._value, self._slope = _LOSSES[problem.settings.kind]

    def run(
        self, x: Tensor, batches: Sequence[MiniBatch], sizes: Callable[[int], Sizes]
    ) -> tuple[StepSums, list[Tensor]]:
        """Takes one step a batch from x, (d,), which is changed in place.

        sizes: of the step of each batch, from 0.
        Returns the sums, and for each batch the losses, (b,), of its examples before the step, without weights and
        regulariser. NumPy's BLAS takes as many threads as torch does, in the whole process as torch's number is.
        """
        sums, losses = StepSums(), []
        point = x.numpy()
        limit = _thread_pools().limit(limits=torch.get_num_threads(), user_api="blas")
        with limit, np.errstate(all="ignore"):  # what is not finite is seen to by the norms
            for step, batch in enumerate(batches):
                losses.append(self._step(point, batch.indices.numpy(), batch.weights.numpy(), sizes(step), sums))
        return sums, [torch.from_numpy(of_batch) for of_batch in losses]

    def _step(
        self, x: _Array, indices: NDArray[np.int64], weights: NDArray[np.float32], at: Sizes, sums: StepSums
    ) -> _Array:
        rows, targets = self._features.take(indices, 0), self._targets.take(indices)
        shares = np.divide(weights, len(indices), dtype=np.float64)
        strength = self._regulariser * float(shares.sum())
        outputs = rows @ x
        losses = self._value(outputs, targets)
        gradient = (shares * self._slope(outputs, targets)) @ rows
        gradient += strength * x
        norm = math.sqrt(gradient @ gradient)
        radius, last_norm = 0.0, norm
        if math.isfinite(norm):
            sums.loss += len(indices) * float(shares @ losses + 0.5 * strength * (x @ x))
            if at.rho > 0:
                scale = float(ascent_scale(norm, rho=at.rho, lam=at.lam))
                radius = scale * norm
                ascended = x + scale * gradient
                gradient = (shares * self._slope(rows @ ascended, targets)) @ rows
                gradient += strength * ascended
                last_norm = math.sqrt(gradient @ gradient)
            sums.grad_norm += norm
            sums.perturbation_norm += radius
            sums.examples += len(indices)
            sums.steps += 1
        if math.isfinite(last_norm):
            x -= at.lr * gradient
        else:
            sums.skipped += 1
        return losses


@cache
def _thread_pools() -> ThreadpoolController:
    """Those of the libraries that are loaded, which takes milliseconds to find out."""
    return ThreadpoolController()


_LOSSES: dict[str, tuple[Callable[[_Array, _Array], _Array], Callable[[_Array, _Array], _Array]]] = {
    "ridge": (
        lambda z, b: 0.5 * np.square(z - b),
        lambda z, b: z - b,
    ),
    "logistic": (
        lambda z, b: np.logaddexp(0.0, -b * z),
        lambda z, b: -b * np.exp(-np.logaddexp(0.0, b * z)),
    ),
}
"""φ(z, b) and its derivative in z, elementwise, for any z: log(1 + e^−bz), and −b/(1 + e^bz) by its logarithm."""
