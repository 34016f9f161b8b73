"""MNIST and its like: tiny files of the real format through torchvision's loader, and the real Fashion-MNIST."""

import gzip
import hashlib
import os
from dataclasses import replace
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
from trainers.datasets.published_files import PublishedFiles

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


@pytest.fixture(params=["mnist", "kmnist", "fashion_mnist"])
def like_published(request: pytest.FixtureRequest, places: tuple[Path, Path]) -> tuple[Any, PublishedFiles]:
    """Tiny files of each dataset in the source, under the published names, with checksums of the published kinds."""
    loader, arrays = tiny_mnist(places[0])
    loader.__name__ = {"mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST"}[request.param]
    if request.param != "fashion_mnist":
        return loader, mnist_files(request.param, loader.__name__, loader)
    content = {
        f"FashionMNIST/raw/{name.removesuffix('.gz')}": hashlib.sha256(idx(array)).hexdigest()
        for name, array in arrays.items()
    }
    return loader, replace(fashion_mnist_files(), unpacked=content)


def flip_a_label(cache: Path, loader: Any) -> Path:
    """The first training label, after the eight bytes of the header."""
    path = cache / loader.__name__ / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    return path


def test_a_label_flipped_in_the_cache_is_mended_from_the_source(
    places: tuple[Path, Path], like_published: tuple[Any, PublishedFiles]
) -> None:
    loader, files = like_published
    sound = load_mnist_like(loader, files, download=no_network)
    flip_a_label(places[1], loader)
    mended = load_mnist_like(loader, files, download=no_network)
    assert torch.equal(mended.train.targets, sound.train.targets)
    assert torch.equal(mended.validation.targets, sound.validation.targets)


def test_a_label_flipped_in_the_cache_is_an_error_where_nothing_can_mend_it(
    places: tuple[Path, Path], like_published: tuple[Any, PublishedFiles]
) -> None:
    loader, files = like_published
    load_mnist_like(loader, files, download=no_network)
    for path in places[0].iterdir():
        path.unlink()
    load_mnist_like(loader, files, download=no_network)
    flipped = flip_a_label(places[1], loader)
    with pytest.raises(DatasetUnavailableError, match=f"{flipped} is damaged or not of {files.title}"):
        load_mnist_like(loader, files, download=no_network)


def test_a_file_that_an_older_version_left_cut_short_is_named(places: tuple[Path, Path]) -> None:
    """It has no checksum on record, so that torchvision's loader is the first to notice."""
    loader, _ = tiny_mnist(places[0])
    files = mnist_files("tiny", "Tiny MNIST", loader)
    load_mnist_like(loader, files, download=no_network)
    for path in (places[1] / "tiny.sha256", *places[0].iterdir()):
        path.unlink()
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
