"""One linear layer: softmax regression, or linear least squares."""

from __future__ import annotations

import math

from torch import nn

from trainers.catalog import DatasetFacts


def linear(dataset: DatasetFacts) -> nn.Module:
    """One linear layer on the flattened input; with a bias for classes, without one for the published regression."""
    features = math.prod(dataset.shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, dataset.classes, bias=dataset.task == "classification"))
