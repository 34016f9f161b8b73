"""The loss landscape around the weights of a model: how sharp, how curved, and the loss along the gradient.

f is the mean of the f_i over a batch, in evaluation mode (running statistics of batch normalisation, no dropout), as a
function of the trainable weights x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from trainers.curvature import largest_eigenvalue, rademacher, trace
from trainers.evaluation import evaluation_mode
from trainers.objective import Objective

ASCENT_STEPS = 10
_ASCENT_LENGTH = 4.0
LANCZOS_PRODUCTS = 40
"""At most; with the tolerance of `largest_eigenvalue` the Hessians of networks take 10 to 20."""
TRACE_PROBES = 16

_CHUNK_VALUES = 2**18
"""Input values of the examples that go through the model at once: 85 images of CIFAR."""


def landscape(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    *,
    rho: float,
    generator: torch.Generator,
    chunk_size: int | None = None,
) -> dict[str, float]:
    """What the landscape looks like at the model's weights, by metric:

    - sharpness_one_step: f(x + ρ g/‖g‖) − f(x), with g = ∇f(x); 0 where g = 0.
    - sharpness_multi_step: the best lower bound of max_{‖e‖≤ρ} f(x + e) − f(x) among e = 0 and the points of
      `ascent_losses`; hence at least 0 and at least sharpness_one_step.
    - hessian_max_eigenvalue, hessian_max_eigenvalue_error: the largest eigenvalue of ∇²f(x), and a bound of its
      distance to one, see `largest_eigenvalue`.
    - hessian_trace, hessian_trace_standard_error: tr ∇²f(x), estimated, see `trace`.
    - loss_at_minus_2_rho, loss_at_minus_rho, loss_at_plus_rho, loss_at_plus_2_rho: f(x + α g/‖g‖).

    model: as built, not as compiled by torch.compile, which cannot differentiate twice.
    inputs, targets: (n, …) and (n,), prepared for the model. rho: radius, a positive number.
    generator: on any device; where its state is the same, so are the numbers.
    chunk_size: examples that go through the model at once, which bounds the memory; chosen by their size where None.

    Takes 11 forward-backward passes over the batch, 3 forward ones, and 21 to 56 products with the Hessian, each of
    which costs 2 (dense layers) to 4.5 (convolutions on a CPU) forward-backward passes.

    Weights, gradients, buffers, modes and the global random state are afterwards what they were. Where f is not finite,
    or its derivatives are not, the numbers that depend on them are not either. Raises ValueError for a bad rho, an
    empty batch and a model without weights.
    """
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"rho must be a finite number above 0, got {rho!r}")
    with loss_surface(model, objective, inputs, targets, chunk_size=chunk_size) as surface:
        loss, gradient = surface.value_and_gradient(surface.origin)
        random = torch.randn(surface.origin.shape, generator=generator, device=generator.device).to(surface.origin)
        direction = unit(gradient)
        ascended = ascent_losses(surface.value_and_gradient, gradient, random, rho=rho, steps=ASCENT_STEPS)
        far_below, below, far_above = (surface.value(scale * rho * direction) for scale in (-2, -1, 2))
        eigenvalue, error = largest_eigenvalue(surface.hessian_product, random, max_products=LANCZOS_PRODUCTS)
        probes = (rademacher(surface.origin, generator) for _ in range(TRACE_PROBES))
        metrics = {
            "sharpness_one_step": ascended[0] - loss,
            "sharpness_multi_step": torch.maximum(ascended.max(), loss) - loss,
            "loss_at_minus_2_rho": far_below,
            "loss_at_minus_rho": below,
            "loss_at_plus_rho": ascended[0],
            "loss_at_plus_2_rho": far_above,
        }
        metrics["hessian_trace"], metrics["hessian_trace_standard_error"] = trace(surface.hessian_product, probes)
        values = torch.stack(list(metrics.values())).tolist()
    spectrum = {"hessian_max_eigenvalue": eigenvalue, "hessian_max_eigenvalue_error": error}
    return {**dict(zip(metrics, values, strict=True)), **spectrum}


def ascent_losses(
    value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    gradient: Tensor,
    random: Tensor,
    *,
    rho: float,
    steps: int,
) -> Tensor:
    """(steps,): f at the points of projected gradient ascent in the ball ‖e‖ ≤ ρ around the weights.

    e₁ = ρ g/‖g‖ is SAM's one step; then e_{k+1} = Π(e_k + 4ρ ∇f(e_k)/‖∇f(e_k)‖), Π the projection onto the ball. Where
    f is convex it does not fall from point to point, whatever the length of the steps; steps as long as these come near
    the maximum in a few, like a power iteration, and the e_k in them damps the swing where f is not convex.
    Where g = 0, e₁ = 0; where a later gradient vanishes, the direction of `random`, (d,), takes its place.

    value_and_gradient: f and ∇f at a displacement e (d,). gradient: (d,), g = ∇f(0).
    """
    losses = []
    displacement = rho * unit(gradient)
    spare = unit(random)
    for _ in range(steps):
        loss, gradient = value_and_gradient(displacement)
        losses.append(loss)
        direction = unit(gradient)
        direction = torch.where(direction.any(), direction, spare)
        displacement = _projected(displacement + _ASCENT_LENGTH * rho * direction, rho)
    return torch.stack(losses)


def unit(vector: Tensor) -> Tensor:
    """The vector at length 1; zero where its length vanishes in its precision, NaN where it is not finite."""
    norm = torch.linalg.vector_norm(vector)
    reciprocal = torch.where(norm < torch.finfo(norm.dtype).tiny, 0.0, 1 / norm)
    return vector * torch.where(torch.isinf(norm), torch.nan, reciprocal)


@contextmanager
def loss_surface(
    model: nn.Module, objective: Objective, inputs: Tensor, targets: Tensor, *, chunk_size: int | None = None
) -> Iterator[LossSurface]:
    """Within, f around the model's weights can be asked for; the model and the global random state are left alone.

    In the precision of the weights, and with functions that can be differentiated twice. Raises ValueError
    for an empty batch and for a model without a weight that requires a gradient.
    """
    if len(inputs) == 0:
        raise ValueError("a batch must hold at least one example, got none")
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError("the model must have a weight that requires a gradient, got none")
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_VALUES // inputs[0].numel())
    device = inputs.device
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_TwiceDifferentiable())
        yield LossSurface(model, objective, inputs, targets, chunk_size=chunk_size)


class LossSurface:
    """f as a function of a displacement e of the trainable weights; see `loss_surface`, which makes it.

    A displacement, a gradient and a vector are (d,), the trainable weights behind each other in their model's order.
    The model's own weights are read and never written.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, inputs: Tensor, targets: Tensor, *, chunk_size: int
    ) -> None:
        self._losses = _ExampleLosses(model, objective)
        self._weights = {name: param for name, param in self._losses.named_parameters() if param.requires_grad}
        self._chunks = list(zip(torch.split(inputs, chunk_size), torch.split(targets, chunk_size), strict=True))
        self._size = len(inputs)
        self.origin = torch.zeros_like(_flat(list(self._weights.values())))

    def value(self, displacement: Tensor) -> Tensor:
        """(), float64: f(x + e)."""
        with torch.no_grad():
            weights = self._displaced(displacement)
            return torch.stack([self._share(weights, *chunk) for chunk in self._chunks]).sum()

    def value_and_gradient(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """(), float64, and (d,): f(x + e) and ∇f(x + e)."""
        weights = self._displaced(displacement)
        value, gradient = torch.zeros((), dtype=torch.float64, device=displacement.device), self.origin.clone()
        for chunk in self._chunks:
            share = self._share(weights, *chunk)
            value += share.detach()
            gradient += _flat(_gradients([share], weights))
        return value, gradient

    def hessian_product(self, vector: Tensor) -> Tensor:
        """(d,): ∇²f(x) v, from the gradient of ∇f(x)·v."""
        weights, parts = self._displaced(self.origin), self._parts(vector)
        product = self.origin.clone()
        for chunk in self._chunks:
            gradients = _gradients([self._share(weights, *chunk)], weights, create_graph=True)
            product += _flat(_gradients(gradients, weights, parts))
        return product

    def _share(self, weights: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """(), float64: what these examples contribute to f at the weights."""
        named = dict(zip(self._weights, weights, strict=True))
        losses: Tensor = functional_call(self._losses, named, (inputs, targets))
        return losses.sum(dtype=torch.float64) / self._size

    def _displaced(self, displacement: Tensor) -> list[Tensor]:
        """x + e, as leaves of a graph of their own."""
        weights = [param.detach() for param in self._weights.values()]
        moved = torch._foreach_add(weights, self._parts(displacement))
        return [weight.requires_grad_() for weight in moved]

    def _parts(self, vector: Tensor) -> list[Tensor]:
        weights = self._weights.values()
        parts = torch.split(vector, [weight.numel() for weight in weights])
        return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


class _ExampleLosses(nn.Module):
    """The f_i as a module, so that the regulariser sees the same exchanged weights as the forward pass."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.objective.per_example(self.model, self.model(inputs), targets)


class _TwiceDifferentiable(TorchFunctionMode):
    """Spells out what torchvision's classifiers use and torch differentiates only once: hardsigmoid, and the
    normalisation of vectors, whose second derivative is NaN at a vector of zeros (the padding of Swin V2)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.hardsigmoid:
            return (args[0] + 3).clamp(0, 6) / 6
        if func is nn.functional.normalize and kwargs["p"] == 2 and kwargs["out"] is None:
            squares = args[0].square().sum(kwargs["dim"], keepdim=True)
            return args[0] / squares.clamp(min=kwargs["eps"] ** 2).sqrt()
        return func(*args, **kwargs)


def _gradients(
    values: list[Tensor], weights: list[Tensor], seeds: list[Tensor] | None = None, *, create_graph: bool = False
) -> list[Tensor]:
    """The gradient of Σ seeds·values by each of the weights; zero where nothing depends on it."""
    depending = [i for i, value in enumerate(values) if value.requires_grad]
    if not depending:
        return [torch.zeros_like(weight) for weight in weights]
    outputs = [values[i] for i in depending]
    grad_outputs = None if seeds is None else [seeds[i] for i in depending]
    return list(torch.autograd.grad(outputs, weights, grad_outputs, create_graph=create_graph, materialize_grads=True))


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _projected(vector: Tensor, radius: float) -> Tensor:
    """The nearest point of the ball ‖e‖ ≤ radius."""
    norm = torch.linalg.vector_norm(vector)
    return vector * torch.clamp(radius / norm, max=1)
