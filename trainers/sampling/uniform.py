"""Sampling with weights 1: by permutation, independent draws or independent subsets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from trainers.sampling.diagnostics import uniform_diagnostics
from trainers.sampling.drawing import (
    draw_subsets,
    draw_uniformly,
    shuffle_rows,
    subsets_cost_less_together,
    uniform_numbers,
)
from trainers.sampling.sampler import MiniBatch, load_generator


class _EqualWeights(ABC):
    """What the samplers with weights 1 have in common; they look at no loss."""

    def __init__(self, size: int, batch_size: int, generator: torch.Generator) -> None:
        self._size, self._batch_size, self._generator = size, batch_size, generator
        self._ones = torch.ones(batch_size, device=generator.device)

    @abstractmethod
    def _epoch(self) -> Iterable[Tensor]:
        """The indices of each batch of the next epoch."""

    def batches(self) -> Iterator[MiniBatch]:
        return iter(equally_weighted(self._epoch(), self._ones))

    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        return

    def diagnostics(self) -> dict[str, float]:
        return uniform_diagnostics(self._size, self._batch_size)

    def state_dict(self) -> dict[str, object]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        load_generator(self._generator, state)


class UniformSampler(_EqualWeights):
    """A fresh permutation every epoch."""

    def _epoch(self) -> Iterable[Tensor]:
        return torch.split(random_permutation(self._size, self._generator), self._batch_size)


class UniformWithReplacementSampler(_EqualWeights):
    """Every example of every batch drawn independently."""

    def _epoch(self) -> Iterable[Tensor]:
        numbers = uniform_numbers(self._size, generator=self._generator)
        return torch.split(draw_uniformly(self._size, numbers), self._batch_size)


class NiceSampler(_EqualWeights):
    """τ-nice sampling: every batch is a subset of τ examples, all subsets equally likely, independent of the others.

    Small subsets of many examples are drawn for a whole epoch at once; others are taken from a permutation each, where
    that costs less (see `subsets_cost_less_together`).
    """

    def _epoch(self) -> Iterable[Tensor]:
        size, count = self._size, self._batch_size
        last = size % count
        if not subsets_cost_less_together(size, count):
            counts = size // count * [count] + ([last] if last else [])
            return [random_permutation(size, self._generator)[:b].clone() for b in counts]
        batches = list(self._subsets(count, size // count))
        return batches + list(self._subsets(last, 1)) if last else batches

    def _subsets(self, count: int, subsets: int) -> Tensor:
        """(subsets, count)."""
        chosen = draw_subsets(self._size, uniform_numbers(count, subsets, generator=self._generator))
        return shuffle_rows(chosen.T, uniform_numbers(subsets, count, generator=self._generator))


def equally_weighted(indices: Iterable[Tensor], ones: Tensor) -> list[MiniBatch]:
    """Batches of these indices with weights 1. ones: the weights of a whole batch."""
    return [MiniBatch(some, ones if len(some) == len(ones) else ones[: len(some)]) for some in indices]


def random_permutation(size: int, generator: torch.Generator) -> Tensor:
    """(size,), int64, on the generator's device."""
    return torch.randperm(size, generator=generator, device=generator.device)
