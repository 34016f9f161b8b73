"""Importance sampling by the loss that an example had when it was last seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from trainers.catalog import Task
from trainers.sampling.diagnostics import ObservedLosses, importance_diagnostics
from trainers.sampling.drawing import draw_with_replacement, uniform_numbers
from trainers.sampling.probabilities import importance_probabilities, importance_weights, mixture_probabilities
from trainers.sampling.sampler import MiniBatch, load_generator, saved_tensor, split_batches

_UNSEEN = -1.0
_REFRESHES = 16


class LossSampler:
    """Independent draws with p_i = (1 − α)·s_i/Σs + α/n, s_i the last seen loss, and weights 1/(n p_i) ≤ 1/α.

    An example not yet seen counts as the mean of those that were; at first all are drawn alike. The scores are stale,
    and the gradient unbiased nevertheless: p is known before a batch is drawn, and given p the draws depend on nothing.
    So p may also serve several batches, whose draws are independent. It is computed 16 times an epoch, which is often
    against the scores' own age of about an epoch, and costs little whatever n is.

    uniform_share: α in (0, 1]; at 0 an example of loss 0 would never be drawn again. Raises ValueError for others.
    """

    def __init__(
        self, size: int, batch_size: int, generator: torch.Generator, *, task: Task, uniform_share: float
    ) -> None:
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must lie in (0, 1] for loss sampling, got {uniform_share!r}")
        self._batch_size, self._generator, self._uniform_share = batch_size, generator, uniform_share
        self._scores = torch.full((size,), _UNSEEN, dtype=torch.float64, device=generator.device)
        self._drawn: list[Tensor] = []
        self._observed = ObservedLosses(task)

    @property
    def probabilities(self) -> Tensor:
        """(n,), float64: p as a draw would have it now."""
        is_seen = self._scores >= 0
        mean = torch.where(is_seen, self._scores, 0.0).sum() / is_seen.sum()
        scores = torch.where(is_seen, self._scores, mean)
        return mixture_probabilities(importance_probabilities(scores), self._uniform_share)

    def batches(self) -> Iterator[MiniBatch]:
        size, batch_size = len(self._scores), self._batch_size
        self._drawn = []
        self._observed.clear()
        steps = math.ceil(size / batch_size)
        draws = math.ceil(steps / _REFRESHES) * batch_size
        for start in range(0, size, draws):
            numbers = uniform_numbers(min(draws, size - start), generator=self._generator)
            probabilities = self.probabilities
            indices = draw_with_replacement(probabilities, numbers)
            weights = importance_weights(probabilities)[indices].float()
            self._drawn.append(weights)
            yield from split_batches(indices, weights, batch_size)

    @torch.no_grad()
    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        """The losses become the scores. Of an example that the batch has twice, it is the larger one."""
        self._observed.add(batch, losses)
        scores = torch.where(torch.isfinite(losses), losses.double().clamp_min(0), self._scores[batch.indices])
        self._scores.scatter_reduce_(0, batch.indices, scores, "amax", include_self=False)

    def diagnostics(self) -> dict[str, float]:
        return importance_diagnostics(self._drawn, self._batch_size, self._observed.second_moments())

    def state_dict(self) -> dict[str, object]:
        return {"generator": self._generator.get_state(), "scores": self._scores.clone()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        scores = saved_tensor(state, "scores")
        if scores.shape != self._scores.shape:
            raise ValueError(f"the state's scores must be of {len(self._scores)} examples, got {tuple(scores.shape)}")
        load_generator(self._generator, state)
        self._scores.copy_(scores)
