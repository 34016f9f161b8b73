"""The models by name, built with an initialisation that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainers.catalog import DatasetFacts
from trainers.models.linear import linear
from trainers.models.mlp import mlp
from trainers.models.small_cnn import small_cnn

__all__ = ["BUILDERS", "build_model"]

BUILDERS: dict[str, Callable[[DatasetFacts], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "small_cnn": small_cnn,
}


def build_model(name: str, dataset: DatasetFacts, *, seed: int) -> nn.Module:
    """The model of this name for this dataset, on the CPU, in training mode.

    The same seed gives the same weights, and the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return BUILDERS[name](dataset)
