"""CIFAR: a tiny archive of the real format through torchvision's loader."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.datasets import DatasetUnavailableError
from trainers.datasets.cifar import cifar_files, load_cifar
from trainers.datasets.dataset import fixed_permutation


def no_network(root: Path) -> None:
    raise OSError("no network")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMSTUDY_DATA_DIR", str(tmp_path / "source"))
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def tiny_cifar(source: Path, key: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Writes an archive of two batches of 20 and a test batch of 10; key: of the labels, another in CIFAR-100.

    Returns torchvision's class with their checksums, and the 50 images, (3, 32, 32), with their labels.
    """
    from trainers.vision import datasets

    generator = np.random.default_rng(0)
    rows = generator.integers(256, size=(50, 3072), dtype=np.uint8)
    labels = generator.integers(10, size=50).tolist()
    parts = {"batch_1": slice(0, 20), "batch_2": slice(20, 40), "test": slice(40, 50)}
    content = {name: pickle.dumps({"data": rows[part], key: labels[part]}) for name, part in parts.items()}
    content["meta"] = pickle.dumps({"names": [str(number) for number in range(10)]})
    with tarfile.open(source / "tiny.tar.gz", "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"tiny-batches/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

    class TinyCIFAR(datasets.CIFAR10):  # type: ignore[misc]
        base_folder, filename = "tiny-batches", "tiny.tar.gz"
        train_list = tuple((name, md5(content[name])) for name in ("batch_1", "batch_2"))
        test_list = (("test", md5(content["test"])),)
        meta = {"filename": "meta", "key": "names", "md5": md5(content["meta"])}  # noqa: RUF012 (as torchvision has it)

    return TinyCIFAR, torch.from_numpy(rows).view(50, 3, 32, 32), torch.tensor(labels)


@pytest.mark.parametrize("key", ["labels", "fine_labels"])
def test_the_loader_reads_the_published_format(source: Path, key: str) -> None:
    loader, images, labels = tiny_cifar(source, key)
    dataset = load_cifar(loader, cifar_files("tiny", "Tiny CIFAR", loader), download=no_network)
    order = fixed_permutation(40)
    assert torch.equal(dataset.train.inputs, images[order[:36]])
    assert torch.equal(dataset.train.targets, labels[order[:36]])
    assert torch.equal(dataset.validation.inputs, images[order[36:]])
    assert torch.equal(dataset.validation.targets, labels[order[36:]])
    assert torch.equal(dataset.test.inputs, images[40:])
    assert torch.equal(dataset.test.targets, labels[40:])
    assert dataset.train.inputs.is_contiguous()
    assert dataset.train.inputs.dtype == torch.uint8


def test_the_loader_reads_an_archive_that_was_unpacked_by_hand(source: Path) -> None:
    loader, images, _ = tiny_cifar(source, "labels")
    with tarfile.open(source / "tiny.tar.gz") as archive:
        archive.extractall(source, filter="data")
    (source / "tiny.tar.gz").unlink()
    dataset = load_cifar(loader, cifar_files("tiny", "Tiny CIFAR", loader), download=no_network)
    assert torch.equal(dataset.test.inputs, images[40:])


def test_the_published_archive_is_asked_for_by_name() -> None:
    from trainers.vision import datasets

    for loader, name, count in ((datasets.CIFAR10, "cifar-10", 7), (datasets.CIFAR100, "cifar-100", 3)):
        files = cifar_files("name", "Title", loader)
        assert list(files.packed) == [f"{name}-python.tar.gz"]
        assert [len(checksum) for checksum in files.unpacked.values()] == [32] * count


def test_an_archive_of_something_else_is_refused(source: Path) -> None:
    from trainers.vision import datasets

    tiny_cifar(source, "labels")
    (source / "tiny.tar.gz").rename(source / "cifar-10-python.tar.gz")
    with pytest.raises(DatasetUnavailableError, match="it lacks cifar-10-batches-py/data_batch_1"):
        load_cifar(datasets.CIFAR10, cifar_files("cifar10", "CIFAR-10", datasets.CIFAR10), download=no_network)
