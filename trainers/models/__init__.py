"""The models by name, built with an initialisation that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainers.catalog import MODELS
from trainers.facts import DatasetFacts
from trainers.models.announced import build_announced
from trainers.models.linear import linear
from trainers.models.mlp import mlp
from trainers.models.preactivation import preact_resnet18, wrn_16_4, wrn_28_10
from trainers.models.small_cnn import small_cnn
from trainers.models.torchvision_classifier import torchvision_classifier

__all__ = ["BUILDERS", "build_model"]

BUILDERS: dict[str, Callable[[DatasetFacts], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "small_cnn": small_cnn,
    "preact_resnet18": preact_resnet18,
    "wrn_16_4": wrn_16_4,
    "wrn_28_10": wrn_28_10,
}
"""Our own models; every other name is one of torchvision's classifiers, or of another package."""


def build_model(name: str, dataset: DatasetFacts, *, seed: int) -> nn.Module:
    """The model of this name for this dataset, on the CPU, in training mode.

    The same seed gives the same weights, and the global random state is left as it was.
    Raises ValueError for a name that nobody has and for images too small for the model, and what `build_announced` does
    for another package's.
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return _built(name, dataset).train()


def _built(name: str, dataset: DatasetFacts) -> nn.Module:
    if name in BUILDERS:
        return BUILDERS[name](dataset)
    code = MODELS[name].code if name in MODELS else None
    return torchvision_classifier(name, dataset) if code is None else build_announced(code, dataset)
