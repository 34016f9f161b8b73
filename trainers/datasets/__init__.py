"""The datasets by name. Each stays in memory once loaded, so that the next trial in a warm worker starts at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from trainers.datasets.dataset import Dataset, DatasetUnavailableError, Split
from trainers.datasets.digits import load_digits
from trainers.datasets.fashion_mnist import load_fashion_mnist
from trainers.datasets.ridge import load_ridge

__all__ = ["LOADERS", "Dataset", "DatasetUnavailableError", "Split", "load_dataset"]

LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "ridge": load_ridge,
}


@cache
def load_dataset(name: str) -> Dataset:
    """The dataset of this name in `trainers.catalog`, on the CPU; treat its tensors as read-only, they are shared.

    Raises DatasetUnavailableError where its files cannot be had.
    """
    return LOADERS[name]()
