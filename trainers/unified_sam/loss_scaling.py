"""float16 under a torch.amp.GradScaler, with two or more backward passes to one update of the scale."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from trainers.unified_sam.scalars import Flag


def unscale(gradients: list[Tensor], scaler: GradScaler | None) -> None:
    """Divides gradients of a loss that `scaler.scale` has scaled by the scale, in place, without telling the scaler.

    GradScaler.unscale_ serves one backward pass between two updates; a step here has two of each micro-batch.
    Raises ValueError for gradients in float16, which have overflowed before they can be divided.
    """
    if scaler is None or not scaler.is_enabled() or not gradients:
        return
    if any(gradient.dtype == torch.float16 for gradient in gradients):
        raise ValueError("a GradScaler needs parameters in float32 under autocast, got gradients in float16")
    scale = scaler.scale(torch.ones((), device=gradients[0].device))
    torch._foreach_mul_(gradients, scale.double().reciprocal().float())


def update_scale(scaler: GradScaler | None, is_skipped: Flag) -> None:
    """Tells the scaler whether a pass has overflowed: the scale falls or grows as after a plain step."""
    if scaler is None or not scaler.is_enabled():
        return
    # A scaler learns from gradients alone, so it is shown one that says it all.
    flag = torch.as_tensor(is_skipped)
    witness = torch.zeros((), device=flag.device)
    witness.grad = torch.where(flag, torch.inf, 0.0)
    stand_in = SimpleNamespace(param_groups=[{"params": [witness]}])
    scaler.unscale_(stand_in)  # type: ignore[arg-type]
    scaler.update()
