"""Importance sampling by probabilities that do not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from trainers.catalog import SMALLEST_PROBABILITY
from trainers.facts import Task
from trainers.sampling.diagnostics import NO_EPOCH, ObservedLosses, importance_diagnostics
from trainers.sampling.drawing import draw_by_cumulative, uniform_numbers
from trainers.sampling.probabilities import importance_weights
from trainers.sampling.sampler import MiniBatch, load_generator, split_batches


class ImprobableExampleError(ValueError):
    """An example is less probable than what a draw resolves: it would never be drawn."""


class ImportanceSampler:
    """Independent draws from any probabilities p, with weights w_i = 1/(n p_i); an epoch is n draws.

    probabilities: (n,), on the generator's device. smoothness: (n,), L_i, for the variance ratio, where there are any.
    Raises ValueError for probabilities that are not a distribution, and where an example would never be drawn, as that
    would bias the gradient.
    """

    def __init__(
        self,
        probabilities: Tensor,
        batch_size: int,
        generator: torch.Generator,
        *,
        task: Task,
        smoothness: Tensor | None = None,
    ) -> None:
        check_probabilities(probabilities)
        self._cumulative = probabilities.double().cumsum(0)
        self._weights = importance_weights(probabilities.double()).float()
        self._batch_size, self._generator = batch_size, generator
        self._smoothness = smoothness
        self._drawn: MiniBatch | None = None  # all of the last epoch
        self._observed = ObservedLosses(task)

    def batches(self) -> Iterator[MiniBatch]:
        numbers = uniform_numbers(len(self._cumulative), generator=self._generator)
        indices = draw_by_cumulative(self._cumulative, numbers)
        weights = self._weights.index_select(0, indices)
        self._drawn = MiniBatch(indices, weights)
        self._observed.clear()
        return iter(split_batches(indices, weights, self._batch_size))

    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        self._observed.add(losses)

    def diagnostics(self) -> dict[str, float]:
        if self._drawn is None:
            raise RuntimeError(NO_EPOCH)
        weights, smoothness = self._drawn.weights, self._smoothness
        if smoothness is not None:
            smoothness = smoothness.index_select(0, self._drawn.indices)
        return importance_diagnostics(weights, self._batch_size, self._observed.second_moments(weights, smoothness))

    def state_dict(self) -> dict[str, object]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        load_generator(self._generator, state)


def check_probabilities(probabilities: Tensor) -> None:
    """Raises ValueError with the rule and the value where these, (n,), cannot be drawn from without bias."""
    total, smallest = float(probabilities.double().sum()), float(probabilities.min())
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"probabilities must have the sum 1, got {total!r}")
    if not smallest >= SMALLEST_PROBABILITY:
        raise ImprobableExampleError(
            f"every probability must be at least {SMALLEST_PROBABILITY:g}, or its example would never be drawn, "
            f"got {smallest!r}; a uniform_share above 0 sees to it"
        )
