"""A small convolutional network."""

from __future__ import annotations

from torch import nn

from trainers.facts import DatasetFacts

_CHANNELS = (16, 32)


def small_cnn(dataset: DatasetFacts) -> nn.Module:
    """Two blocks of 3 × 3 convolution, batch normalisation, ReLU and 2 × 2 max-pooling, then a linear layer."""
    channels, height, width = dataset.shape
    first, second = _CHANNELS
    return nn.Sequential(
        *_block(channels, first),
        *_block(first, second),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), dataset.classes),
    )


def _block(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
