"""CIFAR-10 and CIFAR-100: 32 × 32 photographs, 50,000 for training and 10,000 for the test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainers.datasets.dataset import Dataset, Split, with_held_out
from trainers.datasets.published_files import PublishedFiles, provide_files, reading, unpack_tar
from trainers.environment import data_cache_dir, data_dir


def load_cifar10() -> Dataset:
    """45,000 training, 5,000 validation and 10,000 test images, (3, 32, 32). Raises DatasetUnavailableError."""
    from trainers.vision import datasets  # torchvision takes more than a second to import

    return load_cifar(datasets.CIFAR10, cifar_files("cifar10", "CIFAR-10", datasets.CIFAR10))


def load_cifar100() -> Dataset:
    """45,000 training, 5,000 validation and 10,000 test images, (3, 32, 32). Raises DatasetUnavailableError."""
    from trainers.vision import datasets

    return load_cifar(datasets.CIFAR100, cifar_files("cifar100", "CIFAR-100", datasets.CIFAR100))


def cifar_files(name: str, title: str, loader: Any) -> PublishedFiles:
    """The files of torchvision's class `loader`: its MD5 sums of the files in the archive, which need no other."""
    files = [*loader.train_list, *loader.test_list, (loader.meta["filename"], loader.meta["md5"])]
    return PublishedFiles(
        name,
        title,
        packed={loader.filename: ""},
        unpacked={f"{loader.base_folder}/{file}": md5 for file, md5 in files},
        unpack=unpack_tar,
    )


def load_cifar(loader: Any, files: PublishedFiles, *, download: Callable[[Path], None] | None = None) -> Dataset:
    """The dataset that torchvision's class `loader` reads from these files; see `provide_files` for `download`.

    Raises DatasetUnavailableError.
    """
    root = provide_files(files, data_dir(), data_cache_dir(), download=download or partial(loader, download=True))
    with reading(files, root):
        published, test = (loader(root, train=is_train) for is_train in (True, False))
    return with_held_out(*map(_split, (published, test)))


def _split(part: Any) -> Split:
    """torchvision shows the images channels last, on an array that has them first."""
    return Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
