"""What a loaded dataset is: three splits as whole tensors, and the facts that its objective needs."""

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
    """inputs: (n, *shape), float32. targets: (n,), int64 classes or float32 values."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class Dataset:
    """train is learned from, validation is what searches and early stopping see, test is looked at once."""

    train: Split
    validation: Split
    test: Split
    objective: Objective

    def to(self, device: torch.device) -> Dataset:
        """The dataset with all its tensors on the device; the same tensors where they are there already."""
        return Dataset(self.train.to(device), self.validation.to(device), self.test.to(device), self.objective)


def fixed_permutation(size: int) -> Tensor:
    """(size,): the same order of 0 … size − 1 in every run and every version (NumPy froze this generator)."""
    return torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(size))


def standardised(inputs: Tensor, *, by: Tensor) -> Tensor:
    """inputs, with the mean and the standard deviation of all elements of `by` mapped to 0 and 1."""
    return (inputs - by.mean()) / by.std()
