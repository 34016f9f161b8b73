"""The samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from trainers.catalog import SAMPLINGS
from trainers.facts import Task
from trainers.sampling.gradient_norm import GradientNormSampler
from trainers.sampling.importance import ImportanceSampler
from trainers.sampling.loss import LossSampler
from trainers.sampling.probabilities import importance_probabilities, mixture_probabilities
from trainers.sampling.sampler import Sampler
from trainers.sampling.uniform import NiceSampler, UniformSampler, UniformWithReplacementSampler

_T = TypeVar("_T")

_EQUAL_WEIGHTS: dict[str, Callable[[int, int, torch.Generator], Sampler]] = {
    "uniform": UniformSampler,
    "uniform_with_replacement": UniformWithReplacementSampler,
    "nice": NiceSampler,
}


def build_sampler(
    kind: str,
    *,
    size: int,
    batch_size: int,
    generator: torch.Generator,
    task: Task,
    smoothness: Tensor | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    uniform_share: float = 0.0,
    presample_factor: int = 3,
    passes: int = 2,
) -> Sampler:
    """The sampler of this kind, one of `catalog.SAMPLINGS`, on the generator's device.

    size: n, of the training split. smoothness: (n,), L_i, for lipschitz. score, presample_factor, passes: for
    gradient_norm, see GradientNormSampler. uniform_share: α in [0, 1] of the mixture with the uniform distribution,
    above 0 for loss; the samplings with weights 1 are the same for every α. A kind does not read what it does not need.
    Raises ValueError with the rule and the value.
    """
    if kind not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {kind!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must lie in [1, {size}], the size of the split, got {batch_size}")
    if not 0 <= uniform_share <= 1:
        raise ValueError(f"uniform_share must lie in [0, 1], got {uniform_share!r}")
    if kind == "lipschitz":
        probabilities = lipschitz_probabilities(_given("smoothness", smoothness, kind), size, uniform_share)
        return ImportanceSampler(probabilities, batch_size, generator, task=task, smoothness=smoothness)
    if kind == "gradient_norm":
        if presample_factor < 2:
            raise ValueError(f"presample_factor must be at least 2, got {presample_factor}")
        if passes not in (1, 2):
            raise ValueError(f"passes must be 1 or 2, got {passes}")
        return GradientNormSampler(
            size,
            batch_size,
            generator,
            task=task,
            score=_given("score", score, kind),
            presample_factor=presample_factor,
            passes=passes,
            uniform_share=uniform_share,
        )
    if kind == "loss":
        return LossSampler(size, batch_size, generator, task=task, uniform_share=uniform_share)
    return _EQUAL_WEIGHTS[kind](size, batch_size, generator)


def lipschitz_probabilities(smoothness: Tensor, size: int, uniform_share: float) -> Tensor:
    """(n,): (1 − α)·L_i/ΣL + α/n. Raises ValueError where the L_i, (n,), are not n finite numbers of at least 0."""
    if smoothness.shape != (size,):
        raise ValueError(f"smoothness must be of shape ({size},), got {tuple(smoothness.shape)}")
    if not bool((torch.isfinite(smoothness) & (smoothness >= 0)).all()):
        raise ValueError("every smoothness constant must be finite and at least 0")
    return mixture_probabilities(importance_probabilities(smoothness), uniform_share)


def _given(name: str, value: _T | None, kind: str) -> _T:
    if value is None:
        raise ValueError(f"{kind} sampling needs {name}")
    return value
