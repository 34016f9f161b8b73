"""Unified SAM: x⁺ = x − γ_t · g_S(x + ρ_t (1 − λ_t + λ_t/‖g_S(x)‖) · g_S(x))   (arXiv 2503.02225, eq. 2).

One optimizer around any base optimizer of torch. λ = 1 is SAM, λ = 0 is USAM, between lies their convex combination.
`trainers.unified_sam.ascent` has the formulas, `trainers.schedules` λ_t and ρ_t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import Optimizer, ParamsT

from trainers.batchnorm import RunningStatistics
from trainers.schedules import Setting, check_count
from trainers.unified_sam.ascent import Ascent, ascend, ascent_at, check_flag, check_limit, clip_factor
from trainers.unified_sam.base_optimizer import load_exactly, step_unless
from trainers.unified_sam.distributed import local_gradients, mean_over_replicas
from trainers.unified_sam.gradients import GradientMean, check_shares, clear_gradients, weighted_mean, with_gradient
from trainers.unified_sam.loss_scaling import unscale, update_scale
from trainers.unified_sam.saved_state import OwnState, join_state, split_state
from trainers.unified_sam.saved_weights import SavedWeights
from trainers.unified_sam.scalars import Flag, Scalar, global_norm, is_not_finite, number, tensor_of
from trainers.unified_sam.wrapping import WrappingOptimizer

Closure = Callable[[], Tensor]

_OWN_ATTRIBUTES = (
    *("max_perturbation", "clip_norm", "synchronise"),
    *("_t", "_skipped_steps", "_last_grad_norm", "_last_perturbation_norm"),
)
"""What a copy or a pickle carries beside torch's own; the memory of the saved weights stays behind."""


class UnifiedSAM(WrappingOptimizer):
    """Unified SAM around a base optimizer, which owns learning rate, momentum and weight decay.

    Either `loss = optimizer.step(closure, model=model)`, or by hand::

        optimizer.zero_grad()
        loss_at(batch).backward()
        optimizer.first_step()    # ascends to w + s·g and clears the gradients
        with frozen_running_statistics(model):
            loss_at(batch).backward()
        optimizer.second_step()   # returns to w exactly, then steps along the second gradient

    Both freeze the running statistics of batch normalisation during the second pass, so that they move once a step;
    without `model`, or without `trainers.batchnorm.frozen_running_statistics`, they move twice.

    The gradients must be those of the mean (weighted) loss, unclipped, of the same batch with the same weights in both
    passes. A closure may add them up over several backward passes.

    params: parameters, or groups, which may carry their own "rho", "lam", "adaptive" and "eta"; these may be changed
        between steps. All parameters are real and on one device, and their gradients dense.
    base_optimizer: called as base_optimizer(groups, **base_arguments). A setting of it that is called like one of ours
        has the prefix "base_" here: `base_rho` is the ρ of Adadelta.
    rho: radius of the ascent, a finite number of at least 0 or a `Schedule`. Where it is 0 in every group, a step makes
        one pass only.
    lam: λ in [0, 1], "1/t", "1-1/t" or a `Schedule`; t counts the steps from 1, skipped ones included.
    adaptive: scale the ascent by |w| + η, as ASAM does; eta: its η, at least 0. See `trainers.unified_sam.ascent`.
    max_perturbation: the largest radius of the ascent, over all groups together, above 0; None for no bound. With λ < 1
        the radius grows with the gradient.
    clip_norm: the largest global norm, above 0, of the gradient that the base optimizer steps along; None for no bound.
        The gradient of the ascent is never clipped.
    synchronise: where `model` is a DistributedDataParallel, ascend along the mean gradient of all replicas (True: what
        one process with the whole batch does), or each replica along its own (False: m-sharpness, and only the second
        gradient is communicated). The descent is along the mean either way, and replicas stay equal bit for bit.
        False does not go with DistributedDataParallel(static_graph=True), which knows no pass without communication,
        nor with its `join`, which does not know of the norms that replicas exchange: that waits for ever.

    A gradient whose norm is not finite, in either pass, on any replica, skips the step: weights and momentum stay as
    they are, in `step` and `step_micro_batches` with a `model` the running statistics too, and `skipped_steps` grows by
    one. After such a first pass there is no ascent: the second one runs at the weights of the first.
    `trainers.unified_sam.ascent` says which gradients have a norm.

    With fused kernels in all groups of SGD, Adam, AdamW or Adagrad nothing is read back from a device, except one flag
    where SGD's momentum begins. fused=True is the default for these four on CUDA, where the parameters are
    floating-point and neither foreach nor fused is given (nor differentiable). With every other base optimizer, with
    other kernels, and with a class or function around one of the four, each step reads one flag back, as their kernels
    cannot be told to skip.

    Autocast to bfloat16 needs nothing more. For float16 give a step a GradScaler as `scaler`, and have the closure call
    `scaler.scale(loss).backward()`: the step unscales, skips where a pass overflows, and updates the scaler once.

    The groups and the state are the base optimizer's own, so that learning-rate schedulers act on it.
    Raises ValueError for settings out of range and for a base optimizer that maximises or evaluates the loss itself
    (LBFGS).
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Callable[..., Optimizer],
        *,
        rho: Setting = 0.05,
        lam: Setting = 1.0,
        adaptive: bool = False,
        eta: float = 0.01,
        max_perturbation: float | None = None,
        clip_norm: float | None = None,
        synchronise: bool = True,
        **base_arguments: Any,
    ) -> None:
        self.max_perturbation = max_perturbation
        self.clip_norm = clip_norm
        self.synchronise = synchronise
        self._check_options()
        settings = {"rho": rho, "lam": lam, "adaptive": adaptive, "eta": eta}
        super().__init__(params, settings, base_optimizer, base_arguments)
        self._t = 0
        self._skipped_steps = torch.zeros((), dtype=torch.int64)
        self._last_grad_norm: Scalar = 0.0
        self._last_perturbation_norm: Scalar = 0.0
        self._saved = SavedWeights()

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
        """(), L2 norm of the last first-pass gradient over all parameters, not finite where the pass overflowed.

        In float64 on the CPU, elsewhere in the precision in which it was taken.

        Where micro-batches, or replicas, ascend each along its own gradient, the mean of their norms; where none
        ascends, every rho being 0, the norm of their mean gradient.
        """
        return tensor_of(self._last_grad_norm)

    @property
    def last_perturbation_norm(self) -> Tensor:
        """(), the radius of the last ascent s·g: its L2 norm over all parameters, adaptive ones divided by |w| + η.

        Over micro-batches and replicas the mean, as for `last_grad_norm`.
        """
        return tensor_of(self._last_perturbation_norm)

    @property
    def is_perturbed(self) -> bool:
        """Whether the weights are at the ascent point, between `first_step` and `second_step`."""
        return self._saved.is_holding

    @torch.no_grad()
    def first_step(self, *, scaler: GradScaler | None = None) -> None:
        """Ascends along the gradients that the parameters hold, and clears them.

        scaler: what scaled their loss.
        Raises RuntimeError where the weights are already at an ascent point, ValueError for settings out of range.
        """
        if self.is_perturbed:
            raise RuntimeError("first_step() called twice: call second_step() or abandon_step() in between")
        self._last_grad_norm, self._last_perturbation_norm = self._ascend(self._ascents(), scaler)

    @Optimizer.profile_hook_step
    @torch.no_grad()
    def second_step(self, *, model: nn.Module | None = None, scaler: GradScaler | None = None) -> None:
        """Returns to the weights before the ascent, bit for bit, and steps the base optimizer from there.

        Hooks of a step run around it, those before the step at the ascent point. The second gradient, clipped where
        there is a `clip_norm`, stays with the parameters as after a step of any optimizer of torch, until `zero_grad`.

        model: the DistributedDataParallel module, where replicas ascended each along its own gradient.
        scaler: what scaled the loss of the second gradient; it is updated.
        Raises RuntimeError where no `first_step` came before.
        """
        self._return()
        gradients = self._gradients()[1]
        unscale(gradients, scaler)
        self._agree(model)
        self._descend(gradients, self._last_grad_norm, scaler)

    @torch.no_grad()
    def abandon_step(self) -> None:
        """Returns to the weights before the ascent, bit for bit, without a step, and clears the gradients.

        Raises RuntimeError where no `first_step` came before.
        """
        self._return()
        clear_gradients(self.param_groups)

    def step(  # type: ignore[override]
        self, closure: Closure, *, model: nn.Module | None = None, scaler: GradScaler | None = None
    ) -> Tensor:
        """One whole step; returns the closure's first loss, the one at the unperturbed weights.

        closure: forward and backward of one batch, returns the loss; called once before and once after the ascent
        (once in all where every rho is 0). Gradients are cleared before each call, so it need not do so itself.
        Where the second call raises, the weights are restored before the exception goes on.
        model: what the closure runs, where it normalises batches or is a DistributedDataParallel: its running
        statistics stay as they are during the second call, and in a step that is skipped. It is an argument here and
        not of the constructor so that copies and pickles of the optimizer hold no second model.
        scaler: what the closure scales the loss with before its backward pass; it returns the loss unscaled.
        """
        return self._step([closure], [1.0], model, scaler)

    @Optimizer.profile_hook_step
    def step_micro_batches(
        self,
        closures: Sequence[Closure],
        shares: Sequence[float],
        *,
        model: nn.Module | None = None,
        scaler: GradScaler | None = None,
    ) -> Tensor:
        """One whole step over a batch in micro-batches, each of which ascends by its own gradient (m-sharpness).

        The descent is along the mean of the second gradients, Σ share_i · g_i(w + ε_i). Where every rho is 0 this is
        gradient accumulation. Running statistics move at the first pass of each micro-batch, as they do there.

        closures: as `step` takes it, one a micro-batch, of its own mean loss.
        shares: of each micro-batch in the batch, at least 0 and 1 in all.
        Returns the mean of the first losses, Σ share_i · loss_i.
        Raises ValueError for shares that are no such numbers.
        """
        check_shares(shares, len(closures))
        return self._step(closures, [float(share) for share in shares], model, scaler)

    def count_steps(self, steps: int, *, skipped: int) -> None:
        """Counts steps that something else took in its place, so that t, and every schedule of it, goes on from there.

        steps: at least 0. skipped: how many of them left the weights as they were.
        Raises ValueError for other numbers, RuntimeError between `first_step` and `second_step`.
        """
        if self.is_perturbed:
            raise RuntimeError("steps cannot be counted between first_step() and second_step()")
        check_count("steps", steps, 0)
        check_count("skipped", skipped, 0)
        if skipped > steps:
            raise ValueError(f"skipped must be at most steps, {steps}, got {skipped}")
        self._t += int(steps)
        self._skipped_steps = self._skipped_steps + int(skipped)
        if steps:
            self._opt_called = True

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state with our settings in its groups, and `OwnState`, as tensors and plain data.

        Raises RuntimeError between `first_step` and `second_step`, when the weights are not those to be saved.
        """
        self._refuse_while_perturbed("saved")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        limits = self.max_perturbation, self.clip_norm
        own = OwnState(type(self.base).__name__, self._t, self._skipped_steps, *limits, self.synchronise)
        state = join_state(self.base.state_dict(), own)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises ValueError where the state is of another optimizer or base optimizer, breaks a rule or is of other groups
        or another number of parameters, RuntimeError between `first_step` and `second_step`; nothing has changed then.
        Shapes are not compared, because some base optimizers keep a state of another shape than the parameter.
        """
        self._refuse_while_perturbed("loaded")
        state = state_dict.copy()  # whose entries a hook may change
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state)
            state = state if changed is None else changed
        base_state, own = split_state(state, base=type(self.base).__name__)
        load_exactly(self.base, base_state)
        self._share_with_base()
        self._t, self._skipped_steps = own.t, own.skipped_steps
        self.max_perturbation, self.clip_norm, self.synchronise = own.max_perturbation, own.clip_norm, own.synchronise
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_while_perturbed("saved")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _OWN_ATTRIBUTES}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._saved = SavedWeights()

    def _refuse_while_perturbed(self, what: str) -> None:
        if self.is_perturbed:
            raise RuntimeError(f"the state cannot be {what} between first_step() and second_step()")

    def _check_options(self) -> None:
        check_limit("max_perturbation", self.max_perturbation)
        check_limit("clip_norm", self.clip_norm)
        check_flag("synchronise", self.synchronise)

    def _ascents(self) -> list[Ascent]:
        """Each group's ascent at the step to come."""
        self._check_options()
        return [ascent_at(group, self._t + 1) for group in self.param_groups]

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """All parameters that hold a gradient, and those gradients."""
        return with_gradient([param for group in self.param_groups for param in group["params"]])

    @torch.no_grad()
    def _step(
        self, closures: Sequence[Closure], shares: Sequence[float], model: nn.Module | None, scaler: GradScaler | None
    ) -> Tensor:
        if self.is_perturbed:
            raise RuntimeError("the weights are at an ascent point: call second_step() or abandon_step() before a step")
        ascents = self._ascents()
        ascends = any(ascent.rho > 0 for ascent in ascents)
        statistics = RunningStatistics(model)
        statistics.keep()
        is_local = ascends and not self.synchronise
        gradient_mean = GradientMean() if len(closures) > 1 else None
        losses, norms = [], []
        for closure, share in zip(closures, shares, strict=True):
            clear_gradients(self.param_groups)
            with torch.enable_grad(), local_gradients(model) if is_local else nullcontext():
                losses.append(closure())
            if ascends:
                try:
                    norms.append(self._ascend(ascents, scaler))
                    with torch.enable_grad(), statistics.frozen():
                        closure()
                    self._return()
                except BaseException:
                    if self.is_perturbed:  # also where an interrupt met the return, which can be begun anew
                        self.abandon_step()
                    raise
            params, gradients = self._gradients()
            unscale(gradients, scaler)
            if gradient_mean is not None:
                gradient_mean.add(params, gradients, share)
        if gradient_mean is not None:
            gradients = gradient_mean.assign()
        if ascends:
            self._last_grad_norm = weighted_mean([grad_norm for grad_norm, _ in norms], shares)
            self._last_perturbation_norm = weighted_mean([radius for _, radius in norms], shares)
            self._agree(model)
        is_skipped = self._descend(gradients, self._last_grad_norm if ascends else None, scaler)
        statistics.put_back(is_skipped)
        return weighted_mean(losses, shares)

    def _zero(self) -> Scalar:
        """The norm of no gradients, on the parameters' device: a copy from the host would wait for it."""
        params = [param for group in self.param_groups for param in group["params"]]
        return number(torch.zeros((), device=params[0].device if params else None))

    def _ascend(self, ascents: list[Ascent], scaler: GradScaler | None) -> tuple[Scalar, Scalar]:
        """Saves the weights and moves them to the ascent point; returns the gradient's norm and the ascent's radius."""
        parts: dict[Ascent, tuple[list[Tensor], list[Tensor]]] = {}
        for group, ascent in zip(self.param_groups, ascents, strict=True):
            params, gradients = with_gradient(group["params"])
            if params:
                of_ascent = parts.setdefault(ascent, ([], []))
                of_ascent[0].extend(params)
                of_ascent[1].extend(gradients)
        for _, gradients in parts.values():
            unscale(gradients, scaler)
        self._saved.save([param for ascent, (params, _) in parts.items() if ascent.rho > 0 for param in params])
        norms = ascend(parts, max_perturbation=self.max_perturbation) if parts else (self._zero(), self._zero())
        clear_gradients(self.param_groups)
        torch.clear_autocast_cache()  # an autocast around the whole step would go on with the weights it has cast
        return norms

    def _return(self) -> None:
        self._saved.restore()
        torch.clear_autocast_cache()

    def _agree(self, model: nn.Module | None) -> None:
        """Makes replicas that ascended each on its own report the same norms, and skip the same steps."""
        if not self.synchronise:
            norms = torch.stack((self.last_grad_norm, self.last_perturbation_norm))
            self._last_grad_norm, self._last_perturbation_norm = map(number, mean_over_replicas(norms, model))

    def _descend(self, gradients: list[Tensor], first_norm: Scalar | None, scaler: GradScaler | None) -> Flag:
        """Steps the base optimizer where both norms are finite; counts the step either way. Returns whether it skipped.

        gradients: all that the parameters hold.
        first_norm: that of the ascent's gradient; None where there was no ascent.
        """
        norm = global_norm(gradients) if gradients else self._zero()
        if first_norm is None:
            self._last_grad_norm, self._last_perturbation_norm = norm, self._zero()
        is_skipped = is_not_finite(norm if first_norm is None else norm + first_norm)
        if self.clip_norm is not None and gradients:
            torch._foreach_mul_(gradients, clip_factor(norm, self.clip_norm))
        step_unless(is_skipped, self.base, contested=self._contested)
        self._t += 1
        self._opt_called = True  # what learning-rate schedulers look at to know that a step came before theirs
        self._count_skip(is_skipped)
        update_scale(scaler, is_skipped)
        torch.clear_autocast_cache()  # as the weights have moved
        return is_skipped

    def _count_skip(self, is_skipped: Flag) -> None:
        if isinstance(is_skipped, Tensor):
            self._skipped_steps = self._skipped_steps.to(is_skipped.device) + is_skipped
        elif is_skipped:
            self._skipped_steps = self._skipped_steps + 1
