"""How much an example matters: smoothness constants, and norms of the gradient at a model's outputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trainers.facts import Task

_CHUNK = 1024


def smoothness_constants(inputs: Tensor, task: Task, *, regulariser: float = 0.0, has_bias: bool) -> Tensor:
    """(n,), float64: L_i of a linear model on these inputs (n, *shape); a proxy for any other model.

    With ‖a_i‖² = ‖x_i‖², plus 1 for a bias, and the regulariser r: ‖a_i‖² + r for least squares, ‖a_i‖²/4 + r for
    binary targets, ½‖a_i‖² + r for softmax regression, where diag(p) − ppᵀ has no eigenvalue above ½. For other models
    this is, up to its scale, that of the first layer.
    """
    curvature = {"classification": 0.5, "binary": 0.25, "regression": 1.0}[task]
    squared_norms = torch.cat([chunk.double().flatten(1).square().sum(1) for chunk in torch.split(inputs, _CHUNK)])
    return curvature * (squared_norms + int(has_bias)) + regulariser


def smoothness_of_chunks(chunks: Iterable[Tensor], task: Task, *, regulariser: float = 0.0, has_bias: bool) -> Tensor:
    """`smoothness_constants` of inputs that come in chunks, each (m, *shape), and need not fit into memory together."""
    return torch.cat(
        [smoothness_constants(chunk, task, regulariser=regulariser, has_bias=has_bias) for chunk in chunks]
    )


def output_gradient_norms(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """(b,): the norm of each loss' gradient at the model's outputs, in float32, or float64 for float64 outputs.

    Classification: ‖softmax(z) − y‖₂ of logits (b, classes) and classes (b,). Binary: |σ(−y z)| of logits (b, 1) and
    targets −1 and 1. Regression: |z − y| of predictions (b, 1). Up to a constant these bound the norm of the gradient
    at the parameters (Katharopoulos and Fleuret 2018); for a linear model, ‖a_i‖ times this is that norm.
    """
    if outputs.dtype != torch.float64:
        outputs = outputs.float()
    if task == "binary":
        return torch.sigmoid(-targets * outputs.squeeze(1))
    if task == "regression":
        return (outputs.squeeze(1) - targets).abs()
    # The other classes' probabilities, whose sum is 1 − p_y: exact also where that would round to 0.
    others = outputs.softmax(1).scatter(1, targets.unsqueeze(1), 0.0)
    return torch.sqrt(others.sum(1).square() + others.square().sum(1))


def output_gradient_norms_from_losses(task: Task, losses: Tensor) -> Tensor:
    """(b,): `output_gradient_norms` as far as the losses alone tell, float64; losses are without the regulariser.

    Regression, exactly: √(2ℓ). Binary, exactly: 1 − exp(−ℓ). Classification: 1 − exp(−ℓ) = 1 − p_y, which is the norm
    over a factor from √(K/(K − 1)) to √2, of which a ratio of two norms knows little.
    """
    losses = losses.double().clamp_min(0)
    return torch.sqrt(2 * losses) if task == "regression" else -torch.expm1(-losses)
