"""The optimizer that Unified SAM wraps: which ones can be, whose setting a name is, and steps that may be skipped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trainers.unified_sam import scalars
from trainers.unified_sam.ascent import SETTINGS, check_maximize
from trainers.unified_sam.scalars import Flag

PREFIX = "base_"
"""Begins the name of a setting of the base optimizer that a setting of Unified SAM is called as well."""

_SKIPS_ON_DEVICE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
"""Optimizers whose fused kernels take `found_inf`. A class derived from one may step otherwise and is none of them."""

_FUSED_BY_DEFAULT = _SKIPS_ON_DEVICE if torch.__version__ >= "2.13" else _SKIPS_ON_DEVICE[:-1]
"""Those that have fused kernels on CUDA: Adagrad, the last one, since torch 2.13."""

_DEVICES_WITH_FUSED_KERNELS = ("cpu", "cuda")

_COUNTERS = ("step", "mu_product", "eta", "mu")
"""What optimizers of torch keep as a scalar for a parameter of any shape: for all, NAdam, and ASGD."""


def check_base(base: Optimizer) -> None:
    """Raises ValueError for an optimizer that calls a closure in its step, as LBFGS does, takes sparse gradients alone,
    or maximises."""
    if isinstance(base, torch.optim.SparseAdam):
        raise ValueError("SparseAdam takes sparse gradients alone, whose norm is not taken here: use Adam")
    closure = inspect.signature(type(base).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(base).__name__} evaluates the loss itself within a step, so that it cannot step along a gradient "
            "taken elsewhere: use another base optimizer"
        )
    for group in base.param_groups:
        check_maximize(group)


def settings_of_base(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the base optimizer takes them: without ours, and its own without the prefix."""
    prefixed = {PREFIX + name: name for name in SETTINGS}
    return {prefixed.get(name, name): value for name, value in settings.items() if name not in SETTINGS}


def settings_beside_ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The base optimizer's settings as a group holds them beside ours: with the prefix where one is called the same."""
    return {PREFIX + name if name in SETTINGS else name: value for name, value in settings.items()}


def with_fused_kernels(
    base_optimizer: Callable[..., Optimizer], arguments: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The arguments, with fused=True where nothing says otherwise and it spares each step a wait for the device.

    That is where the base optimizer is one whose fused kernels can skip a step, all parameters are floating-point and
    on CUDA, and neither the arguments nor a group name a kernel.
    """
    says_otherwise = any(
        settings.get("foreach") is not None or settings.get("fused") is not None or settings.get("differentiable")
        for settings in (arguments, *groups)
    )
    params = [param for group in groups for param in group["params"]]
    has_fused = all(param.is_floating_point() and param.device.type in _DEVICES_WITH_FUSED_KERNELS for param in params)
    waits = not any(map(scalars.is_read_freely, params))
    is_fused = base_optimizer in _FUSED_BY_DEFAULT and has_fused and waits and not says_otherwise
    return {**arguments, "fused": True} if is_fused else dict(arguments)


def load_exactly(base: Optimizer, state_dict: dict[str, Any]) -> None:
    """Loads the state with every counter in the precision in which it was saved.

    torch casts what floats to its parameter's precision, also counters that never had it (NAdam's product of momenta
    is float32 whatever the parameters are), after which a run would not go on as it was.
    """
    base.load_state_dict(state_dict)
    saved_indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = dict(zip(saved_indices, chain.from_iterable(group["params"] for group in base.param_groups), strict=True))
    for index, param in params.items():
        for name, value in state_dict["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.dim() == 0 and (param.dim() > 0 or name in _COUNTERS):
                base.state[param][name] = value.to(base.state[param][name].device, copy=True)


def step_unless(is_skipped: Flag, base: Optimizer, *, contested: tuple[str, ...]) -> None:
    """Steps along the gradients, or changes nothing where is_skipped.

    contested: names that the groups hold twice, without the prefix for Unified SAM and with it for the base optimizer.

    A flag that a device holds is left there where the step is a fused kernel, which skips by itself, as under
    torch.amp.GradScaler. Not where SGD's momentum begins, whose new buffer a skip would leave uninitialised; there, and
    with other kernels, it is read back.
    """
    with _under_its_names(base, contested) if contested else nullcontext():
        if isinstance(is_skipped, Tensor) and _skips_on_device(base):
            base.grad_scale = None  # type: ignore[attr-defined]
            base.found_inf = is_skipped.float()  # type: ignore[attr-defined]
            try:
                base.step()
            finally:
                del base.grad_scale, base.found_inf  # type: ignore[attr-defined]
        elif not is_skipped:
            late = _groups_with_late_first_steps(base)
            with _not_fused(late) if late else nullcontext():
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


def _skips_on_device(base: Optimizer) -> bool:
    """Whether every kernel of the step can be told to skip, and a skip leaves no momentum uninitialised.

    The groups say it, and no attribute of the optimizer: a copy loses those, and a loaded state brings its own groups.
    """
    return type(base) in _SKIPS_ON_DEVICE and all(
        group.get("fused") and not group.get("foreach") and False not in _momentum_begun(base, group)
        for group in base.param_groups
    )


def _momentum_begun(base: Optimizer, group: Mapping[str, Any]) -> set[bool]:
    """Whether the momentum that SGD keeps has begun, over the group's parameters with a gradient; else no answer."""
    if not isinstance(base, torch.optim.SGD) or group["momentum"] == 0:
        return set()
    used = [base.state.get(param) for param in group["params"] if param.grad is not None]  # a look-up begins no state
    return {state is not None and state.get("momentum_buffer") is not None for state in used}


def _groups_with_late_first_steps(base: Optimizer) -> list[dict[str, Any]]:
    """The groups of fused SGD in which some parameters have momentum and others, used late, have none yet.

    The fused kernel fails there, and the others begin the momentum of those parameters as ever.
    """
    return [group for group in base.param_groups if group.get("fused") and len(_momentum_begun(base, group)) == 2]


@contextmanager
def _not_fused(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Within, the groups use other kernels than the fused ones."""
    kernels = [group["fused"] for group in groups]
    for group in groups:
        group["fused"] = None
    try:
        yield
    finally:
        for group, kernel in zip(groups, kernels, strict=True):
            group["fused"] = kernel
