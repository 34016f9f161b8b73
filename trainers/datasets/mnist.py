"""MNIST and the two sets of its form: 28 × 28 grey images of 10 classes, 60,000 for training and 10,000 for the test.

Fashion-MNIST is verified by the SHA-256 of its unpacked content: distributions strip the headers of the .gz files of
name and time, so that the published checksums do not fit files whose content is the original. MNIST and KMNIST are
verified by the MD5 of their .gz files, and from then on by the SHA-256 of what was unpacked from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trainers.datasets.dataset import Dataset, Split, with_held_out
from trainers.datasets.published_files import PublishedFiles, provide_files, reading, unpack_gzip
from trainers.environment import data_cache_dir, data_dir

FASHION_MNIST_CONTENT = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Each file, without ".gz", and the SHA-256 of its unpacked content."""


def load_mnist() -> Dataset:
    """54,000 training, 6,000 validation and 10,000 test images, (1, 28, 28). Raises DatasetUnavailableError."""
    from trainers.vision import datasets  # torchvision takes more than a second to import

    return load_mnist_like(datasets.MNIST, mnist_files("mnist", "MNIST", datasets.MNIST))


def load_fashion_mnist() -> Dataset:
    """54,000 training, 6,000 validation and 10,000 test images, (1, 28, 28). Raises DatasetUnavailableError."""
    from trainers.vision import datasets

    return load_mnist_like(datasets.FashionMNIST, fashion_mnist_files())


def load_kmnist() -> Dataset:
    """54,000 training, 6,000 validation and 10,000 test images, (1, 28, 28). Raises DatasetUnavailableError."""
    from trainers.vision import datasets

    return load_mnist_like(datasets.KMNIST, mnist_files("kmnist", "KMNIST", datasets.KMNIST))


def mnist_files(name: str, title: str, loader: Any) -> PublishedFiles:
    """The files of one of torchvision's classes of this form, with the MD5 sums that it has for the .gz files."""
    folder = f"{loader.__name__}/raw"
    return PublishedFiles(
        name,
        title,
        packed={f"{folder}/{file}": md5 for file, md5 in loader.resources},
        unpacked={f"{folder}/{Path(file).stem}": "" for file, _ in loader.resources},
        unpack=partial(unpack_gzip, folder=folder),
    )


def fashion_mnist_files() -> PublishedFiles:
    folder = "FashionMNIST/raw"
    return PublishedFiles(
        "fashion_mnist",
        "Fashion-MNIST",
        packed={f"{folder}/{file}.gz": "" for file in FASHION_MNIST_CONTENT},
        unpacked={f"{folder}/{file}": sha256 for file, sha256 in FASHION_MNIST_CONTENT.items()},
        unpack=partial(unpack_gzip, folder=folder),
        advice="Debian's package dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist",
    )


def load_mnist_like(loader: Any, files: PublishedFiles, *, download: Callable[[Path], None] | None = None) -> Dataset:
    """The dataset that torchvision's class `loader` reads from these files; see `provide_files` for `download`.

    Raises DatasetUnavailableError.
    """
    root = provide_files(files, data_dir(), data_cache_dir(), download=download or partial(loader, download=True))
    with reading(files, root):
        published, test = (loader(root, train=is_train) for is_train in (True, False))
    return with_held_out(*(Split(part.data.unsqueeze(1), part.targets) for part in (published, test)))
