import gzip
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.catalog import DATASETS
from trainers.datasets import DatasetUnavailableError
from trainers.datasets.fashion_mnist import FILES, load_fashion_mnist, provide_files

_PLACES = (os.environ.get("SAMSTUDY_DATA_DIR"), "/usr/share/datasets/fashion-mnist")
SOURCE = next((Path(place) for place in _PLACES if place and (Path(place) / f"{next(iter(FILES))}.gz").is_file()), None)
needs_files = pytest.mark.skipif(
    SOURCE is None,
    reason="needs Fashion-MNIST's .gz files in SAMSTUDY_DATA_DIR (Debian: dataset-fashion-mnist)",
)


def no_network(root: Path) -> None:
    raise OSError("no network")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_missing_files_are_named_with_where_they_were_looked_for(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(DatasetUnavailableError) as caught:
        provide_files(source, tmp_path / "cache", download=no_network)
    message = str(caught.value)
    assert all(f"{name}.gz" in message for name in FILES)
    assert f"not all in {source}" in message
    assert "no network" in message
    assert "set SAMSTUDY_DATA_DIR" in message
    with pytest.raises(DatasetUnavailableError, match="SAMSTUDY_DATA_DIR is not set"):
        provide_files(None, tmp_path / "cache", download=no_network)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"other content"), gzip.compress(b"cut short")[:-9]])
def test_damaged_files_are_refused_and_never_reach_the_cache(tmp_path: Path, content: bytes) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    for name in FILES:
        (source / f"{name}.gz").write_bytes(content)
    with pytest.raises(DatasetUnavailableError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        provide_files(source, cache, download=no_network)
    assert names(cache / "FashionMNIST" / "raw") == []


def test_a_download_is_verified_like_any_other_file(tmp_path: Path) -> None:
    def bad_download(root: Path) -> None:
        (root / "FashionMNIST" / "raw").mkdir(parents=True)
        for name in FILES:
            (root / "FashionMNIST" / "raw" / f"{name}.gz").write_bytes(gzip.compress(b"a login page"))

    with pytest.raises(DatasetUnavailableError, match="wrong checksum"):
        provide_files(None, tmp_path, download=bad_download)
    assert names(tmp_path / "FashionMNIST") == ["raw"]


def test_a_cache_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetUnavailableError, match="Set SAMSTUDY_HOME"):
        provide_files(None, tmp_path / "file", download=no_network)


@needs_files
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_provided_files_are_unpacked_once_by_many_workers(tmp_path: Path, layout: str) -> None:
    assert SOURCE is not None
    source, cache = tmp_path / "source", tmp_path / "cache"
    (source / layout).mkdir(parents=True)
    for name in FILES:
        (source / layout / f"{name}.gz").symlink_to(SOURCE / f"{name}.gz")
    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(lambda _: provide_files(source, cache, download=no_network), range(2)))
    assert roots == [cache, cache]
    assert names(cache / "FashionMNIST" / "raw") == sorted(FILES)
    shutil.rmtree(source)
    assert provide_files(source, cache, download=no_network) == cache


@needs_files
def test_the_real_splits_are_those_of_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSTUDY_DATA_DIR", str(SOURCE))
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path))
    dataset = load_fashion_mnist()
    facts = DATASETS["fashion_mnist"]
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [
        facts.train_size,
        6_000,
        10_000,
    ]
    assert dataset.train.inputs.shape == (facts.train_size, *facts.shape)
    assert float(dataset.train.inputs.mean()) == pytest.approx(0, abs=1e-3)
    assert dataset.test.targets.bincount().tolist() == [1000] * 10
