"""Batch normalisation under two passes a step: the running statistics move once, from the first pass, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that are as long as an element of so many bytes."""


def frozen_running_statistics(model: nn.Module) -> AbstractContextManager[None]:
    """Within, batches are normalised by their own statistics as ever, and no running statistic moves.

    That holds for every kind of batch normalisation, also synchronised, lazy or with a cumulative average, whose count
    of batches stands still too, and for instance normalisation. Modules in evaluation mode stay as they are. So do
    scripted ones (torch.jit.script), which are no instances of their classes: their statistics go on moving.
    """
    return RunningStatistics(model).frozen()


class RunningStatistics:
    """Those of a model, as `frozen_running_statistics` knows them, through one step; of no model, none."""

    def __init__(self, model: nn.Module | None) -> None:
        modules = () if model is None else model.modules()
        self._modules = [module for module in modules if isinstance(module, (_BatchNorm, _InstanceNorm))]
        self._kept: list[tuple[list[Tensor], list[Tensor]]] = []  # the statistics and their copies, by data type

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """See `frozen_running_statistics`."""
        tracking = self._tracking()
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

    def keep(self) -> None:
        """Copies them, for `put_back`. Those that a lazy module has yet to make are left out."""
        found = (getattr(module, name) for module in self._tracking() for name in _STATISTICS)
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for statistic in {id(statistic): statistic for statistic in found}.values():  # modules may share them
            if statistic is not None and not is_lazy(statistic):
                by_type.setdefault(statistic.dtype, []).append(statistic)
        self._kept = [(some, list(torch._foreach_mul(some, 1))) for some in by_type.values()]

    def put_back(self, is_wanted: bool | Tensor) -> None:
        """Makes them what they were at `keep` if that is wanted; a tensor, (), on their device, is not read back."""
        if isinstance(is_wanted, Tensor):
            for statistics, kept in self._kept:
                _copy_where(is_wanted, kept, statistics)
        elif is_wanted:
            for statistics, kept in self._kept:
                torch._foreach_copy_(statistics, kept)

    def _tracking(self) -> list[_BatchNorm | _InstanceNorm]:
        return [module for module in self._modules if module.training and module.track_running_stats]


def _copy_where(is_wanted: Tensor, sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copies all or nothing, in three kernels; overwrites the sources. Of the bits, since 0 · ∞ is not a number."""
    integer = _BITS[targets[0].element_size()]
    new, old = ([tensor.view(integer) for tensor in tensors] for tensors in (sources, targets))
    torch._foreach_mul_(new, is_wanted.to(integer))
    torch._foreach_mul_(old, (~is_wanted).to(integer))
    torch._foreach_add_(old, new)
