"""The files that a dataset is published as: found or downloaded, verified, unpacked once for all workers of a node.

They are looked for in SAMSTUDY_DATA_DIR; where they are not, torchvision downloads them. Either way they are verified
and unpacked into the cache, under a lock, so that many workers can start at the same time. Nothing unverified gets
into the cache, and what is there is verified again each time before it is read: by the published checksum of the
unpacked file, or, where only the packed one has any, by the SHA-256 that was recorded when it was unpacked. The record
is NAME.sha256 in the cache, in the form of the program sha256sum, which can check it.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainers.datasets.dataset import DatasetUnavailableError

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What the system says of a directory that another one would do better than."""


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """What is known about a dataset's files. Paths are relative to the root that torchvision's loader is given.

    name, title: the dataset's, ours and as it is published. packed: the files as they are downloaded. unpacked: those
    that the loader reads. Each has its MD5 or SHA-256, in hexadecimal, or "" where none is known and the other side
    is verified. unpack: from a packed file to the path and the content of every file in it.
    advice: where else the files can be had, a sentence.
    """

    name: str
    title: str
    packed: Mapping[str, str]
    unpacked: Mapping[str, str]
    unpack: Callable[[Path], Iterator[tuple[str, bytes]]]
    advice: str = ""


class _DamagedError(RuntimeError):
    """A file is not what was published; says which and what to do."""


class _NotFoundError(RuntimeError):
    """The source has no files that can be used; says why."""


def provide_files(files: PublishedFiles, source: Path | None, cache: Path, *, download: Callable[[Path], None]) -> Path:
    """Sees to it that the unpacked files are in the cache, verified, and returns the root for torchvision's loader.

    What is missing or damaged there is unpacked anew. A cache of an older version may lack the record of checksums that
    it needs: its files are unpacked anew from the source where that has them, else recorded as they are, unverified.

    source: a directory with the packed files, or with unpacked ones whose checksums are known, possibly read-only. They
    are looked for in it and in its folder of the dataset's name, in torchvision's layout or flat. download: writes the
    packed files into a directory, in torchvision's layout, or raises OSError or RuntimeError.
    Raises DatasetUnavailableError where they are neither found nor downloaded, or are damaged.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{files.name}.lock"):
            checksums = {path: known for path, known in files.unpacked.items() if known} or _recorded(cache, files)
            try:
                _verify_cached(cache, files, checksums)
            except _DamagedError as damage:
                _fill(cache, files, source, download, damage=str(damage))
            else:
                if len(checksums) < len(files.unpacked):
                    _take_over(cache, files, source)
    except OSError as error:
        is_home_at_fault = error.errno in _NOT_WRITABLE or not cache.is_dir()
        advice = " Set SAMSTUDY_HOME to a writable directory." if is_home_at_fault else ""
        raise DatasetUnavailableError(f"{files.title} cannot be unpacked in {cache}: {error}.{advice}") from error
    return cache


@contextmanager
def reading(files: PublishedFiles, root: Path) -> Iterator[None]:
    """Around torchvision's loader: what it says of files that it cannot read becomes DatasetUnavailableError."""
    try:
        yield
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        paths = ", ".join(str(root / path) for path in files.unpacked)
        raise DatasetUnavailableError(
            f"{files.title} cannot be read ({error}). Delete its files, so that they are unpacked again: {paths}"
        ) from error


def unpack_gzip(path: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """The one file in a .gz, named without the ending, in `folder`."""
    yield f"{folder}/{path.stem}", gzip.decompress(path.read_bytes())


def unpack_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The regular files in an archive, compressed or not."""
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()


def unpack_nothing(path: Path) -> Iterator[tuple[str, bytes]]:
    """A file that is read as it is published."""
    yield path.name, path.read_bytes()


def _verify_cached(cache: Path, files: PublishedFiles, checksums: Mapping[str, str]) -> None:
    """Raises _DamagedError, without a message where files are only missing."""
    if not all((cache / path).is_file() for path in files.unpacked):
        raise _DamagedError
    for path, checksum in checksums.items():
        try:
            content = (cache / path).read_bytes()
        except OSError as error:
            raise _DamagedError(f"{cache / path} cannot be read ({error})") from error
        _verify(content, checksum, cache / path, files.title)


def _take_over(cache: Path, files: PublishedFiles, source: Path | None) -> None:
    """Makes the record that a cache of an older version lacks; without a download, so that it works as before."""
    try:
        _unpack_found(cache, files, source)
    except (_NotFoundError, OSError):
        _record(cache, files, {path: _sha256((cache / path).read_bytes()) for path in files.unpacked})


def _fill(
    cache: Path, files: PublishedFiles, source: Path | None, download: Callable[[Path], None], *, damage: str
) -> None:
    """Unpacks the files of the source, or else those that the download brings. damage: of the cache, "" for none."""
    try:
        _unpack_found(cache, files, source)
    except _NotFoundError as error:
        reasons = "; ".join(filter(None, [damage, str(error)]))
    else:
        return
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        try:
            download(Path(temporary))
            _unpack(files, [Path(temporary, path) for path in files.packed], cache, are_packed=True)
        except (OSError, RuntimeError) as error:
            names = ", ".join(Path(path).name for path in files.packed)
            reason = " ".join(str(error).split())  # torchvision's has several lines
            raise DatasetUnavailableError(
                f"{files.title} is not available. Its files {names} are needed: {reasons}, and "
                f"the download failed ({reason}). Put them into a directory and set SAMSTUDY_DATA_DIR to "
                f"it{files.advice and '; '}{files.advice}."
            ) from error


def _unpack_found(cache: Path, files: PublishedFiles, source: Path | None) -> None:
    """Unpacks the first files in the source that are what was published. Raises _NotFoundError."""
    refused = []
    for paths, are_packed in _places(files, source):
        try:
            _unpack(files, paths, cache, are_packed=are_packed)
        except _DamagedError as error:
            refused.append(str(error))
        else:
            return
    nowhere = "SAMSTUDY_DATA_DIR is not set" if source is None else f"not all in {source}"
    raise _NotFoundError("; ".join(refused) or nowhere)


def _places(files: PublishedFiles, source: Path | None) -> Iterator[tuple[list[Path], bool]]:
    """Every set of paths in the source at which all files are there, and whether they are packed."""
    are_verifiable = all(files.unpacked.values())
    for root in () if source is None else (source, source / files.name):
        candidates = [
            ([root / path for path in files.packed], True),
            ([root / Path(path).name for path in files.packed], True),
            *([([root / path for path in files.unpacked], False)] if are_verifiable else []),
        ]
        yield from ((paths, packed) for paths, packed in candidates if all(path.is_file() for path in paths))


def _unpack(files: PublishedFiles, paths: list[Path], cache: Path, *, are_packed: bool) -> None:
    """Writes the unpacked files into the cache, all of them once all are verified, and records what they have to be.

    The record comes first: should this process die in between, the old files are compared with it and found wanting.
    paths: the packed or the unpacked ones, in the order of `files`.
    """
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        staging, to_record = Path(temporary), dict[str, str]()
        contents = _contents_of_packed(files, paths) if are_packed else _contents_of_unpacked(files, paths)
        for path, content, origin in contents:
            _verify(content, files.unpacked[path], origin, files.title)
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_bytes(content)
            if not files.unpacked[path]:
                to_record[path] = _sha256(content)
        missing = [path for path in files.unpacked if not (staging / path).is_file()]
        if missing:
            raise _DamagedError(f"{paths[0]} is damaged or not of {files.title}: it lacks {', '.join(missing)}")
        if to_record:
            _record(cache, files, to_record)
        for path in files.unpacked:
            (cache / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).replace(cache / path)


def _contents_of_packed(files: PublishedFiles, paths: list[Path]) -> Iterator[tuple[str, bytes, Path]]:
    """The unpacked path, the content, and the file that it came from."""
    for origin, checksum in zip(paths, files.packed.values(), strict=True):
        if checksum:
            _verify(origin.read_bytes(), checksum, origin, files.title)
        try:
            yield from ((path, content, origin) for path, content in files.unpack(origin) if path in files.unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise _DamagedError(f"{origin} is damaged ({error}); get it again") from error


def _contents_of_unpacked(files: PublishedFiles, paths: list[Path]) -> Iterator[tuple[str, bytes, Path]]:
    for origin, path in zip(paths, files.unpacked, strict=True):
        yield path, origin.read_bytes(), origin


def _recorded(cache: Path, files: PublishedFiles) -> dict[str, str]:
    """The recorded SHA-256 of each unpacked file; a line that is not of the record's form counts for nothing."""
    with suppress(FileNotFoundError):
        lines = _record_path(cache, files).read_text(encoding="utf-8", errors="replace").splitlines()
        checksums = {path: checksum for checksum, _, path in (line.partition("  ") for line in lines)}
        return {path: checksums[path] for path in files.unpacked if checksums.get(path)}
    return {}


def _record(cache: Path, files: PublishedFiles, checksums: Mapping[str, str]) -> None:
    """Whole or not at all; the caller holds the lock."""
    partial = cache / f"{files.name}.sha256.partial"
    partial.write_text("".join(f"{checksum}  {path}\n" for path, checksum in checksums.items()), encoding="utf-8")
    partial.replace(_record_path(cache, files))


def _record_path(cache: Path, files: PublishedFiles) -> Path:
    return cache / f"{files.name}.sha256"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verify(content: bytes, checksum: str, origin: Path, title: str) -> None:
    """checksum: an MD5 or SHA-256 in hexadecimal, told apart by its length, or "" for one that is not known."""
    algorithm = "md5" if len(checksum) == 32 else "sha256"
    if checksum and hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() != checksum:
        raise _DamagedError(f"{origin} is damaged or not of {title}: its content has the wrong checksum; get it again")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file, across processes; the system releases it should this process die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
