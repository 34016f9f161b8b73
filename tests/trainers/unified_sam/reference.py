"""Unified SAM written out, slowly and in float64, and the small models that the tests compare it on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.unified_sam import UnifiedSAM

Closure = Callable[[], Tensor]
Batch = tuple[Tensor, Tensor]


def a_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def a_batch(seed: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1000 + seed)
    return (
        torch.randn(size, 5, generator=generator, dtype=torch.float64),
        torch.randint(3, (size,), generator=generator),
    )


def closure_for(model: nn.Module, batch: Batch) -> Closure:
    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def train(optimizer: UnifiedSAM, model: nn.Module, numbers: range) -> None:
    for number in numbers:
        optimizer.step(closure_for(model, a_batch(number)))


def in_two_groups(model: nn.Module, **options: Any) -> UnifiedSAM:
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]  # type: ignore[index]
    return UnifiedSAM(groups, torch.optim.SGD, **options)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def assert_close(left: nn.Module, right: nn.Module) -> None:
    """Equal up to the rounding of a few float64 operations."""
    for one, other in zip(weights_of(left), weights_of(right), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


class HostReads(TorchDispatchMode):
    """Counts how often the host reads a tensor's value, and how often tensors of two devices meet in an operation.

    What moves to another device waits for the host or makes it wait. `tolist` and `numpy` of a tensor on the CPU read
    memory without an operation and are not seen.
    """

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        devices = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        self.count += func in reads or len(devices) > 1
        return result


@dataclass
class Group:
    """Parameters by their place in the model; rho and lam as functions of the step, from 1; eta is None for l2."""

    indices: list[int]
    rho: Callable[[int], float]
    lam: Callable[[int], float]
    eta: float | None = None


def constant(value: float) -> Callable[[int], float]:
    return lambda t: value


class Reference:
    """Unified SAM around SGD with momentum and weight decay, one scalar formula after the other, with no cleverness."""

    def __init__(
        self,
        model: nn.Module,
        groups: list[Group],
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.01,
        max_perturbation: float = math.inf,
        clip_norm: float = math.inf,
    ) -> None:
        self.model, self.groups, self.t = model, groups, 0
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.max_perturbation, self.clip_norm = max_perturbation, clip_norm
        self.buffers: list[Tensor | None] = [None] * len(list(model.parameters()))

    def gradients(self, at: list[Tensor], batch: Batch) -> list[Tensor]:
        leaves = [weight.clone().requires_grad_() for weight in at]
        names = [name for name, _ in self.model.named_parameters()]
        outputs = torch.func.functional_call(self.model, dict(zip(names, leaves, strict=True)), batch[0])
        return list(torch.autograd.grad(nn.functional.cross_entropy(outputs, batch[1]), leaves))

    def ascended(self, weights: list[Tensor], first: list[Tensor]) -> list[Tensor]:
        sizes = [torch.ones_like(weight) for weight in weights]
        for group in self.groups:
            for index in group.indices:
                if group.eta is not None:
                    sizes[index] = weights[index].abs() + group.eta
        norm = math.sqrt(sum(float(((size * g) ** 2).sum()) for size, g in zip(sizes, first, strict=True)))
        ascent = [torch.zeros_like(weight) for weight in weights]
        for group in self.groups:
            rho, lam = group.rho(self.t), group.lam(self.t)
            for index in group.indices:
                ascent[index] = rho * (1 - lam + lam / norm) * sizes[index] ** 2 * first[index]
        radius = math.sqrt(sum(float(((e / size) ** 2).sum()) for e, size in zip(ascent, sizes, strict=True)))
        shrink = self.max_perturbation / radius if radius > self.max_perturbation else 1.0
        return [weight + shrink * e for weight, e in zip(weights, ascent, strict=True)]

    def second_gradient(self, weights: list[Tensor], batch: Batch) -> list[Tensor]:
        """The gradient at the ascent point of step t."""
        return self.gradients(self.ascended(weights, self.gradients(weights, batch)), batch)

    def step(self, *batches: Batch, shares: tuple[float, ...] = (1.0,)) -> None:
        self.t += 1
        weights = weights_of(self.model)
        descent = [torch.zeros_like(weight) for weight in weights]
        for batch, share in zip(batches, shares, strict=True):
            second = self.second_gradient(weights, batch)
            descent = [total + share * gradient for total, gradient in zip(descent, second, strict=True)]
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in descent))
        clip = min(1.0, self.clip_norm / norm)
        for index, param in enumerate(self.model.parameters()):
            direction = clip * descent[index] + self.weight_decay * weights[index]
            buffer = self.buffers[index]
            buffer = direction if buffer is None else self.momentum * buffer + direction
            self.buffers[index] = buffer
            param.data = weights[index] - self.lr * buffer
