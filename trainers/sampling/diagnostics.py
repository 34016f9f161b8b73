"""What the sampling of one epoch came to, computed on the device and read back once.

The variance ratio compares the variance E‖g − ∇f‖² of the gradient g = (1/b) Σ w_i ∇f_i, over b draws from p with
w_i = 1/(n p_i), to that of as many uniform draws. With G_i = ‖∇f_i‖, m = ‖∇f‖² and the second moments

    M_p = (1/n²) Σ G_i²/p_i = E_p[w² G²]        M_u = (1/n) Σ G_i² = E_p[w G²]

it is (M_p − m) / (M_u − m), whatever b. m is in no sampler's reach and left out: the estimate M_p / M_u lies between 1
and the ratio, and is the ratio where ∇f = 0. Both moments are means over the examples that were drawn, so that the
estimate costs nothing. G_i comes from the losses, and through `smoothness` from the inputs: for a linear model without
a regulariser, G_i² is L_i times the squared gradient at the output, up to a factor that cancels. Else it is a proxy.

What is drawn without replacement has a variance smaller by (n − b)/(n − 1) than what is drawn with it. This factor is
left out: every sampling with weights 1 has the ratio 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.catalog import Task
from trainers.sampling.probabilities import effective_sample_size
from trainers.sampling.sampler import MiniBatch
from trainers.sampling.scores import output_gradient_norms_from_losses


class ObservedLosses:
    """The losses of an epoch's batches, kept on the device until the epoch's end.

    smoothness: (n,), L_i, where the gradients' norms depend on the inputs through them; None leaves them out.
    """

    def __init__(self, task: Task, smoothness: Tensor | None = None) -> None:
        self._task, self._smoothness = task, smoothness
        self._observed: list[tuple[MiniBatch, Tensor]] = []

    def clear(self) -> None:
        """Forgets the epoch before."""
        self._observed = []

    def add(self, batch: MiniBatch, losses: Tensor) -> None:
        """losses: (b,), unweighted."""
        self._observed.append((batch, losses.detach()))

    def second_moments(self) -> Tensor:
        """(2,), float64: M_p and M_u, up to a common factor; zeros where nothing was observed."""
        if not self._observed:
            return torch.zeros(2, dtype=torch.float64)
        indices = torch.cat([batch.indices for batch, _ in self._observed])
        weights = torch.cat([batch.weights for batch, _ in self._observed])
        losses = torch.cat([losses for _, losses in self._observed])
        squared_norms = output_gradient_norms_from_losses(self._task, losses).square()
        if self._smoothness is not None:
            squared_norms = squared_norms * self._smoothness[indices]
        return second_moments(weights, torch.where(torch.isfinite(losses), squared_norms, 0.0))


def second_moments(weights: Tensor, squared_norms: Tensor) -> Tensor:
    """(2,), float64: Σ w² G² and Σ w G² over the examples drawn, (m,) each."""
    weights = weights.double()
    weighted = weights * squared_norms
    return torch.stack(((weights * weighted).sum(), weighted.sum()))


def importance_diagnostics(weights: Sequence[Tensor], batch_size: int, moments: Tensor) -> dict[str, float]:
    """The diagnostics of an epoch that was drawn by importance.

    weights: all of the epoch, in order, in any number of pieces. moments: (2,), M_p and M_u. The ratio is 1 where M_u
    is zero or either is not finite: nothing was observed, or there is no gradient. Raises RuntimeError for no weights.
    """
    if not weights:
        raise RuntimeError("diagnostics are those of an epoch, and none has run")
    drawn = torch.cat(list(weights)).double()
    steps = -(-len(drawn) // batch_size)
    whole = drawn[: len(drawn) // batch_size * batch_size].view(-1, batch_size)
    sample_sizes = effective_sample_size(whole).sum()
    if len(drawn) > whole.numel():
        sample_sizes = sample_sizes + effective_sample_size(drawn[whole.numel() :])
    ratio = moments[0] / moments[1]
    ratio = torch.where(torch.isfinite(ratio), ratio, 1.0).to(drawn.device)
    size, largest, variance_ratio = torch.stack((sample_sizes / steps, drawn.max(), ratio)).tolist()
    return {
        "effective_sample_size": size,
        "largest_weight": largest,
        "variance_ratio": variance_ratio,
        "importance_share": 1.0,
    }


def uniform_diagnostics(size: int, batch_size: int) -> dict[str, float]:
    """The diagnostics of an epoch with weights 1: an example counts for one, and the mean batch has n/⌈n/b⌉."""
    return {
        "effective_sample_size": size / -(-size // batch_size),
        "largest_weight": 1.0,
        "variance_ratio": 1.0,
        "importance_share": 0.0,
    }
