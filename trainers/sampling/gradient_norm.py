"""Importance sampling by an upper bound of the gradients' norms, from one forward pass over candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from trainers.facts import Task
from trainers.sampling.diagnostics import importance_diagnostics, in_one, uniform_diagnostics
from trainers.sampling.drawing import draw_uniformly, draw_with_replacement, uniform_numbers
from trainers.sampling.probabilities import (
    importance_probabilities,
    importance_weights,
    mixture_probabilities,
    variance_gain,
)
from trainers.sampling.sampler import MiniBatch, load_generator
from trainers.sampling.scores import output_gradient_norms_from_losses
from trainers.sampling.uniform import equally_weighted, random_permutation

SMALLEST_SHARE = 1e-3
"""Least uniform share among the candidates: one whose score rounds to 0 can be drawn, and no weight exceeds 1,000."""

_LEAST_SCORE, _LARGEST_SCORE = 1e-30, 1e30
"""What scores are drawn by lies between these: where all are 0, draws are uniform, and none is NaN or infinite."""

_EMA = 0.9


class GradientNormSampler:
    """Importance sampling by an upper bound of the gradients' norms (Katharopoulos and Fleuret 2018, algorithm 1).

    In an epoch that is on, each batch of b: B = presample_factor·b candidates, drawn uniformly and scored by the model
    as it then is, b of them drawn with p_i = (1 − α)·s_i/Σs + α/B, weights 1/(B p_i); the smaller batch at its end has
    B candidates too. In one that is off: exactly the uniform sampler's batches, whose observed losses let τ rise at no
    cost. τ is the variance gain among B examples, smoothed over the batches (factor 0.9): the candidates of a batch, or
    the last B observed, as many as there are. An epoch is on where, as it begins, τ exceeds 1 + B/(3b·passes): scoring
    costs one forward pass of B, and each pass of a step three of b, counting a backward pass as two forward ones.

    Why whole epochs: a permutation that is left because of the scores of its first batches leaves its other batches
    unseen for a reason that depends on them, and the gradient would be biased.

    passes: forward and backward passes of a step, 2 for SAM, 1 where ρ is 0. uniform_share: α in [0, 1], at least
    SMALLEST_SHARE is taken. score: maps indices (m,) to the scores (m,) of the current model, at least 0. τ is read
    back to the host once an epoch, as it begins.

    The candidates are a sample themselves, so the variance ratio is M_p/M_u + (b − 1)/B, with the scores as G_i (see
    `trainers.sampling.diagnostics`): given them, b draws have the variance (M_p − ‖ḡ‖²)/b around the candidates' mean
    ḡ, which has the variance (M_u − m)/B itself.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        generator: torch.Generator,
        *,
        task: Task,
        score: Callable[[Tensor], Tensor],
        presample_factor: int,
        passes: int,
        uniform_share: float = 0.0,
    ) -> None:
        self._size, self._batch_size, self._generator = size, batch_size, generator
        self._task, self._score, self._factor = task, score, presample_factor
        self._threshold = 1 + presample_factor / (3 * passes)
        self._uniform_share = max(uniform_share, SMALLEST_SHARE)
        self._ones = torch.ones(batch_size, device=generator.device)
        self._tau = torch.ones((), dtype=torch.float64, device=generator.device)
        self._losses: list[Tensor] = []  # of steps that τ does not know of yet, in an epoch that is off
        self._scores: list[Tensor] = []  # of such steps' candidates, in an epoch that is on
        self._least = torch.tensor([_LEAST_SCORE], dtype=torch.float64, device=generator.device)
        self._largest = torch.tensor([_LARGEST_SCORE], dtype=torch.float64, device=generator.device)
        self._drawn: list[Tensor] = []
        self._moments = torch.zeros(2, dtype=torch.float64, device=generator.device)
        self._was_on = False

    @property
    def is_on(self) -> bool:
        """Whether an epoch that begins now is drawn by importance. Reads τ back."""
        self._smooth()
        return float(self._tau) > self._threshold

    def batches(self) -> Iterator[MiniBatch]:
        self._was_on = self.is_on
        self._drawn = []
        self._moments.zero_()
        return self._by_importance() if self._was_on else iter(self._uniformly())

    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        if not self._was_on:
            self._losses.append(losses)

    def diagnostics(self) -> dict[str, float]:
        if not self._was_on:
            return uniform_diagnostics(self._size, self._batch_size)
        self._smooth()
        return importance_diagnostics(in_one(self._drawn), self._batch_size, self._moments)

    def state_dict(self) -> dict[str, object]:
        self._smooth()
        return {"generator": self._generator.get_state(), "tau": self._tau.clone()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        tau = state.get("tau")
        if not isinstance(tau, (Tensor, float)) or torch.as_tensor(tau).shape != ():
            raise ValueError(f"the state's tau must be one number, got {tau!r}")
        load_generator(self._generator, state)
        self._tau.copy_(torch.as_tensor(tau, dtype=torch.float64))
        self._losses, self._scores = [], []

    def _uniformly(self) -> list[MiniBatch]:
        permutation = random_permutation(self._size, self._generator)
        return equally_weighted(torch.split(permutation, self._batch_size), self._ones)

    def _by_importance(self) -> Iterator[MiniBatch]:
        steps = -(-self._size // self._batch_size)
        candidates = uniform_numbers(steps, self._factor * self._batch_size, generator=self._generator)
        numbers = uniform_numbers(self._size, generator=self._generator)
        among_whom = draw_uniformly(self._size, candidates).unbind()
        for among, at in zip(among_whom, torch.split(numbers, self._batch_size), strict=True):
            scores = self._score(among)
            self._scores.append(scores)
            drawn, weights = self._draw(scores, at)
            self._drawn.append(weights)
            yield MiniBatch(among.take(drawn), weights)

    def _draw(self, scores: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Places of candidates and their weights. In few operations: each takes 3 to 10 µs between two steps."""
        sound = torch.fmin(torch.fmax(scores, self._least), self._largest)
        mean = sound.mean()
        mixed = torch.lerp(sound, mean, self._uniform_share)  # p_i, times the sum
        drawn = draw_with_replacement(mixed, numbers)
        return drawn, (mean / mixed.take(drawn)).float()

    def _smooth(self) -> None:
        """Lets τ and the moments know of the steps since the last time, all at once."""
        if self._losses:
            norms = output_gradient_norms_from_losses(self._task, torch.cat(self._losses))
            windows = norms.unfold(0, min(self._factor * self._batch_size, len(norms)), self._batch_size)
            self._tau = smoothed(self._tau, variance_gain(importance_probabilities(windows)))
        if self._scores:
            scores = torch.stack(self._scores)
            by_score = importance_probabilities(scores)
            self._tau = smoothed(self._tau, variance_gain(by_score))
            self._moments += presampled_moments(scores, by_score, self._uniform_share, self._factor)
        self._losses, self._scores = [], []


def smoothed(tau: Tensor, gains: Tensor) -> Tensor:
    """τ after the gains (k,) of k steps, in order: each time τ ← 0.9 τ + 0.1 gain."""
    ages = torch.arange(len(gains) - 1, -1, -1, device=gains.device, dtype=gains.dtype)
    return _EMA ** len(gains) * tau + (1 - _EMA) * (_EMA**ages * gains).sum()


def presampled_moments(scores: Tensor, by_score: Tensor, uniform_share: float, factor: int) -> Tensor:
    """(2,): M_p + M_u (b − 1)/B and M_u, summed over the steps; their quotient is the variance ratio.

    scores: (steps, B), B = factor·b. by_score: of the same shape, the probabilities s_i/Σs. A step with a score that
    is not finite is left out.
    """
    weights = importance_weights(mixture_probabilities(by_score, uniform_share))
    candidates = scores.shape[1]
    norms = torch.where(scores.sum(1, keepdim=True) < torch.inf, scores, 0.0).double()
    squares = norms.square() / candidates
    uniform, by_importance = squares.sum(), (weights * squares).sum()
    return torch.stack((by_importance + (candidates / factor - 1) / candidates * uniform, uniform))
