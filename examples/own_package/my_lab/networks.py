"""The network: any torch.nn.Module from the inputs (b, …) to logits (b, classes)."""

import math

from torch import nn

from trainers.facts import DatasetFacts


def two_layers(dataset: DatasetFacts) -> nn.Module:
    """Its weights are drawn from torch's global generator, which is seeded with the trial's seed."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(dataset.shape), 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, dataset.classes),
    )
