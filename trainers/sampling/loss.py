"""Importance sampling by the loss that an example had when it was last seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from trainers.catalog import SMALLEST_PROBABILITY
from trainers.facts import Task
from trainers.sampling.diagnostics import ObservedLosses, importance_diagnostics, in_one
from trainers.sampling.drawing import draw_with_replacement, uniform_numbers
from trainers.sampling.probabilities import importance_probabilities, importance_weights, mixture_probabilities
from trainers.sampling.sampler import MiniBatch, load_generator, saved_tensor, split_batches

_UNSEEN = -1.0
_MOST_REFRESHES, _FEWEST_STEPS = 16, 32


class LossSampler:
    """Independent draws with p_i = (1 − α)·s_i/Σs + α/n, s_i the last seen loss, and weights 1/(n p_i) ≤ 1/α.

    An example not yet seen counts as the mean of those that were; at first all are drawn alike. The scores are stale,
    and the gradient unbiased nevertheless: p is known before a batch is drawn, and given p the draws depend on nothing.
    So p may also serve several batches, whose draws are independent. It is computed up to 16 times an epoch, which is
    often against the scores' own age of about an epoch and costs little whatever n is, and no more than once in 32
    steps, or once an epoch, which costs little however short a step is. The losses become scores at the same times.

    uniform_share: α in (0, 1], or an example of loss 0 would never be drawn again; α/n at least SMALLEST_PROBABILITY.
    Raises ValueError for others.
    """

    def __init__(
        self, size: int, batch_size: int, generator: torch.Generator, *, task: Task, uniform_share: float
    ) -> None:
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must lie in (0, 1] for loss sampling, got {uniform_share!r}")
        if uniform_share < size * SMALLEST_PROBABILITY:
            raise ValueError(
                f"uniform_share must be at least {size * SMALLEST_PROBABILITY:g} for loss sampling of {size} examples, "
                f"or one of loss 0 would never be drawn again, got {uniform_share!r}"
            )
        self._batch_size, self._generator, self._uniform_share = batch_size, generator, uniform_share
        self._scores = torch.full((size,), _UNSEEN, dtype=torch.float64, device=generator.device)
        self._drawn: list[Tensor] = []
        self._observed = ObservedLosses(task)
        self._new_indices: list[Tensor] = []  # of the batches whose losses the scores do not know of yet
        self._new_losses: list[Tensor] = []

    @property
    def probabilities(self) -> Tensor:
        """(n,), float64: p as it would be if it were computed now."""
        self._write()
        is_seen = self._scores >= 0
        mean = torch.where(is_seen, self._scores, 0.0).sum() / is_seen.sum()
        scores = torch.where(is_seen, self._scores, mean)
        return mixture_probabilities(importance_probabilities(scores), self._uniform_share)

    def batches(self) -> Iterator[MiniBatch]:
        size, batch_size = len(self._scores), self._batch_size
        self._drawn = []
        self._observed.clear()
        steps = math.ceil(size / batch_size)
        refreshes = min(_MOST_REFRESHES, max(1, steps // _FEWEST_STEPS))
        draws = math.ceil(steps / refreshes) * batch_size
        for start in range(0, size, draws):
            numbers = uniform_numbers(min(draws, size - start), generator=self._generator)
            probabilities = self.probabilities
            indices = draw_with_replacement(probabilities, numbers)
            weights = importance_weights(probabilities).index_select(0, indices).float()
            self._drawn.append(weights)
            yield from split_batches(indices, weights, batch_size)

    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        """The losses become the scores. Of an example that the batch has twice, it is the later one."""
        self._observed.add(losses)
        self._new_indices.append(batch.indices)
        self._new_losses.append(losses)

    def diagnostics(self) -> dict[str, float]:
        weights = in_one(self._drawn)
        return importance_diagnostics(weights, self._batch_size, self._observed.second_moments(weights))

    def state_dict(self) -> dict[str, object]:
        self._write()
        return {"generator": self._generator.get_state(), "scores": self._scores.clone()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        scores = saved_tensor(state, "scores")
        if scores.shape != self._scores.shape:
            raise ValueError(f"the state's scores must be of {len(self._scores)} examples, got {tuple(scores.shape)}")
        load_generator(self._generator, state)
        self._scores.copy_(scores)
        self._new_indices, self._new_losses = [], []

    def _write(self) -> None:
        """Makes each example's last finite loss since the last time its score, in no order that could vary."""
        if not self._new_losses:
            return
        indices, losses = torch.cat(self._new_indices), torch.cat(self._new_losses)
        self._new_indices, self._new_losses = [], []
        places = torch.where(losses - losses == 0, torch.arange(len(losses), device=losses.device), -1)
        last = torch.full_like(self._scores, -1, dtype=torch.int64).scatter_reduce_(0, indices, places, "amax")
        last = last.index_select(0, indices)
        seen = losses.index_select(0, last.clamp_min(0)).double().clamp_min_(0)
        scores = torch.where(last >= 0, seen, self._scores.index_select(0, indices))
        self._scores.scatter_(0, indices, scores)  # all that go to one place are equal
