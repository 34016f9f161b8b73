"""Fashion-MNIST: 28 × 28 articles of clothing, from files provided by hand or through torchvision's download.

The four original .gz files are looked for in SAMSTUDY_DATA_DIR, flat or in torchvision's layout (Debian's package
dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist); where they are not, torchvision downloads
them. Either way they are verified and unpacked once into the cache, under a lock, so that many workers can start at
the same time.

What is verified is the unpacked content, by SHA-256: published checksums are of the .gz files, whose headers
distributions strip of name and time.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trainers.datasets.dataset import Dataset, DatasetUnavailableError, Split, fixed_permutation, standardised
from trainers.environment import data_cache_dir, data_dir
from trainers.objective import Objective

FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Each file, without ".gz", and the SHA-256 of its unpacked content."""

_LAYOUT = Path("FashionMNIST", "raw")
_VALIDATION_SIZE = 6000


def load_fashion_mnist() -> Dataset:
    """54,000 training, 6,000 validation and 10,000 test images, (1, 28, 28), standardised by the training pixels.

    Raises DatasetUnavailableError.
    """
    from trainers.vision import datasets  # torchvision takes more than a second to import

    root = provide_files(data_dir(), data_cache_dir(), download=_download)
    published = datasets.FashionMNIST(root, train=True)
    test = datasets.FashionMNIST(root, train=False)
    order = fixed_permutation(len(published))
    training, validation = torch.split(order, [len(order) - _VALIDATION_SIZE, _VALIDATION_SIZE])
    images = published.data.float().unsqueeze(1)
    train_images = images[training]
    return Dataset(
        Split(standardised(train_images, by=train_images), published.targets[training]),
        Split(standardised(images[validation], by=train_images), published.targets[validation]),
        Split(standardised(test.data.float().unsqueeze(1), by=train_images), test.targets),
        Objective("classification"),
    )


def provide_files(source: Path | None, cache: Path, *, download: Callable[[Path], None]) -> Path:
    """Sees to it that the unpacked files are in the cache, and returns the root for torchvision's loader.

    source: a directory with the .gz files, possibly read-only. download: writes the .gz files into a directory, in
    torchvision's layout, or raises OSError or RuntimeError.
    Raises DatasetUnavailableError where they are neither found nor downloaded, or are damaged.
    """
    raw = cache / _LAYOUT
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "FashionMNIST.lock"):
            if not all((raw / name).is_file() for name in FILES):
                found = _find(source)
                if found is not None:
                    _unpack(found, raw)
                else:
                    _download_and_unpack(raw, source, download)
    except OSError as error:
        raise DatasetUnavailableError(
            f"Fashion-MNIST cannot be unpacked in {cache}: {error}. Set SAMSTUDY_HOME to a writable directory."
        ) from error
    return cache


def _find(source: Path | None) -> Path | None:
    """The directory in `source` that has all four .gz files; None where there is none."""
    candidates = () if source is None else (source, source / _LAYOUT)
    return next((folder for folder in candidates if all((folder / f"{name}.gz").is_file() for name in FILES)), None)


def _download_and_unpack(raw: Path, source: Path | None, download: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=raw.parent) as temporary:
        try:
            download(Path(temporary))
        except (OSError, RuntimeError) as error:
            looked_in = "SAMSTUDY_DATA_DIR is not set" if source is None else f"not all in {source}"
            raise DatasetUnavailableError(
                f"Fashion-MNIST is not available. Its files {', '.join(f'{name}.gz' for name in FILES)} are needed: "
                f"{looked_in}, and the download failed ({error}). Put them into a directory and set "
                "SAMSTUDY_DATA_DIR to it; Debian's package dataset-fashion-mnist installs them in "
                "/usr/share/datasets/fashion-mnist."
            ) from error
        _unpack(Path(temporary) / _LAYOUT, raw)


def _download(root: Path) -> None:
    from trainers.vision import datasets

    datasets.FashionMNIST(root, download=True)


def _unpack(folder: Path, raw: Path) -> None:
    for name, sha256 in FILES.items():
        packed = folder / f"{name}.gz"
        try:
            content = gzip.decompress(packed.read_bytes())
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetUnavailableError(f"{packed} is damaged ({error}); get it again") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DatasetUnavailableError(
                f"{packed} is damaged or not of Fashion-MNIST: its content has the wrong checksum; get it again"
            )
        unpacked = raw / f"{name}.part"
        unpacked.write_bytes(content)
        unpacked.replace(raw / name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file, across processes; the system releases it should this process die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
