"""What a sampler is: mini-batches, and what goes in and comes out around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """indices: (b,), int64, into the training split. weights: (b,), float32, 1 on average."""

    indices: Tensor
    weights: Tensor


class Sampler(Protocol):
    """Draws the mini-batches of one epoch after the other; its state between epochs can be saved and loaded."""

    def batches(self) -> Iterator[MiniBatch]:
        """The mini-batches of the next epoch: ⌈n/b⌉ of them, the last one smaller where b does not divide n.

        Called anew for every epoch. A batch may be drawn when it is asked for, so the ones before it are to be observed
        by then.
        """

    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        """Takes note of a batch's losses, to be called for every batch right after the step's first pass.

        losses: (b,), of each example: unweighted, without the regulariser, detached. Nothing is read back from the
        device. Losses that are not finite are passed over.
        """

    def diagnostics(self) -> dict[str, float]:
        """What the sampling of the last epoch came to, read back from the device at once.

        effective_sample_size: the mean of (Σw)²/Σw² over the steps, a count. largest_weight: of all examples drawn.
        variance_ratio: variance of the gradient against uniform draws, see `trainers.sampling.diagnostics`.
        importance_share: of the steps, those drawn by importance, in [0, 1].
        Raises RuntimeError where they would depend on draws and none was made.
        """

    def state_dict(self) -> dict[str, object]:
        """Tensors alone: all that the epochs to come depend on, to be asked for between two epochs."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues exactly as the sampler that the state is of. Raises ValueError where the state does not fit."""


def split_batches(indices: Tensor, weights: Tensor, batch_size: int) -> list[MiniBatch]:
    """Consecutive batches of indices and weights, (draws,) each.

    All at once: between two steps, whose work fills the processor's caches, the same takes about twice as long.
    """
    return list(map(MiniBatch, torch.split(indices, batch_size), torch.split(weights, batch_size)))


def saved_tensor(state: Mapping[str, object], name: str) -> Tensor:
    """The tensor of this name. Raises ValueError where there is none."""
    value = state.get(name)
    if not isinstance(value, Tensor):
        raise ValueError(f"the sampler's state must have a tensor {name!r}, got {type(value).__name__}")
    return value


def load_generator(generator: torch.Generator, state: Mapping[str, object]) -> None:
    """Sets the generator to the state's. Raises ValueError where there is none."""
    generator.set_state(saved_tensor(state, "generator").cpu())
