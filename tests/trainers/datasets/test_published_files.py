"""Files as they are published: found, verified, unpacked once, or an error that says what to do."""

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from trainers.datasets import DatasetUnavailableError
from trainers.datasets.published_files import PublishedFiles, provide_files, reading, unpack_gzip, unpack_tar

CONTENT = {"raw/images": b"pixels" * 1000, "raw/labels": b"classes" * 10}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


GZIPPED = PublishedFiles(
    "tiny",
    "Tiny",
    packed={f"{path}.gz": "" for path in CONTENT},
    unpacked={path: sha256(content) for path, content in CONTENT.items()},
    unpack=partial(unpack_gzip, folder="raw"),
    advice="they grow on trees",
)


Files = tuple[PublishedFiles, dict[str, bytes]]
"""With the content of the packed ones."""


def no_network(root: Path) -> None:
    raise OSError("no\nnetwork")


def write(folder: Path, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def gzipped(content: dict[str, bytes] = CONTENT) -> dict[str, bytes]:
    return {f"{path}.gz": gzip.compress(data) for path, data in content.items()}


def flat(content: dict[str, bytes]) -> dict[str, bytes]:
    return {Path(path).name: data for path, data in content.items()}


def archive(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def by_md5_of_packed(packed: dict[str, bytes]) -> PublishedFiles:
    """As MNIST has it: MD5 sums of the .gz files, none of what is in them."""
    md5 = {path: hashlib.md5(data, usedforsecurity=False).hexdigest() for path, data in packed.items()}
    return replace(GZIPPED, packed=md5, unpacked=dict.fromkeys(CONTENT, ""))


@pytest.fixture(params=["unpacked", "packed"])
def files_and_packed(request: pytest.FixtureRequest) -> Files:
    """With checksums of the one or the other."""
    packed = gzipped()
    return (GZIPPED if request.param == "unpacked" else by_md5_of_packed(packed)), packed


def flip_a_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def assert_unpacked(cache: Path, *, record: bool = False) -> None:
    assert files_in(cache) == sorted([*CONTENT, "tiny.lock", *(["tiny.sha256"] if record else [])])
    assert all((cache / path).read_bytes() == content for path, content in CONTENT.items())


def test_missing_files_are_named_with_where_they_were_looked_for(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(DatasetUnavailableError) as caught:
        provide_files(GZIPPED, source, tmp_path / "cache", download=no_network)
    assert str(caught.value) == (
        f"Tiny is not available. Its files images.gz, labels.gz are needed: not all in {source}, and the download "
        "failed (no network). Put them into a directory and set SAMSTUDY_DATA_DIR to it; they grow on trees."
    )
    with pytest.raises(DatasetUnavailableError, match="SAMSTUDY_DATA_DIR is not set"):
        provide_files(GZIPPED, None, tmp_path / "cache", download=no_network)


@pytest.mark.parametrize("folder", ["", "tiny"])
@pytest.mark.parametrize("content", [gzipped(), flat(gzipped()), CONTENT], ids=["torchvision's", "flat", "unpacked"])
def test_files_are_found_packed_or_unpacked_in_every_layout(
    tmp_path: Path, folder: str, content: dict[str, bytes]
) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    write(source / folder, content)
    assert provide_files(GZIPPED, source, cache, download=no_network) == cache
    assert_unpacked(cache)
    assert files_in(source / folder) == sorted(content)
    shutil.rmtree(source)
    assert provide_files(GZIPPED, source, cache, download=no_network) == cache


def test_an_incomplete_cache_is_filled_again(tmp_path: Path) -> None:
    write(tmp_path / "source", gzipped())
    provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=no_network)
    (tmp_path / "cache" / "raw" / "images").unlink()
    provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=no_network)
    assert_unpacked(tmp_path / "cache")


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"other content"), gzip.compress(b"cut short")[:-9]],
    ids=["no gzip", "other content", "cut short"],  # the bytes have the second in them, and processes must agree
)
def test_damaged_files_are_refused_and_never_reach_the_cache(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "source", {**gzipped(), "raw/labels.gz": content})
    with pytest.raises(DatasetUnavailableError, match=r"labels\.gz is damaged"):
        provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=no_network)
    assert files_in(tmp_path / "cache") == ["tiny.lock"]


def test_a_published_checksum_of_the_packed_file_is_checked(tmp_path: Path) -> None:
    content = gzipped()
    files = by_md5_of_packed(content)
    write(tmp_path / "source", {**content, "raw/images.gz": gzip.compress(CONTENT["raw/images"], 1)})
    with pytest.raises(DatasetUnavailableError, match=r"images\.gz is damaged or not of Tiny: .* wrong checksum"):
        provide_files(files, tmp_path / "source", tmp_path / "cache", download=no_network)
    write(tmp_path / "source", content)
    provide_files(files, tmp_path / "source", tmp_path / "cache", download=no_network)
    assert_unpacked(tmp_path / "cache", record=True)


def test_unpacked_files_that_cannot_be_verified_are_not_taken(tmp_path: Path) -> None:
    files = replace(GZIPPED, unpacked=dict.fromkeys(CONTENT, ""))
    write(tmp_path / "source", CONTENT)
    with pytest.raises(DatasetUnavailableError, match="not all in"):
        provide_files(files, tmp_path / "source", tmp_path / "cache", download=no_network)


def test_another_dataset_with_the_same_names_does_not_hide_the_right_one(tmp_path: Path) -> None:
    write(tmp_path / "source", flat(gzipped({"raw/images": b"of another", "raw/labels": b"set"})))
    write(tmp_path / "source" / "tiny", gzipped())
    provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=no_network)
    assert_unpacked(tmp_path / "cache")


def test_what_is_damaged_is_downloaded_and_verified_like_any_other_file(tmp_path: Path) -> None:
    write(tmp_path / "source", flat(gzipped({"raw/images": b"of another", "raw/labels": b"set"})))

    def bad_download(root: Path) -> None:
        write(root, gzipped({"raw/images": b"a login page", "raw/labels": b"a login page"}))

    with pytest.raises(DatasetUnavailableError, match="wrong checksum"):
        provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=bad_download)
    assert files_in(tmp_path / "cache") == ["tiny.lock"]
    provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=lambda root: write(root, gzipped()))
    assert_unpacked(tmp_path / "cache")


def test_an_archive_is_verified_by_what_is_in_it(tmp_path: Path) -> None:
    files = replace(GZIPPED, packed={"tiny.tar.gz": ""}, unpack=unpack_tar)
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    archive(source / "tiny.tar.gz", {"raw/images": CONTENT["raw/images"]})
    with pytest.raises(DatasetUnavailableError, match="it lacks raw/labels"):
        provide_files(files, source, cache, download=no_network)
    archive(source / "tiny.tar.gz", {**CONTENT, "../readme.html": b"not asked for"})
    with (source / "tiny.tar.gz").open("r+b") as file:
        file.truncate(60)
    with pytest.raises(DatasetUnavailableError, match=r"tiny\.tar\.gz is damaged"):
        provide_files(files, source, cache, download=no_network)
    archive(source / "tiny.tar.gz", {**CONTENT, "../readme.html": b"not asked for"})
    provide_files(files, source, cache, download=no_network)
    assert_unpacked(cache)
    assert not (tmp_path / "readme.html").exists()


def test_a_cache_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetUnavailableError, match="Set SAMSTUDY_HOME"):
        provide_files(GZIPPED, None, tmp_path / "file", download=no_network)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_cache_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path: Path, number: int) -> None:
    def refused(path: Path) -> Iterator[tuple[str, bytes]]:
        raise OSError(number, os.strerror(number))

    write(tmp_path / "source", gzipped())
    with pytest.raises(DatasetUnavailableError, match="Set SAMSTUDY_HOME to a writable directory"):
        provide_files(replace(GZIPPED, unpack=refused), tmp_path / "source", tmp_path / "cache", download=no_network)


def test_what_is_in_the_way_in_a_cache_is_named_without_such_advice(tmp_path: Path) -> None:
    write(tmp_path / "source", gzipped())
    (tmp_path / "cache" / "raw" / "labels").mkdir(parents=True)
    with pytest.raises(DatasetUnavailableError, match=r"cannot be unpacked in .*raw/labels") as caught:
        provide_files(GZIPPED, tmp_path / "source", tmp_path / "cache", download=no_network)
    assert "SAMSTUDY_HOME" not in str(caught.value)


def test_of_many_workers_one_unpacks_and_the_others_wait_for_it(tmp_path: Path) -> None:
    unpacked_by = []

    def slowly(path: Path) -> Iterator[tuple[str, bytes]]:
        unpacked_by.append(threading.get_ident())
        time.sleep(0.02)
        yield from unpack_gzip(path, "raw")

    write(tmp_path / "source", gzipped())
    files = replace(GZIPPED, unpack=slowly)
    with ThreadPoolExecutor(4) as pool:
        provide = partial(provide_files, files, tmp_path / "source", tmp_path / "cache", download=no_network)
        assert list(pool.map(lambda _: provide(), range(4))) == [tmp_path / "cache"] * 4
    assert len(unpacked_by) == len(CONTENT)
    assert_unpacked(tmp_path / "cache")


def filled_cache(files_and_packed: Files, cache: Path) -> Path:
    """By a download, so that nothing else has the files."""
    files, packed = files_and_packed
    return provide_files(files, None, cache, download=lambda root: write(root, packed))


def test_a_sound_cache_is_used_as_it_is(tmp_path: Path, files_and_packed: Files) -> None:
    cache = filled_cache(files_and_packed, tmp_path / "cache")
    inodes = [(cache / path).stat().st_ino for path in CONTENT]
    assert provide_files(files_and_packed[0], None, cache, download=no_network) == cache
    assert [(cache / path).stat().st_ino for path in CONTENT] == inodes


@pytest.mark.parametrize("from_source", [True, False], ids=["source", "download"])
def test_a_flipped_byte_in_the_cache_is_mended(tmp_path: Path, files_and_packed: Files, from_source: bool) -> None:
    files, packed = files_and_packed
    cache = filled_cache(files_and_packed, tmp_path / "cache")
    flip_a_byte(cache / "raw" / "labels")
    if from_source:
        write(tmp_path / "source", packed)
        provide_files(files, tmp_path / "source", cache, download=no_network)
    else:
        provide_files(files, tmp_path / "source", cache, download=lambda root: write(root, packed))
    assert_unpacked(cache, record=files is not GZIPPED)


def test_a_flipped_byte_that_nothing_can_mend_is_an_error_each_time(tmp_path: Path, files_and_packed: Files) -> None:
    cache = filled_cache(files_and_packed, tmp_path / "cache")
    flip_a_byte(cache / "raw" / "labels")
    for _ in range(2):
        with pytest.raises(DatasetUnavailableError) as caught:
            provide_files(files_and_packed[0], None, cache, download=no_network)
        assert f"{cache / 'raw' / 'labels'} is damaged or not of Tiny: its content has the wrong checksum" in str(
            caught.value
        )
        assert "SAMSTUDY_DATA_DIR is not set, and the download failed (no network)" in str(caught.value)


def test_the_record_is_one_that_sha256sum_can_check(tmp_path: Path) -> None:
    packed = gzipped()
    cache = filled_cache((by_md5_of_packed(packed), packed), tmp_path / "cache")
    assert (cache / "tiny.sha256").read_text() == "".join(
        f"{sha256(content)}  {path}\n" for path, content in CONTENT.items()
    )


@pytest.mark.parametrize("record", [None, b"", b"\xff\n  raw/labels\n"], ids=["none", "empty", "senseless"])
def test_a_cache_without_a_record_is_recorded_as_it_is(tmp_path: Path, record: bytes | None) -> None:
    """As an older version left it; from then on, damage is noticed."""
    packed = gzipped()
    files = by_md5_of_packed(packed)
    cache = filled_cache((files, packed), tmp_path / "cache")
    (cache / "tiny.sha256").unlink()
    if record is not None:
        (cache / "tiny.sha256").write_bytes(record)
    provide_files(files, tmp_path / "source", cache, download=no_network)
    assert_unpacked(cache, record=True)
    flip_a_byte(cache / "raw" / "labels")
    with pytest.raises(DatasetUnavailableError, match="labels is damaged"):
        provide_files(files, tmp_path / "source", cache, download=no_network)


def test_a_cache_without_a_record_is_unpacked_anew_where_the_source_has_the_files(tmp_path: Path) -> None:
    packed = gzipped()
    files = by_md5_of_packed(packed)
    cache = filled_cache((files, packed), tmp_path / "cache")
    (cache / "tiny.sha256").unlink()
    flip_a_byte(cache / "raw" / "labels")
    write(tmp_path / "source", packed)
    provide_files(files, tmp_path / "source", cache, download=no_network)
    assert_unpacked(cache, record=True)


MENDS = """
import json, sys
from functools import partial
from pathlib import Path
from trainers.datasets.published_files import PublishedFiles, provide_files, unpack_gzip

while order := sys.stdin.readline():
    packed, unpacked, download_from, cache = json.loads(order)
    downloads = []

    def download(root):
        downloads.append(root)
        for path in packed:
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(Path(download_from, path).read_bytes())

    print("ready", flush=True)
    sys.stdin.readline()
    files = PublishedFiles("tiny", "Tiny", packed, unpacked, partial(unpack_gzip, folder="raw"))
    for _ in range(20):
        provide_files(files, None, Path(cache), download=download)
    print(len(downloads), flush=True)
"""


@pytest.fixture(scope="module")
def menders() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that mend one cache after the other: to start them takes longer than that."""
    start = partial(subprocess.Popen[str], [sys.executable, "-c", MENDS], stdin=subprocess.PIPE, text=True)
    with start(stdout=subprocess.PIPE) as one, start(stdout=subprocess.PIPE) as other:
        yield [one, other]


def tell(process: subprocess.Popen[str], line: str) -> None:
    print(line, file=process.stdin, flush=True)


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def test_of_two_processes_one_mends_the_cache_and_both_use_it(
    tmp_path: Path, files_and_packed: Files, menders: list[subprocess.Popen[str]]
) -> None:
    files, packed = files_and_packed
    cache = filled_cache(files_and_packed, tmp_path / "cache")
    flip_a_byte(cache / "raw" / "labels")
    write(tmp_path / "elsewhere", packed)
    order = json.dumps([dict(files.packed), dict(files.unpacked), str(tmp_path / "elsewhere"), str(cache)])
    for process in menders:
        tell(process, order)
    assert [hear(process) for process in menders] == ["ready"] * 2
    for process in menders:
        tell(process, "go")
    downloads = sorted(hear(process) for process in menders)
    assert downloads == ["0", "1"]
    assert_unpacked(cache, record=files is not GZIPPED)


def test_files_that_the_loader_cannot_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailableError) as caught, reading(GZIPPED, tmp_path):
        raise RuntimeError("Dataset not found or corrupted")
    message = str(caught.value)
    assert message.startswith("Tiny cannot be read (Dataset not found or corrupted). Delete its files")
    assert all(str(tmp_path / path) in message for path in CONTENT)
