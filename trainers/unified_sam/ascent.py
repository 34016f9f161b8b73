"""The ascent of Unified SAM: from gradients to the perturbed weights, without reading anything back from a device.

l2:        ε = ρ(1 − λ + λ/‖g‖)·g                     (arXiv 2503.02225, eq. 2)
adaptive:  ε = ρ(1 − λ + λ/‖T g‖)·T² g, T = |w| + η   (ASAM at λ = 1: Kwon et al. 2021, arXiv 2102.11600, eq. 9)

Both are the l2 ascent, the adaptive one in the coordinates w/T: there the gradient is T g and the ascent T⁻¹ε. The
*radius* of an ascent is ‖ε‖ or ‖T⁻¹ε‖: ρ where λ = 1, whatever the gradient, and ρ‖g‖ or ρ‖T g‖ where λ = 0.

Norms are sums of squares in float32, or in float64 beside a float64 gradient, so that they reach less far than the
gradients: in float32 a norm above about 1e19 is infinite, and elements below about 1e-23 count as zero.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainers.schedules import check_lam, check_rho, is_finite_number, value_at
from trainers.unified_sam.scalars import (
    Flag,
    Scalar,
    at_most,
    finite_or_zero,
    global_norm,
    inverse,
    norm_of_norms,
    number_if,
    number_or_zero,
)

SETTINGS = ("rho", "lam", "adaptive", "eta")
"""What a group of UnifiedSAM says about its ascent."""


class Ascent(NamedTuple):
    """How some parameters ascend at one step: ρ ≥ 0, λ in [0, 1], whether T = |w| + η scales them, η ≥ 0."""

    rho: float
    lam: float
    adaptive: bool
    eta: float


def check_settings(group: Mapping[str, Any]) -> None:
    """Raises ValueError with the rule and the value where a setting of the group is out of range."""
    check_maximize(group)
    settings = group["rho"], group["lam"], group["adaptive"], group["eta"]
    try:
        _check_values(*settings)
    except TypeError:  # the cache takes no lists, nor does the check
        _check_values.__wrapped__(*settings)


@lru_cache(typed=True)  # a step checks what it is told, which mostly is what it was told before; 1 is not True
def _check_values(rho: object, lam: object, adaptive: object, eta: object) -> None:
    check_rho(rho)
    check_lam(lam)
    check_flag("adaptive", adaptive)
    if not is_finite_number(eta, low=0):
        raise ValueError(f"eta must be a finite number of at least 0, got {eta!r}")


def check_maximize(group: Mapping[str, Any]) -> None:
    """Raises ValueError where the base optimizer is to maximise: that turns its own step around, and not the ascent."""
    if group.get("maximize"):
        raise ValueError(f"maximize must be False, got {group['maximize']!r}: minimise the negative instead")


def check_flag(name: str, flag: object) -> None:
    """Raises ValueError with the rule and the value unless the flag is True or False."""
    if not isinstance(flag, bool):
        raise ValueError(f"{name} must be True or False, got {flag!r}")


def check_limit(name: str, limit: object) -> None:
    """Raises ValueError with the rule and the value unless the limit is None or a finite number above 0."""
    if limit is not None and not (is_finite_number(limit, low=0) and limit != 0):
        raise ValueError(f"{name} must be None or a finite number above 0, got {limit!r}")


def ascent_at(group: Mapping[str, Any], t: int) -> Ascent:
    """The group's ascent at step t, from 1. Raises ValueError as `check_settings` does: a group may change any time."""
    check_settings(group)
    rho, lam = value_at(group["rho"], t), value_at(group["lam"], t)
    return Ascent(float(rho), float(lam), group["adaptive"], float(group["eta"]))


def ascent_scale(grad_norm: Scalar, *, rho: float, lam: float, largest: float = sys.float_info.max) -> Scalar:
    """Factor s of the ascent step w + s·g; lam = 0 is USAM (s = rho), lam = 1 is SAM (s = rho / ‖g‖).

    grad_norm: the global L2 norm of g, finite. Where it is zero or so small that s overflows, s is 0: there is no
    direction to ascend along.
    largest: the largest number in the precision of g, for a norm that is a float.
    """
    return finite_or_zero(rho * (1 - lam) + rho * lam * inverse(grad_norm), largest)


def clip_factor(norm: Scalar, limit: float) -> Scalar:
    """Factor that brings a norm down to the limit where it is above: min(1, limit/norm)."""
    return at_most(float(limit) * inverse(norm), 1.0)


def ascend(
    parts: Mapping[Ascent, tuple[list[Tensor], list[Tensor]]], *, max_perturbation: float | None
) -> tuple[Scalar, Scalar]:
    """Moves the parameters to the ascent point, in place; to be called without autograd.

    parts: parameters and their gradients by how they ascend, at least one part and no empty one; the gradients are used
    as scratch space. One norm over all of them counts, that of T g where any are adaptive. Where it is not finite, the
    parameters stay where they are.
    max_perturbation: the largest radius of the whole ascent; a longer one is shortened to it.
    Returns ‖g‖, which is no number either where the norm that counts is not finite, and the radius of the ascent.
    """
    parts = {ascent: (params, _as_wide(gradients)) for ascent, (params, gradients) in parts.items()}
    grad_norms = [global_norm(gradients) for _, gradients in parts.values()]
    sizes: list[list[Tensor] | None] = []  # T, where it is not 1
    norms = []
    for (ascent, (params, gradients)), plain_norm in zip(parts.items(), grad_norms, strict=True):
        if ascent.adaptive:
            size = list(torch._foreach_abs(_as_wide(params)))
            torch._foreach_add_(size, ascent.eta)
            torch._foreach_mul_(gradients, size)
            sizes.append(size)
            norms.append(global_norm(gradients))
        else:
            sizes.append(None)
            norms.append(plain_norm)
    norm = norm_of_norms(norms)
    is_finite = norm < math.inf
    norm = finite_or_zero(norm)  # no direction, so that s is 0 as well
    scales = [
        ascent_scale(norm, rho=ascent.rho, lam=ascent.lam, largest=_largest_number(gradients))
        for ascent, (_, gradients) in parts.items()
    ]
    radius = norm_of_norms([scale * part for scale, part in zip(scales, norms, strict=True)])
    radius = number_or_zero(radius)  # where a part's norm is infinite
    if max_perturbation is not None:
        factor = clip_factor(radius, max_perturbation)
        radius = radius * factor
        scales = [scale * factor for scale in scales]
    for (ascent, (params, gradients)), scale, of_part in zip(parts.items(), scales, sizes, strict=True):
        if ascent.rho > 0:
            _add_scaled(params, gradients, scale, of_part, is_finite)
    grad_norm = norm_of_norms(grad_norms)
    if any(ascent.adaptive for ascent in parts):
        grad_norm = number_if(is_finite, grad_norm)
    return grad_norm, radius


def _as_wide(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, those in float16 in float32: neither s nor T g need lie in the range of float16."""
    return [tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in tensors]


def _largest_number(tensors: list[Tensor]) -> float:
    """The largest number that each of the tensors can hold."""
    return min(torch.finfo(dtype).max for dtype in {tensor.dtype for tensor in tensors})


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that are as long as an element of so many bytes."""


def _zero_unless(is_finite: Tensor, gradients: list[Tensor]) -> None:
    """Sets the gradients to zero unless is_finite, (), bool. It multiplies their bits, since 0 · ∞ is not a number.

    One pass over the gradients in a single kernel; torch.where would launch one a tensor.
    """
    bits = [gradient.view(_BITS[gradient.element_size()]) for gradient in gradients]
    torch._foreach_mul_(bits, is_finite.to(bits[0].dtype))


def _add_scaled(
    params: list[Tensor], gradients: list[Tensor], scale: Scalar, sizes: list[Tensor] | None, is_finite: Flag
) -> None:
    """params += scale · gradients, times sizes if there are any, where is_finite; overwrites the gradients."""
    if isinstance(is_finite, Tensor):
        _zero_unless(is_finite, gradients)
    elif not is_finite:
        return
    if isinstance(scale, float) and sizes is None:
        torch._foreach_add_(params, gradients, alpha=scale)  # once through memory
        return
    torch._foreach_mul_(gradients, scale)
    if sizes is None:
        torch._foreach_add_(params, gradients)
    else:
        torch._foreach_addcmul_(params, gradients, sizes)
