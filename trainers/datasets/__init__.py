"""The datasets by name. Each stays in memory once loaded, so that the next trial in a warm worker starts at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from trainers.catalog import DATASETS
from trainers.datasets.announced import load_announced
from trainers.datasets.cifar import load_cifar10, load_cifar100
from trainers.datasets.dataset import Dataset, DatasetUnavailableError, Normalisation, Split, classification_dataset
from trainers.datasets.digits import load_digits
from trainers.datasets.mnist import load_fashion_mnist, load_kmnist, load_mnist
from trainers.datasets.svhn import load_svhn

__all__ = [
    "LOADERS",
    "Dataset",
    "DatasetUnavailableError",
    "Normalisation",
    "Split",
    "classification_dataset",
    "load_dataset",
]

LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "kmnist": load_kmnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
}
"""Our own datasets that are loaded; others' are loaded by their own code."""


@cache
def load_dataset(name: str, validation: str = "held_out") -> Dataset:
    """The dataset of this name in `trainers.catalog`, on the CPU; treat its tensors as read-only, they are shared.

    validation: one of `catalog.VALIDATIONS`. Raises DatasetUnavailableError where its files cannot be had.
    """
    facts = DATASETS[name]
    dataset = LOADERS[name]() if facts.code is None else load_announced(facts.code, facts)
    return dataset if validation == "held_out" else dataset.without_validation()
