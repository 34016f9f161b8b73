"""The gradients that parameters hold: collected, cleared, and averaged over micro-batches as their losses are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainers.schedules import is_finite_number
from trainers.unified_sam.scalars import Scalar


def with_gradient(params: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that hold a gradient, and those gradients. Raises ValueError for a sparse one."""
    held, gradients = [], []
    for param in params:
        gradient = param.grad
        if gradient is not None:
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"gradients must be dense, got {gradient.layout} for a parameter of shape {tuple(param.shape)}"
                )
            held.append(param)
            gradients.append(gradient)
    return held, gradients


def clear_gradients(groups: Iterable[Mapping[str, Any]]) -> None:
    """Takes the gradients away from all parameters of the groups."""
    for group in groups:
        for param in group["params"]:
            param.grad = None


def check_params(params: Sequence[Tensor]) -> None:
    """Raises ValueError unless all parameters are real and on one device."""
    for param in params:
        if not param.is_floating_point():
            raise ValueError(f"parameters must be real floating-point numbers, got {param.dtype}")
    devices = sorted({str(param.device) for param in params})
    if len(devices) > 1:
        raise ValueError(f"all parameters must be on one device, got {', '.join(devices)}")


def check_shares(shares: Sequence[float], count: int) -> None:
    """Raises ValueError unless there is one share for each of at least one micro-batch, each ≥ 0 and 1 in all."""
    if count < 1 or len(shares) != count:
        raise ValueError(
            f"there must be as many shares as micro-batches, and at least one, got {len(shares)} and {count}"
        )
    if not all(is_finite_number(share, low=0) for share in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be numbers of at least 0 that sum to 1, got {list(shares)!r}")


Number = TypeVar("Number", Tensor, Scalar)


def weighted_mean(values: Sequence[Number], shares: Sequence[float]) -> Number:
    """Σ share_i · value_i of numbers, to be taken without autograd; the value itself where it is the only one."""
    mean, *others = [value * share for value, share in zip(values, shares, strict=True)] if len(values) > 1 else values
    for other in others:
        mean = mean + other
    return mean


class GradientMean:
    """The mean of several micro-batches' gradients, each weighted by its share; a missing gradient counts as zero.

    To be used without autograd.
    """

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, params: list[Tensor], gradients: list[Tensor], share: float) -> None:
        """Adds the gradients of one micro-batch."""
        pairs = list(zip(params, gradients, strict=True))
        new = [param for param in params if param not in self._sums]
        known = [(self._sums[param], gradient) for param, gradient in pairs if param in self._sums]
        if known:
            torch._foreach_add_([total for total, _ in known], [gradient for _, gradient in known], alpha=share)
        if new:
            # Copies, since a gradient may lie in memory that the next backward pass uses again (CUDA graphs, DDP).
            firsts = torch._foreach_mul([gradient for param, gradient in pairs if param not in self._sums], share)
            self._sums.update(zip(new, firsts, strict=True))

    def assign(self) -> list[Tensor]:
        """Gives each parameter its mean gradient, and returns them."""
        for param, total in self._sums.items():
            param.grad = total
        return list(self._sums.values())
