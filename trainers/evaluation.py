"""Loss and accuracy of a model over a whole split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from trainers.datasets.dataset import Split
from trainers.objective import Objective

_BATCH_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss: mean of the f_i over the split. accuracy: share of examples classified right; None for a regression."""

    loss: float
    accuracy: float | None


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, objective: Objective) -> Evaluation:
    """Evaluates in evaluation mode, in big batches; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    losses, right = [], []
    for inputs, targets in zip(
        *(torch.split(part, _BATCH_SIZE) for part in (split.inputs, split.targets)), strict=True
    ):
        outputs = model(inputs)
        losses.append(objective.per_example(model, outputs, targets).sum(dtype=torch.float64))
        if objective.task == "classification":
            right.append((outputs.argmax(1) == targets).sum())
    model.train(was_training)
    loss = float(torch.stack(losses).sum()) / len(split)
    accuracy = float(torch.stack(right).sum()) / len(split) if right else None
    return Evaluation(loss, accuracy)
