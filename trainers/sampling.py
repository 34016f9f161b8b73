"""Mini-batches: which examples, and the weights that keep the stochastic gradient unbiased.

A mini-batch stands for the loss (1/b) Σ w_i f_i over its b examples; every sampler here has E[(1/b) Σ w_i ∇f_i] = ∇f.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainers.catalog import Task

_EMA = 0.9


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """indices: (b,), int64, into the training split. weights: (b,), float32, 1 on average."""

    indices: Tensor
    weights: Tensor


class Sampler(Protocol):
    """Draws the mini-batches of one epoch after the other; its state between epochs can be saved and loaded."""

    def batches(self) -> Iterator[MiniBatch]:
        """The mini-batches of the next epoch: ⌈n/b⌉ of them, the last one smaller where b does not divide n."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def importance_probabilities(scores: Tensor) -> Tensor:
    """p_i = s_i / Σ s_j, of the scores' shape (n,); uniform where the scores' sum is zero or not finite."""
    total = scores.sum()
    return torch.where(torch.isfinite(total) & (total > 0), scores / total, 1 / len(scores))


def importance_weights(probabilities: Tensor) -> Tensor:
    """w_i = 1 / (n p_i) for each of the n examples that were drawn from; its mean under p is 1."""
    return 1 / (len(probabilities) * probabilities)


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w², a count in [1, b]: how many equally weighted examples the (b,) weights are worth."""
    return weights.sum().square() / weights.square().sum()


def variance_gain(probabilities: Tensor) -> Tensor:
    """τ = √(B Σ p_i²), at least 1: rms over mean of the scores behind the (B,) probabilities.

    Where the scores are the gradients' norms, drawing by them divides the second moment of one drawn, weighted
    gradient by τ² (Katharopoulos and Fleuret 2018, section 3.3).
    """
    return torch.sqrt(len(probabilities) * probabilities.square().sum())


def gradient_norm_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """(b,): s_i = ‖softmax(z_i) − y_i‖₂, the norm of the cross-entropy's gradient at the logits z, (b, classes).

    Up to a constant it bounds the norm of the gradient of the parameters (Katharopoulos and Fleuret 2018).
    """
    residuals = logits.softmax(1)
    residuals.scatter_add_(1, targets.unsqueeze(1), residuals.new_full((len(targets), 1), -1.0))
    scores: Tensor = torch.linalg.vector_norm(residuals, dim=1)
    return scores


def smoothness_constants(inputs: Tensor, task: Task, *, regulariser: float = 0.0) -> Tensor:
    """(n,), float64: L_i of a linear model on these inputs (n, *shape); a proxy for any other model.

    Least squares without a bias: ‖x_i‖² + r. Softmax regression with a bias: ½(‖x_i‖² + 1) + r, where diag(p) − ppᵀ
    has no eigenvalue above ½. For other models this is, up to its scale, the first layer's.
    """
    squared_norms = inputs.double().flatten(1).square().sum(1)
    curvature = 0.5 * (squared_norms + 1) if task == "classification" else squared_norms
    return curvature + regulariser


class UniformSampler:
    """A fresh permutation every epoch, weights 1."""

    def __init__(self, size: int, batch_size: int, generator: torch.Generator) -> None:
        self._size, self._batch_size, self._generator = size, batch_size, generator

    def batches(self) -> Iterator[MiniBatch]:
        order = _permutation(self._size, self._generator)
        ones = torch.ones(self._batch_size, device=order.device)
        for indices in torch.split(order, self._batch_size):
            yield MiniBatch(indices, ones[: len(indices)])

    def state_dict(self) -> dict[str, object]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        _load_generator(self._generator, state)


class LipschitzSampler:
    """Independent draws with p_i ∝ L_i, weights w_i = 1/(n p_i); an epoch is n draws.

    smoothness: (n,), the L_i, on the generator's device. Raises ValueError where one is not positive and finite, as
    an example that is never drawn would bias the gradient.
    """

    def __init__(self, smoothness: Tensor, batch_size: int, generator: torch.Generator) -> None:
        if not bool((torch.isfinite(smoothness) & (smoothness > 0)).all()):
            raise ValueError("every smoothness constant must be positive and finite")
        self._probabilities = importance_probabilities(smoothness)
        self._weights = importance_weights(self._probabilities).float()
        self._batch_size, self._generator = batch_size, generator

    def batches(self) -> Iterator[MiniBatch]:
        size = len(self._probabilities)
        drawn = torch.multinomial(self._probabilities, size, replacement=True, generator=self._generator)
        for indices in torch.split(drawn, self._batch_size):
            yield MiniBatch(indices, self._weights[indices])

    def state_dict(self) -> dict[str, object]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        _load_generator(self._generator, state)


class GradientNormSampler:
    """Importance sampling by an upper bound of the gradients' norms (Katharopoulos and Fleuret 2018, algorithm 1).

    In an epoch that is on, each batch of b: B = presample_factor·b candidates drawn uniformly and scored, b of them
    drawn with p_i ∝ s_i, weights 1/(B p_i). In one that is off: exactly the uniform sampler's batches, scored as they
    pass so that τ can rise. An epoch is on where, as it begins, τ, the variance gain smoothed over the batches (factor
    0.9), exceeds 1 + B/(3b·passes): scoring costs one forward pass of B, and each pass of a step three of b, counting a
    backward pass as two forward ones.

    Why whole epochs: a permutation that is left because of the scores of its first batches leaves its other batches
    unseen for a reason that depends on them, and the gradient would be biased.

    passes: forward and backward passes of a step, 2 for SAM, 1 where ρ is 0. score: maps indices (m,) to the scores
    (m,) of the current model. Reads τ back to the host once a batch. A batch of one scores τ = 1, so that batch size 1
    stays off.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        generator: torch.Generator,
        *,
        presample_factor: int,
        passes: int,
        score: Callable[[Tensor], Tensor],
    ) -> None:
        self._size, self._batch_size, self._generator = size, batch_size, generator
        self._factor, self._passes, self._score = presample_factor, passes, score
        self._tau = 1.0

    @property
    def is_on(self) -> bool:
        """Whether an epoch that begins now is drawn by importance."""
        return self._tau > 1 + self._factor / (3 * self._passes)

    def batches(self) -> Iterator[MiniBatch]:
        if self.is_on:
            for start in range(0, self._size, self._batch_size):
                yield self._draw(min(self._batch_size, self._size - start))
        else:
            for indices in torch.split(_permutation(self._size, self._generator), self._batch_size):
                yield self._observe(indices)

    def state_dict(self) -> dict[str, object]:
        return {"generator": self._generator.get_state(), "tau": self._tau}

    def load_state_dict(self, state: dict[str, object]) -> None:
        _load_generator(self._generator, state)
        tau = state["tau"]
        if not isinstance(tau, float):
            raise ValueError(f"tau must be a float, got {tau!r}")
        self._tau = tau

    def _draw(self, count: int) -> MiniBatch:
        candidates = torch.randint(
            self._size, (self._factor * count,), generator=self._generator, device=self._generator.device
        )
        probabilities = importance_probabilities(self._score(candidates))
        self._smooth(probabilities)
        drawn = torch.multinomial(probabilities, count, replacement=True, generator=self._generator)
        return MiniBatch(candidates[drawn], importance_weights(probabilities)[drawn])

    def _observe(self, indices: Tensor) -> MiniBatch:
        self._smooth(importance_probabilities(self._score(indices)))
        return MiniBatch(indices, torch.ones(len(indices), device=indices.device))

    def _smooth(self, probabilities: Tensor) -> None:
        self._tau = _EMA * self._tau + (1 - _EMA) * float(variance_gain(probabilities))


def _permutation(size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator, device=generator.device)


def _load_generator(generator: torch.Generator, state: dict[str, object]) -> None:
    saved = state["generator"]
    if not isinstance(saved, Tensor):
        raise ValueError(f"the generator's state must be a tensor, got {type(saved).__name__}")
    generator.set_state(saved)
