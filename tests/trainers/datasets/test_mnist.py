"""MNIST and its like: tiny files of the real format through torchvision's loader, and the real Fashion-MNIST."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainers.catalog import DATASETS
from trainers.datasets import DatasetUnavailableError, load_dataset
from trainers.datasets.dataset import fixed_permutation
from trainers.datasets.mnist import FASHION_MNIST_CONTENT, fashion_mnist_files, load_mnist_like, mnist_files

_PLACES = (os.environ.get("SAMSTUDY_DATA_DIR"), "/usr/share/datasets/fashion-mnist")
_FIRST_FILE = f"{next(iter(FASHION_MNIST_CONTENT))}.gz"
SOURCE = next((Path(place) for place in _PLACES if place and (Path(place) / _FIRST_FILE).is_file()), None)
needs_files = pytest.mark.skipif(
    SOURCE is None,
    reason="needs Fashion-MNIST's .gz files in SAMSTUDY_DATA_DIR (Debian: dataset-fashion-mnist)",
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The directory with files put there by hand, and the cache."""
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.setenv("SAMSTUDY_DATA_DIR", str(source))
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    return source, tmp_path / "home" / "data"


def no_network(root: Path) -> None:
    raise OSError("no network")


def idx(array: NDArray[np.uint8]) -> bytes:
    """LeCun's format: two zeros, the code of bytes, the number of dimensions, each of them big-endian, the values."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


def tiny_mnist(folder: Path) -> tuple[Any, dict[str, NDArray[np.uint8]]]:
    """Writes 40 training and 10 test images; returns torchvision's class with their checksums, and the arrays."""
    from trainers.vision import datasets

    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte.gz": generator.integers(256, size=(40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte.gz": generator.integers(10, size=40, dtype=np.uint8),
        "t10k-images-idx3-ubyte.gz": generator.integers(256, size=(10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte.gz": generator.integers(10, size=10, dtype=np.uint8),
    }
    packed = {name: gzip.compress(idx(array)) for name, array in arrays.items()}
    for name, content in packed.items():
        (folder / name).write_bytes(content)

    class TinyMNIST(datasets.MNIST):  # type: ignore[misc]
        resources = tuple(
            (name, hashlib.md5(content, usedforsecurity=False).hexdigest()) for name, content in packed.items()
        )

    return TinyMNIST, arrays


def test_the_loader_reads_the_published_format(places: tuple[Path, Path]) -> None:
    loader, arrays = tiny_mnist(places[0])
    dataset = load_mnist_like(loader, mnist_files("tiny", "Tiny MNIST", loader), download=no_network)
    images, labels, test_images, test_labels = (torch.from_numpy(array) for array in arrays.values())
    order = fixed_permutation(40)
    assert torch.equal(dataset.train.inputs, images[order[:36], None])
    assert torch.equal(dataset.train.targets, labels[order[:36]].long())
    assert torch.equal(dataset.validation.inputs, images[order[36:], None])
    assert torch.equal(dataset.validation.targets, labels[order[36:]].long())
    assert torch.equal(dataset.test.inputs, test_images[:, None])
    assert torch.equal(dataset.test.targets, test_labels.long())
    assert dataset.train.inputs.dtype == torch.uint8
    assert sorted(path.name for path in (places[1] / "TinyMNIST" / "raw").iterdir()) == sorted(
        name.removesuffix(".gz") for name in arrays
    )


def test_a_file_of_the_cache_that_was_damaged_later_is_named(places: tuple[Path, Path]) -> None:
    loader, _ = tiny_mnist(places[0])
    files = mnist_files("tiny", "Tiny MNIST", loader)
    load_mnist_like(loader, files, download=no_network)
    damaged = places[1] / "TinyMNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(DatasetUnavailableError, match=f"Delete its files.*{damaged}"):
        load_mnist_like(loader, files, download=no_network)


def test_the_published_names_and_checksums_are_torchvisions() -> None:
    from trainers.vision import datasets

    for loader in (datasets.MNIST, datasets.KMNIST):
        files = mnist_files("name", "Title", loader)
        assert [len(md5) for md5 in files.packed.values()] == [32] * 4
        assert list(files.packed) == [f"{path}.gz" for path in files.unpacked]
    assert list(fashion_mnist_files().packed) == [
        f"FashionMNIST/raw/{name}" for name, _ in datasets.FashionMNIST.resources
    ]


@needs_files
def test_the_real_splits_are_those_of_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSTUDY_DATA_DIR", str(SOURCE))
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path))
    load_dataset.cache_clear()
    dataset = load_dataset("fashion_mnist")
    load_dataset.cache_clear()
    facts = DATASETS["fashion_mnist"]
    sizes = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [facts.train_size, 6_000, 10_000]
    assert dataset.train.inputs.shape == (facts.train_size, *facts.shape)
    assert dataset.test.targets.bincount().tolist() == [1000] * 10
    assert dataset.normalisation is not None  # 0.2860 and 0.3530 of 255 over all 60,000, as everywhere
    assert float(dataset.normalisation.mean) / 255 == pytest.approx(0.286, abs=1e-3)
    assert float(dataset.normalisation.std) / 255 == pytest.approx(0.353, abs=1e-3)
