"""The optimizer that Unified SAM wraps: which ones can be, whose setting a name is, and steps that may be skipped."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trainers.unified_sam.ascent import SETTINGS

PREFIX = "base_"
"""Begins the name of a setting of the base optimizer that a setting of Unified SAM is called as well."""


def check_base(base: Optimizer) -> None:
    """Raises ValueError for an optimizer that calls a closure in its step, as LBFGS does."""
    closure = inspect.signature(type(base).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(base).__name__} evaluates the loss itself within a step, so that it cannot step along a gradient "
            "taken elsewhere: use another base optimizer"
        )


def settings_of_base(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the base optimizer takes them: without ours, and its own without the prefix."""
    prefixed = {PREFIX + name: name for name in SETTINGS}
    return {prefixed.get(name, name): value for name, value in settings.items() if name not in SETTINGS}


def settings_beside_ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The base optimizer's settings as a group holds them beside ours: with the prefix where one is called the same."""
    return {PREFIX + name if name in SETTINGS else name: value for name, value in settings.items()}


def load_exactly(base: Optimizer, state_dict: dict[str, Any]) -> None:
    """Loads the state with every scalar in the precision in which it was saved.

    torch casts what floats to its parameter's precision, also counters that never had it (NAdam's product of momenta
    is float32 whatever the parameters are), after which a run would not go on as it was.
    """
    base.load_state_dict(state_dict)
    params = [param for group in base.param_groups for param in group["params"]]
    for index, saved in state_dict["state"].items():
        state = base.state[params[index]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and value.dim() == 0:
                state[name] = value.to(state[name].device, copy=True)


def step_unless(is_skipped: Tensor, base: Optimizer, *, contested: tuple[str, ...]) -> None:
    """Steps along the gradients, or changes nothing where is_skipped, (), bool.

    contested: names that the groups hold twice, without the prefix for Unified SAM and with it for the base optimizer.

    As torch.amp.GradScaler does: a fused kernel skips on the device. Not on a parameter's first step, when fused SGD
    would leave its new momentum buffer uninitialised; there, and with other kernels, the flag is read back.
    """
    with _under_its_names(base, contested) if contested else nullcontext():
        if getattr(base, "_step_supports_amp_scaling", False) and _holds_its_state(base):
            base.grad_scale = None  # type: ignore[attr-defined]
            base.found_inf = is_skipped.float()  # type: ignore[attr-defined]
            try:
                base.step()
            finally:
                del base.grad_scale, base.found_inf  # type: ignore[attr-defined]
        elif not bool(is_skipped):
            base.step()


@contextmanager
def _under_its_names(base: Optimizer, contested: tuple[str, ...]) -> Iterator[None]:
    """Within, the groups hold the base optimizer's values under the contested names."""
    ours = [{name: group[name] for name in contested} for group in base.param_groups]
    for group in base.param_groups:
        group.update({name: group[PREFIX + name] for name in contested})
    try:
        yield
    finally:
        for group, settings in zip(base.param_groups, ours, strict=True):
            group.update(settings)


def _holds_its_state(base: Optimizer) -> bool:
    """Whether the base optimizer holds what it keeps for every parameter with a gradient."""
    return all(
        param in base.state
        for group in base.param_groups
        if not (isinstance(base, torch.optim.SGD) and group["momentum"] == 0)  # keeps no state, and no other is like it
        for param in group["params"]
        if param.grad is not None
    )
