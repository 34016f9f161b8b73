"""Batch normalisation under two passes a step: the running statistics move once, from the first pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Within, batches are normalised by their own statistics as ever, and no running statistic moves.

    That holds for every kind of batch normalisation, also synchronised, lazy or with a cumulative average, whose count
    of batches stands still too, and for instance normalisation. Modules in evaluation mode stay as they are. So do
    scripted ones (torch.jit.script), which are no instances of their classes: their statistics go on moving.
    """
    tracking = [
        module
        for module in model.modules()
        if isinstance(module, (_BatchNorm, _InstanceNorm)) and module.training and module.track_running_stats
    ]
    hidden: list[tuple[_InstanceNorm, Tensor | None, Tensor | None]] = []
    try:
        for module in tracking:
            module.track_running_stats = False
            if isinstance(module, _InstanceNorm):  # which moves the statistics that it has, whatever it tracks
                hidden.append((module, module.running_mean, module.running_var))
                module.running_mean = module.running_var = None
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
        for instance_norm, mean, var in hidden:
            instance_norm.running_mean, instance_norm.running_var = mean, var
