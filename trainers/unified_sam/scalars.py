"""The few numbers of a step: floats where the host holds them, tensors, (), where a device may still compute them.

To read a number back from a device makes the host wait for all that the device has yet to do, so that a step does not.
On the CPU there is nothing to wait for, and a float is many times as fast as a tensor of one element. Arithmetic and
comparisons take either, so that a formula is written once; here is what the two spell differently.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

Scalar = float | Tensor
Flag = bool | Tensor


def is_read_freely(tensor: Tensor) -> bool:
    """Whether to read the tensor's values waits for nothing: what decides between a float and a tensor everywhere."""
    return tensor.device.type == "cpu"


def number(value: Tensor) -> Scalar:
    """The value of a tensor, ()."""
    return _read(value) if is_read_freely(value) else value


def _read(value: Tensor) -> float:
    return value.tolist()  # type: ignore[return-value]  # of a tensor, (), it is no list


def tensor_of(value: Scalar) -> Tensor:
    """The number as a tensor, (): a float in float64."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def precision_of(tensors: Sequence[Tensor]) -> torch.dtype:
    """What norms over the tensors are taken in: float32, or float64 where one of the tensors is in float64."""
    return torch.float64 if torch.float64 in {tensor.dtype for tensor in tensors} else torch.float32


def global_norm(tensors: list[Tensor]) -> Scalar:
    """L2 norm over all elements of at least one tensor, by sums of squares in `precision_of` the tensors."""
    precision = precision_of(tensors)
    if not is_read_freely(tensors[0]):
        return norm_of_norms(torch._foreach_norm(tensors, 2, dtype=precision))
    square = 0.0
    for tensor in tensors:  # by BLAS: over 36 million elements in float32, torch's norm on the CPU is 0.2 % too small
        flat = (tensor if tensor.dtype == precision else tensor.to(precision)).reshape(-1)
        square += _read(torch.dot(flat, flat))
    return math.sqrt(square)


def norm_of_norms(norms: Sequence[Scalar]) -> Scalar:
    """L2 norm of at least one norm, all floats or all tensors, in the precision of the most precise."""
    if len(norms) == 1:
        return norms[0]
    tensors = [norm for norm in norms if isinstance(norm, Tensor)]
    if not tensors:
        return math.hypot(*norms)
    precision = precision_of(tensors)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(precision) for norm in tensors]))
    return norm


def inverse(value: Scalar) -> Scalar:
    """1/value, where ∞ is that of 0."""
    if isinstance(value, Tensor):
        return value.reciprocal()
    return 1 / value if value else math.inf


def finite_or_zero(value: Scalar, largest: float = sys.float_info.max) -> Scalar:
    """The number, or 0 where it is none or too large: a float above `largest`, a tensor beyond its own precision."""
    if isinstance(value, Tensor):
        return value.nan_to_num(nan=0.0, posinf=0.0)
    return value if value <= largest else 0.0


def number_or_zero(value: Scalar) -> Scalar:
    """The number, the largest one in place of ∞, or 0 where it is none."""
    if isinstance(value, Tensor):
        return value.nan_to_num(nan=0.0)
    return min(value, sys.float_info.max) if value >= 0 else 0.0


def number_if(is_wanted: Flag, value: Scalar) -> Scalar:
    """The number, or none where it is not wanted."""
    if isinstance(is_wanted, Tensor) and isinstance(value, Tensor):
        return torch.where(is_wanted, value, math.nan)
    return value if is_wanted else math.nan


def at_most(value: Scalar, limit: float) -> Scalar:
    """The smaller one of the number and the limit."""
    return value.clamp(max=limit) if isinstance(value, Tensor) else min(value, limit)


def is_not_finite(value: Scalar) -> Flag:
    """Whether the number is none or infinite."""
    return value - value != 0  # then the difference is not a number
