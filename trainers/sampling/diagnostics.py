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

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.facts import Task
from trainers.sampling.probabilities import effective_sample_size
from trainers.sampling.scores import output_gradient_norms_from_losses

NO_EPOCH = "diagnostics are those of an epoch, and none has run"


class ObservedLosses:
    """The losses of an epoch's batches, in order, kept on the device until the epoch's end."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._losses: list[Tensor] = []

    def clear(self) -> None:
        """Forgets the epoch before."""
        self._losses = []

    def add(self, losses: Tensor) -> None:
        """losses: (b,), of the batch that comes next, unweighted."""
        self._losses.append(losses)

    def second_moments(self, weights: Tensor, smoothness: Tensor | None = None) -> Tensor:
        """(2,), float64: M_p and M_u, up to a common factor; zeros where nothing was observed.

        weights: (m,), of the epoch's draws in order. smoothness: (m,), their L_i, where the gradients' norms depend on
        the inputs through them; None leaves them out.
        """
        if not self._losses:
            return torch.zeros(2, dtype=torch.float64)
        losses = torch.cat(self._losses)
        observed = len(losses)
        squared_norms = output_gradient_norms_from_losses(self._task, losses).square()
        if smoothness is not None:
            squared_norms = squared_norms * smoothness[:observed]
        return second_moments(weights[:observed], torch.where(losses - losses == 0, squared_norms, 0.0))  # finite ones


def second_moments(weights: Tensor, squared_norms: Tensor) -> Tensor:
    """(2,), float64: Σ w² G² and Σ w G² over the examples drawn, (m,) each, the G² in float64."""
    weighted = weights * squared_norms
    return torch.stack(((weights * weighted).sum(), weighted.sum()))


def importance_diagnostics(weights: Tensor, batch_size: int, moments: Tensor) -> dict[str, float]:
    """The diagnostics of an epoch that was drawn by importance.

    weights: (m,), all of the epoch, in order. moments: (2,), M_p and M_u. The ratio is 1 where M_u is zero or either is
    not finite: nothing was observed, or there is no gradient.
    """
    padded = weights.new_zeros(-(-len(weights) // batch_size) * batch_size, dtype=torch.float64)
    padded[: len(weights)] = weights
    by_batch = padded.view(-1, batch_size)  # 0 where the last batch has no example
    sample_size = effective_sample_size(by_batch).mean()
    read = torch.cat((torch.stack((sample_size, weights.max())), moments.to(weights.device)))
    size, largest, by_importance, uniform = read.tolist()
    ratio = by_importance / uniform if uniform else math.nan
    return {
        "effective_sample_size": size,
        "largest_weight": largest,
        "variance_ratio": ratio if math.isfinite(ratio) else 1.0,
        "importance_share": 1.0,
    }


def in_one(pieces: Sequence[Tensor]) -> Tensor:
    """(m,): the weights of an epoch that were drawn in pieces. Raises RuntimeError where no epoch has run."""
    if not pieces:
        raise RuntimeError(NO_EPOCH)
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def uniform_diagnostics(size: int, batch_size: int) -> dict[str, float]:
    """The diagnostics of an epoch with weights 1: an example counts for one, and the mean batch has n/⌈n/b⌉."""
    return {
        "effective_sample_size": size / -(-size // batch_size),
        "largest_weight": 1.0,
        "variance_ratio": 1.0,
        "importance_share": 0.0,
    }
