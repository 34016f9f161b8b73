"""What is minimised: f(x) = (1/n) Σ f_i(x), with each f_i from one example and the problem's regulariser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from trainers.facts import Task


@dataclass(frozen=True, slots=True)
class Objective:
    """f_i(x) = loss_i + (regulariser/2)·‖x‖².

    The loss of a classification is the cross-entropy, of a binary target y ∈ {−1, 1} with output z the logistic loss
    log(1 + exp(−y z)), of a regression half the squared error.
    The regulariser belongs to every f_i, hence to its smoothness constant L_i and under its importance weight.
    """

    task: Task
    regulariser: float = 0.0

    def per_example(self, model: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
        """(b,): f_i for every example of a batch; arguments as in `losses`."""
        return self.regularised(model.parameters(), self.losses(outputs, targets))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(b,): the loss of every example, without the regulariser.

        outputs: (b, classes) logits, or (b, 1) logits or predictions. targets: (b,) classes or values.
        """
        if self.task == "classification":
            return F.cross_entropy(outputs, targets, reduction="none")
        predictions = outputs.squeeze(1)
        if self.task == "binary":
            return -F.logsigmoid(targets * predictions)  # softplus is cut off above 20
        return 0.5 * (predictions - targets).square()

    def regularised(self, params: Iterable[Tensor], losses: Tensor) -> Tensor:
        """(b,): the losses (b,), each with the regulariser of the model's parameters."""
        if not self.regulariser:
            return losses
        squared_norms = [param.square().sum() for param in params]
        return losses + 0.5 * self.regulariser * sum(squared_norms)
