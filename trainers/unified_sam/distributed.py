"""Unified SAM on several replicas: which pass averages the gradients, and one decision for all of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def local_gradients(model: nn.Module | None) -> AbstractContextManager[None]:
    """Within, the backward passes of a DistributedDataParallel model leave each replica its own gradients."""
    replicated = _replicated(model)
    return nullcontext() if replicated is None else replicated.no_sync()


def mean_over_replicas(values: Tensor, model: nn.Module | None) -> Tensor:
    """The mean of a small tensor over the replicas of a DistributedDataParallel model, the same bits on each of them.

    One value that is not finite makes the mean not finite. With any other model it is `values`.
    """
    replicated = _replicated(model)
    if replicated is None:
        return values
    total = values.to(next(replicated.parameters()).device, copy=True)
    torch.distributed.all_reduce(total, group=replicated.process_group)
    return total / torch.distributed.get_world_size(replicated.process_group)


def _replicated(model: nn.Module | None) -> DistributedDataParallel | None:
    """The DistributedDataParallel module, also where torch.compile has wrapped it."""
    model = getattr(model, "_orig_mod", model)
    return model if isinstance(model, DistributedDataParallel) else None
