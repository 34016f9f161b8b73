"""The training steps that `benchmarks/step_time.py` compares: SGD, Unified SAM and what else does two passes a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainers.unified_sam import UnifiedSAM

Backward = Callable[[], Tensor]
"""Forward and backward of the batch; returns the loss."""
Step = Callable[[], object]

RHO = 0.05


def sgd(model: nn.Module, backward: Backward, **settings: Any) -> Step:
    """One pass: what the others are measured by."""
    optimizer = torch.optim.SGD(model.parameters(), **settings)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return step


def unified_sam(model: nn.Module, backward: Backward, **settings: Any) -> Step:
    """Ours, with λ in the middle, as the training loop calls it."""
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, rho=RHO, lam=0.5, **settings)
    return lambda: optimizer.step(backward, model=model)


def pytorch_optimizer_sam(model: nn.Module, backward: Backward, **settings: Any) -> Step:
    """SAM of the package pytorch-optimizer, as its documentation calls it."""
    from pytorch_optimizer import SAM

    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=RHO, **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward()

    def step() -> None:
        closure()
        optimizer.step(closure)

    return step


def textbook_sam(model: nn.Module, backward: Backward, **settings: Any) -> Step:
    """SAM as papers' repositories write it: a loop over the parameters, the norm of norms, a clone of each weight."""
    params = list(model.parameters())
    base = torch.optim.SGD(params, **settings)

    @torch.no_grad()
    def ascend() -> list[Tensor]:
        norm = torch.norm(torch.stack([param.grad.norm(p=2) for param in params if param.grad is not None]), p=2)
        originals = []
        for param in params:
            originals.append(param.data.clone())
            if param.grad is not None:
                param.add_(param.grad * (RHO / (norm + 1e-12)))
        return originals

    def step() -> None:
        base.zero_grad()
        backward()
        originals = ascend()
        base.zero_grad()
        backward()
        for param, original in zip(params, originals, strict=True):
            param.data = original
        base.step()

    return step


CONTESTANTS: dict[str, Callable[..., Step]] = {
    "SGD": sgd,
    "Unified SAM": unified_sam,
    "pytorch_optimizer SAM": pytorch_optimizer_sam,
    "textbook SAM": textbook_sam,
}
