"""Batch normalisation under two passes a step: the running statistics move once, from the first pass, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedBuffer

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that are as long as an element of so many bytes."""

Copies = tuple[list[Tensor], list[Tensor]]
"""Statistics of one data type, and what they were."""


def frozen_running_statistics(model: nn.Module) -> AbstractContextManager[None]:
    """Within, batches are normalised by their own statistics as ever, and no running statistic moves.

    That holds for every kind of batch normalisation, also synchronised, lazy or with a cumulative average, whose count
    of batches stands still too, and for instance normalisation. Modules in evaluation mode go on using their
    statistics; the mode is that of the moment, which may change within. Lazy modules that have yet to make their
    statistics stay as they are. So do scripted ones (torch.jit.script), which are no instances of their classes: their
    statistics go on moving.
    """
    return RunningStatistics(model).frozen()


class RunningStatistics:
    """Those of a model, as `frozen_running_statistics` knows them, through one step; of no model, none."""

    def __init__(self, model: nn.Module | None) -> None:
        modules = () if model is None else model.modules()
        self._modules = [module for module in modules if isinstance(module, (_BatchNorm, _InstanceNorm))]
        self._kept: list[Copies] = []

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """See `frozen_running_statistics`."""
        tracking = [module for module in self._tracking() if not isinstance(module.running_mean, UninitializedBuffer)]
        batch_norms = [module for module in tracking if isinstance(module, _BatchNorm)]
        # Instance normalisation moves the statistics that it has, whatever it tracks, and needs them to evaluate.
        kept = _copies_of(module for module in tracking if isinstance(module, _InstanceNorm))
        try:
            for module in batch_norms:
                module.track_running_stats = False  # without effect in evaluation mode
            yield
        finally:
            for module in batch_norms:
                module.track_running_stats = True
            _put_back(kept)

    def keep(self) -> None:
        """Copies them, for `put_back`. Those that a lazy module has yet to make are left out."""
        self._kept = _copies_of(self._tracking())

    def put_back(self, is_wanted: bool | Tensor) -> None:
        """Makes them what they were at `keep` if that is wanted; a tensor, (), on their device, is not read back."""
        if isinstance(is_wanted, Tensor):
            for statistics, kept in self._kept:
                _copy_where(is_wanted, kept, statistics)
        elif is_wanted:
            _put_back(self._kept)

    def _tracking(self) -> list[_BatchNorm | _InstanceNorm]:
        """In either mode, since what runs them may yet set it."""
        return [module for module in self._modules if module.track_running_stats]


def _copies_of(modules: Iterable[_BatchNorm | _InstanceNorm]) -> list[Copies]:
    found = (getattr(module, name) for module in modules for name in _STATISTICS)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for statistic in {id(statistic): statistic for statistic in found}.values():  # modules may share them
        if statistic is not None and not isinstance(statistic, UninitializedBuffer):
            by_type.setdefault(statistic.dtype, []).append(statistic)
    return [(some, list(torch._foreach_mul(some, 1))) for some in by_type.values()]


def _put_back(copies: list[Copies]) -> None:
    for statistics, kept in copies:
        torch._foreach_copy_(statistics, kept)


def _copy_where(is_wanted: Tensor, sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copies all or nothing, in three kernels; overwrites the sources. Of the bits, since 0 · ∞ is not a number."""
    integer = _BITS[targets[0].element_size()]
    new, old = ([tensor.view(integer) for tensor in tensors] for tensors in (sources, targets))
    torch._foreach_mul_(new, is_wanted.to(integer))
    torch._foreach_mul_(old, (~is_wanted).to(integer))
    torch._foreach_add_(old, new)
