"""A multilayer perceptron."""

from __future__ import annotations

import math

from torch import nn

from trainers.facts import DatasetFacts

_HIDDEN = 128


def mlp(dataset: DatasetFacts) -> nn.Module:
    """One hidden ReLU layer of 128 units on the flattened input."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(dataset.shape), _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, dataset.classes),
    )
