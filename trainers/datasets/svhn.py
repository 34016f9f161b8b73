"""Street View House Numbers: 32 × 32 photographs of digits, 73,257 for training and 26,032 for the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainers.datasets.dataset import Dataset, Split, with_held_out
from trainers.datasets.published_files import PublishedFiles, provide_files, reading, unpack_nothing
from trainers.environment import data_cache_dir, data_dir

_SPLITS = ("train", "test")


def load_svhn() -> Dataset:
    """65,932 training, 7,325 validation and 26,032 test images, (3, 32, 32). Raises DatasetUnavailableError."""
    from trainers.vision import datasets  # torchvision takes more than a second to import

    return load_svhn_like(datasets.SVHN)


def svhn_files(loader: Any) -> PublishedFiles:
    """The files of torchvision's class `loader`, read as they are published, with its MD5 sums."""
    files = {file: md5 for _, file, md5 in (loader.split_list[split] for split in _SPLITS)}
    return PublishedFiles("svhn", "SVHN", packed=files, unpacked=files, unpack=unpack_nothing)


def load_svhn_like(loader: Any, *, download: Callable[[Path], None] | None = None) -> Dataset:
    """The dataset that torchvision's class `loader` reads; see `provide_files` for `download`.

    Raises DatasetUnavailableError.
    """

    def download_both(root: Path) -> None:
        for split in _SPLITS:
            loader(root, split=split, download=True)

    files = svhn_files(loader)
    root = provide_files(files, data_dir(), data_cache_dir(), download=download or download_both)
    with reading(files, root):
        published, test = (loader(root, split=split) for split in _SPLITS)
    return with_held_out(*map(_split, (published, test)))


def _split(part: Any) -> Split:
    return Split(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels))
