"""Models that other packages build, each tried once before it trains: what a later error would not explain is said."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainers.facts import DatasetFacts
from trainers.plugins import load_code


def build_announced(code: str, dataset: DatasetFacts) -> nn.Module:
    """The model of another package, in float32. Raises TypeError where it is no module, ValueError where it cannot be
    trained: it has no parameters, does not answer with logits, or writes into its inputs, which are seen again."""
    model = load_code(code)(dataset)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{code} must return a torch.nn.Module, got {type(model)}")
    inputs = torch.linspace(-1, 1, 2 * math.prod(dataset.shape)).reshape(2, *dataset.shape)
    given = inputs.clone()
    with torch.no_grad():
        outputs = model.float().eval()(given)
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs)
    if shape != (2, dataset.classes):
        raise ValueError(
            f"the model of {code} must answer 2 inputs with logits of shape {(2, dataset.classes)}, got {shape}"
        )
    if not torch.equal(given, inputs):
        raise ValueError(
            f"the model of {code} must not write into its inputs: the second pass of a step sees them again"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"the model of {code} has no parameters to train")
    return model
