"""What a loaded dataset is: three splits as whole tensors, and what a model and an objective need to know of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.objective import Objective

_SPLIT_SEED = 20250302
"""Fixes which training examples are held out for validation, whatever the seed of a run."""


class DatasetUnavailableError(RuntimeError):
    """The data of a dataset cannot be had: which files were looked for and where, and what to do."""


@dataclass(frozen=True, slots=True)
class Split:
    """inputs: (n, channels, height, width), uint8 images, or (n, features), floats.
    targets: (n,), int64 classes or float values."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class Normalisation:
    """mean, std: (C,), float32, of each channel's pixels, in the unit of the images (0 … 255)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Normalisation:
        """The statistics of uint8 images (n, C, H, W), exact up to the last rounding.

        std has n − 1 below it; it is 1 for a channel whose pixels are all the same, as where nothing is transparent.
        """
        counts = torch.stack(
            [torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(images.shape[1])]
        ).double()
        values = torch.arange(256, dtype=torch.float64)
        size = counts.sum(1)
        mean = counts @ values / size
        variance = (counts * (values - mean[:, None]).square()).sum(1) / (size - 1)
        return cls(mean.float(), torch.where(variance > 0, variance.sqrt(), 1.0).float())

    def to(self, device: torch.device) -> Normalisation:
        return Normalisation(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True, slots=True)
class Dataset:
    """train is learned from, validation is what searches and early stopping see, test is looked at once.

    validation: None where everything that is published for training is learned from.
    normalisation: of the training images; None where the inputs go to the model as they are.
    """

    train: Split
    validation: Split | None
    test: Split
    objective: Objective
    normalisation: Normalisation | None = None

    def to(self, device: torch.device) -> Dataset:
        """The dataset with all its tensors on the device; the same tensors where they are there already."""
        normalisation = self.normalisation and self.normalisation.to(device)
        return Dataset(
            self.train.to(device),
            self.validation and self.validation.to(device),
            self.test.to(device),
            self.objective,
            normalisation,
        )

    def without_validation(self) -> Dataset:
        """The dataset that learns from its validation split too, and has none."""
        if self.validation is None:
            return self
        inputs, targets = (
            torch.cat([getattr(split, name) for split in (self.train, self.validation)])
            for name in ("inputs", "targets")
        )
        normalisation = self.normalisation and Normalisation.of(inputs)
        return Dataset(Split(inputs, targets), None, self.test, self.objective, normalisation)

    def prepare(self, inputs: Tensor) -> Tensor:
        """What the model is given for a batch of a split's inputs.

        Images (b, C, H, W) become float32, with mean 0 and standard deviation 1 over each channel of the training
        split; inputs of a dataset without normalisation are returned as they are.
        """
        if self.normalisation is None:
            return inputs
        mean, std = (statistic[:, None, None] for statistic in (self.normalisation.mean, self.normalisation.std))
        return inputs.to(torch.float32).sub_(mean).mul_(std.reciprocal())

    @property
    def fill(self) -> Tensor:
        """(C,), uint8: the pixel value nearest to each channel's mean, which `prepare` maps next to 0.

        Raises ValueError for a dataset without normalisation, whose inputs are no images.
        """
        if self.normalisation is None:
            raise ValueError("only images have a mean pixel, this dataset's inputs are none")
        return self.normalisation.mean.round().to(torch.uint8)


def fixed_permutation(size: int) -> Tensor:
    """(size,): the same order of 0 … size − 1 in every run and every version (NumPy froze this generator)."""
    return torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(size))


def classification_dataset(train: Split, validation: Split, test: Split) -> Dataset:
    """Three splits of uint8 images, normalised by the training split, or of float32 vectors, which stay as they are."""
    normalisation = Normalisation.of(train.inputs) if train.inputs.dtype == torch.uint8 else None
    return Dataset(train, validation, test, Objective("classification"), normalisation)


def with_held_out(published: Split, test: Split) -> Dataset:
    """The dataset of a published training and test set: a tenth of the former, rounded down, is for validation."""
    order = fixed_permutation(len(published))
    held_out = len(published) // 10
    train, validation = (
        Split(published.inputs[part], published.targets[part])
        for part in torch.split(order, [len(order) - held_out, held_out])
    )
    return classification_dataset(train, validation, test)
