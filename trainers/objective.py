"""What is minimised: f(x) = (1/n) Σ f_i(x), with each f_i from one example and the problem's regulariser."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from trainers.catalog import Task


@dataclass(frozen=True, slots=True)
class Objective:
    """f_i(x) = loss_i + (regulariser/2)·‖x‖², the loss being cross-entropy or half the squared error.

    The regulariser belongs to every f_i, hence to its smoothness constant L_i and under its importance weight.
    """

    task: Task
    regulariser: float = 0.0

    def per_example(self, model: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
        """(b,): f_i for every example of a batch.

        outputs: (b, classes) logits or (b, 1) predictions. targets: (b,) classes or values.
        """
        if self.task == "classification":
            losses = F.cross_entropy(outputs, targets, reduction="none")
        else:
            losses = 0.5 * (outputs.squeeze(1) - targets).square()
        if self.regulariser:
            squared_norms = [param.square().sum() for param in model.parameters()]
            losses = losses + 0.5 * self.regulariser * sum(squared_norms)
        return losses

    def weighted_mean(self, model: nn.Module, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(): (1/b) Σ w_i f_i over a mini-batch, whose gradient is g_S(x)."""
        return (weights * self.per_example(model, model(inputs), targets)).mean()
