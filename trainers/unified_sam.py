"""Unified SAM: x⁺ = x − γ_t · g_S(x + ρ (1 − λ_t + λ_t/‖g_S(x)‖) · g_S(x))   (arXiv 2503.02225, eq. 2).

One optimizer around any base optimizer of torch. λ = 1 is SAM, λ = 0 is USAM, between lies their convex combination.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from trainers.batchnorm import frozen_running_statistics
from trainers.schedules import lam_at


def ascent_scale(grad_norm: Tensor, *, rho: float, lam: float) -> Tensor:
    """Factor s of the ascent step w + s·g; lam = 0 is USAM (s = rho), lam = 1 is SAM (s = rho / ‖g‖).

    grad_norm: (), the global L2 norm of g. Where it is zero, so small that its reciprocal overflows, or not finite,
    s is 0: there is no direction to ascend along.
    """
    has_direction = (grad_norm >= torch.finfo(grad_norm.dtype).tiny) & torch.isfinite(grad_norm)
    return torch.where(has_direction, rho * (1 - lam + lam / grad_norm), 0.0)


class UnifiedSAM(Optimizer):
    """Unified SAM around a base optimizer, which owns learning rate, momentum and weight decay.

    Either `loss = optimizer.step(closure, model=model)`, or by hand::

        loss_at(batch).backward()
        optimizer.first_step()    # ascends to w + s·g and clears the gradients
        with frozen_running_statistics(model):
            loss_at(batch).backward()
        optimizer.second_step()   # returns to w exactly, then steps along the second gradient

    Both freeze the running statistics of batch normalisation during the second pass, so that they move once a step;
    without `model`, or without `trainers.batchnorm.frozen_running_statistics`, they move twice.

    The gradients must be those of the mean (weighted) loss, unscaled and unclipped, of the same batch with the same
    weights in both passes; clipping, if any, goes right before `second_step`.

    params: parameters, or groups, which may carry their own "rho" and "lam"; all on one device.
    base_optimizer: called as base_optimizer(groups, **base_arguments).
    rho: radius of the ascent, a finite number of at least 0. Where it is 0 in every group, `step` makes one pass only.
    lam: λ in [0, 1], "1/t" or "1-1/t"; t counts the steps from 1, skipped ones included.

    A gradient that is not finite, in either pass, skips the step: weights and momentum stay as they are and
    `skipped_steps` grows by one. No tensor is read back to the host, except one flag per step, in `second_step`, where
    the base optimizer cannot be told to skip on the device (it can when built with fused=True, once it holds the state
    that it keeps).

    The groups and the state are the base optimizer's own, so that learning-rate schedulers act on it.
    Raises ValueError for rho and lam out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        lam: float | str = 1.0,
        **base_arguments: Any,
    ) -> None:
        super().__init__(params, {**base_arguments, "rho": rho, "lam": lam})
        self.base = base_optimizer(self.param_groups, **base_arguments)
        self.defaults.update(self.base.defaults)
        self._share_with_base()
        self._t = 0
        self._skipped_steps = torch.zeros((), dtype=torch.int64)
        self._last_grad_norm = torch.zeros(())
        self._last_perturbation_norm = torch.zeros(())
        self._originals: list[tuple[list[Tensor], list[Tensor]]] | None = None

    @property
    def t(self) -> int:
        """Steps taken, skipped ones included."""
        return self._t

    @property
    def skipped_steps(self) -> Tensor:
        """(), int64: steps skipped because a gradient was not finite."""
        return self._skipped_steps

    @property
    def last_grad_norm(self) -> Tensor:
        """(), L2 norm of the last first-pass gradient over all parameters."""
        return self._last_grad_norm

    @property
    def last_perturbation_norm(self) -> Tensor:
        """(), L2 norm of the last ascent s·g over all parameters."""
        return self._last_perturbation_norm

    @property
    def is_perturbed(self) -> bool:
        """Whether the weights are at the ascent point, between `first_step` and `second_step`."""
        return self._originals is not None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with its own "rho" and "lam" or the defaults. Raises ValueError where they are out of range."""
        check_rho_and_lam({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def first_step(self) -> None:
        """Ascends along the gradients that the parameters hold, and clears them.

        Raises RuntimeError where the weights are already at an ascent point.
        """
        if self.is_perturbed:
            raise RuntimeError("first_step() called twice: call second_step() or abandon_step() in between")
        groups = [_with_gradient(group["params"]) for group in self.param_groups]
        norms = [_global_norm(gradients) for _, gradients in groups]
        self._last_grad_norm = _norm_of_norms(norms)
        self._originals = []
        perturbation_norms = []
        for group, (params, gradients), norm in zip(self.param_groups, groups, norms, strict=True):
            lam = lam_at(group["lam"], self._t + 1)
            scale = ascent_scale(self._last_grad_norm, rho=group["rho"], lam=lam)
            perturbation_norms.append(scale * norm)
            if params and group["rho"] > 0:
                self._originals.append((params, [param.clone() for param in params]))
                torch._foreach_add_(params, torch._foreach_mul(gradients, scale))
        self._last_perturbation_norm = _norm_of_norms(perturbation_norms)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Returns to the weights before the ascent, bit for bit, and steps the base optimizer from there.

        Raises RuntimeError where no `first_step` came before.
        """
        self._restore()
        gradients = [_with_gradient(group["params"])[1] for group in self.param_groups]
        second_norm = _norm_of_norms([_global_norm(of_group) for of_group in gradients])
        self._descend(torch.isfinite(self._last_grad_norm) & torch.isfinite(second_norm))

    def abandon_step(self) -> None:
        """Returns to the weights before the ascent, bit for bit, without a step, and clears the gradients.

        Raises RuntimeError where no `first_step` came before.
        """
        self._restore()
        self.zero_grad()

    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor], *, model: nn.Module | None = None
    ) -> Tensor:
        """One whole step; returns the closure's first loss, the one at the unperturbed weights.

        closure: forward and backward of one batch, returns the loss; called once before and once after the ascent
        (once in all where every rho is 0). Gradients are cleared before each call, so it need not do so itself.
        Where the second call raises, the weights are restored before the exception goes on.
        model: what the closure runs, where it normalises batches: its running statistics stay as they are during the
        second call. It is an argument here and not of the constructor so that copies and pickles of the optimizer hold
        no second model.
        """
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        two_passes = any(group["rho"] > 0 for group in self.param_groups)
        if not two_passes:
            self._step_along_first_gradient()
            return loss
        self.first_step()
        try:
            with torch.enable_grad(), nullcontext() if model is None else frozen_running_statistics(model):
                closure()
        except BaseException:
            self.abandon_step()
            raise
        self.second_step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state with rho and lam in its groups, the step counter and the count of skipped steps.

        Raises RuntimeError between `first_step` and `second_step`, when the weights are not those to be saved.
        """
        self._refuse_while_perturbed("saved")
        counters = {"t": self._t, "skipped_steps": self._skipped_steps.clone()}
        return {**self.base.state_dict(), "unified_sam": counters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises ValueError where the state is of another optimizer or does not fit the parameters, RuntimeError between
        `first_step` and `second_step`.
        """
        self._refuse_while_perturbed("loaded")
        if "unified_sam" not in state_dict:
            raise ValueError("not a state of UnifiedSAM: it has no key 'unified_sam'")
        for group in state_dict["param_groups"]:
            check_rho_and_lam(group)
        self.base.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._share_with_base()
        self._t = state_dict["unified_sam"]["t"]
        self._skipped_steps = state_dict["unified_sam"]["skipped_steps"].clone()

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_while_perturbed("saved")
        own = ("base", "_t", "_skipped_steps", "_last_grad_norm", "_last_perturbation_norm", "_originals")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_with_base()

    def _share_with_base(self) -> None:
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    def _refuse_while_perturbed(self, what: str) -> None:
        if self.is_perturbed:
            raise RuntimeError(f"the state cannot be {what} between first_step() and second_step()")

    def _restore(self) -> None:
        if self._originals is None:
            raise RuntimeError("no ascent to return from: call first_step() before")
        with torch.no_grad():
            for params, originals in self._originals:
                torch._foreach_copy_(params, originals)
        self._originals = None

    @torch.no_grad()
    def _step_along_first_gradient(self) -> None:
        gradients = [_with_gradient(group["params"])[1] for group in self.param_groups]
        self._last_grad_norm = _norm_of_norms([_global_norm(of_group) for of_group in gradients])
        self._last_perturbation_norm = torch.zeros_like(self._last_grad_norm)
        self._descend(torch.isfinite(self._last_grad_norm))

    def _descend(self, is_finite: Tensor) -> None:
        """Steps the base optimizer where is_finite, (), bool; counts the step either way."""
        self._t += 1
        self._opt_called = True  # what learning-rate schedulers look at to know that a step came before theirs
        self._skipped_steps = self._skipped_steps.to(is_finite.device) + is_finite.logical_not()
        # As torch.amp.GradScaler does: a fused kernel skips on the device. Not on a parameter's first step, when fused
        # SGD would leave its new momentum buffer uninitialised.
        if getattr(self.base, "_step_supports_amp_scaling", False) and self._holds_its_state():
            self.base.grad_scale = None  # type: ignore[attr-defined]
            self.base.found_inf = is_finite.logical_not().float()  # type: ignore[attr-defined]
            try:
                self.base.step()
            finally:
                del self.base.grad_scale, self.base.found_inf  # type: ignore[attr-defined]
        elif bool(is_finite):
            self.base.step()

    def _holds_its_state(self) -> bool:
        """Whether the base optimizer holds what it keeps for every parameter with a gradient."""
        return all(
            param in self.state
            for group in self.param_groups
            if _keeps_state(self.base, group)
            for param in group["params"]
            if param.grad is not None
        )


def check_rho_and_lam(group: dict[str, Any]) -> None:
    """Raises ValueError with the rule and the value where a group's "rho" or "lam" is out of range."""
    rho, lam = group["rho"], group["lam"]
    if not (_is_number(rho) and 0 <= rho <= sys.float_info.max):
        raise ValueError(f"rho must be a finite number of at least 0, got {rho!r}")
    if isinstance(lam, str):
        lam_at(lam, 1)
    elif not (_is_number(lam) and 0 <= lam <= 1):
        raise ValueError(f"lam must be a number in [0, 1], '1/t' or '1-1/t', got {lam!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _keeps_state(base: Optimizer, group: dict[str, Any]) -> bool:
    """False for SGD without momentum, the one base optimizer with fused kernels that keeps none."""
    return not (isinstance(base, torch.optim.SGD) and group["momentum"] == 0)


def _with_gradient(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that hold a gradient, and those gradients."""
    held = [(param, param.grad) for param in params if param.grad is not None]
    return [param for param, _ in held], [gradient for _, gradient in held]


def _global_norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm over all elements, in float32, or in float64 where there is a float64 tensor; 0 for no tensors."""
    if not tensors:
        return torch.zeros(())
    precise = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if precise else torch.float32
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)))
    return norm


def _norm_of_norms(norms: list[Tensor]) -> Tensor:
    """L2 norm of several parts' norms, on the device and in the precision of the most precise."""
    if len(norms) == 1:
        return norms[0]
    dtype = max((norm.dtype for norm in norms), key=lambda item: item.itemsize)
    device = next((norm.device for norm in norms if norm.device.type != "cpu"), norms[0].device)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(device, dtype) for norm in norms]))
    return norm
