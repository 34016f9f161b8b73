"""SVHN: tiny files of the real format through torchvision's loader."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from trainers.datasets import DatasetUnavailableError
from trainers.datasets.dataset import fixed_permutation
from trainers.datasets.svhn import load_svhn_like, svhn_files


def no_network(root: Path) -> None:
    raise OSError("no network")


def test_the_loader_reads_the_published_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MATLAB's arrays have the examples last, and call the digit 0 class 10."""
    from trainers.vision import datasets

    monkeypatch.setenv("SAMSTUDY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(50, 3, 32, 32), dtype=np.uint8)
    digits = np.arange(50) % 10
    checksums = {}
    for name, part in (("train_32x32.mat", slice(0, 40)), ("test_32x32.mat", slice(40, 50))):
        labels = np.where(digits[part] == 0, 10, digits[part]).astype(np.uint8)[:, None]
        savemat(tmp_path / name, {"X": images[part].transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
        checksums[name] = hashlib.md5((tmp_path / name).read_bytes(), usedforsecurity=False).hexdigest()

    class TinySVHN(datasets.SVHN):  # type: ignore[misc]
        split_list = {  # noqa: RUF012 (as torchvision has it)
            "train": ["", "train_32x32.mat", checksums["train_32x32.mat"]],
            "test": ["", "test_32x32.mat", checksums["test_32x32.mat"]],
        }

    dataset = load_svhn_like(TinySVHN, download=no_network)
    order = fixed_permutation(40)
    assert torch.equal(torch.cat([dataset.train.inputs, dataset.validation.inputs]), torch.from_numpy(images)[order])
    assert torch.equal(torch.cat([dataset.train.targets, dataset.validation.targets]), order % 10)
    assert torch.equal(dataset.test.inputs, torch.from_numpy(images[40:]))
    assert torch.equal(dataset.test.targets, torch.arange(40, 50) % 10)
    assert len(dataset.validation) == 4
    assert dataset.train.inputs.is_contiguous()
    (tmp_path / "train_32x32.mat").write_bytes(b"something else")
    (tmp_path / "home" / "data" / "train_32x32.mat").unlink()
    with pytest.raises(DatasetUnavailableError, match=r"train_32x32\.mat is damaged or not of SVHN"):
        load_svhn_like(TinySVHN, download=no_network)


def test_the_published_files_are_asked_for_by_name() -> None:
    from trainers.vision import datasets

    files = svhn_files(datasets.SVHN)
    assert list(files.packed) == ["train_32x32.mat", "test_32x32.mat"]
    assert files.unpacked == files.packed
    assert all(len(checksum) == 32 for checksum in files.packed.values())
