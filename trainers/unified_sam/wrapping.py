"""An optimizer around another one: the settings of both in the same groups, and one state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import Optimizer, ParamsT

from trainers.unified_sam.ascent import SETTINGS, check_settings
from trainers.unified_sam.base_optimizer import check_base, settings_beside_ours, settings_of_base, with_fused_kernels
from trainers.unified_sam.gradients import check_params


class WrappingOptimizer(Optimizer):
    """The part of UnifiedSAM that holds the base optimizer, whose groups and state are its own.

    settings: our settings, for groups that do not say their own.
    base_arguments: those of `base_optimizer`, with the prefix "base_" where they are called as a setting of ours.
    Raises ValueError for settings out of range and for a base optimizer that cannot be wrapped.
    """

    base: Optimizer

    def __init__(
        self,
        params: ParamsT,
        settings: dict[str, Any],
        base_optimizer: Callable[..., Optimizer],
        base_arguments: dict[str, Any],
    ) -> None:
        super().__init__(params, settings)
        own = [{name: group[name] for name in SETTINGS} for group in self.param_groups]
        groups = [settings_of_base(group) for group in self.param_groups]
        arguments = with_fused_kernels(base_optimizer, settings_of_base(base_arguments), groups)
        self.base = base_optimizer(groups, **arguments)
        check_base(self.base)
        self._contested = tuple(name for name in SETTINGS if name in self.base.defaults)
        self.defaults.update(settings_beside_ours(self.base.defaults))
        for group, of_group in zip(self.base.param_groups, own, strict=True):
            group.update({**settings_beside_ours(group), **of_group})
        self._share_with_base()

    def __setattr__(self, name: str, value: Any) -> None:
        """Groups and state that are assigned, as to reset the momentum, are the base optimizer's too."""
        super().__setattr__(name, value)
        if name in ("param_groups", "state") and "base" in vars(self):
            setattr(self.base, name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with its own settings or the defaults. Raises ValueError where they are out of range."""
        check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            check_params([param for group in self.param_groups for param in group["params"]])
        except ValueError:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "_contested": self._contested}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_with_base()

    def _share_with_base(self) -> None:
        self.param_groups = self.base.param_groups
        self.state = self.base.state
