"""One linear layer: softmax regression, logistic regression, or linear least squares."""

from __future__ import annotations

import math

from torch import nn

from trainers.facts import DatasetFacts


def linear(dataset: DatasetFacts) -> nn.Module:
    """One linear layer on the flattened input; with a bias for classes, without one for the published problems.

    On those its weights start standard normal, as the x_0 of the published experiments does: what a run ends at is told
    relative to f(x_0) − f*, and torch's own start, next to 0, has ten times less of that.
    """
    features = math.prod(dataset.shape)
    layer = nn.Linear(features, dataset.classes, bias=dataset.task == "classification")
    if dataset.is_problem:
        nn.init.normal_(layer.weight)
    return nn.Sequential(nn.Flatten(), layer)
