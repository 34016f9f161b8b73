"""Which sources made the numbers: a digest of the packages that train, wherever they are installed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

NUMERICAL_PACKAGES = ("search_spaces", "trainers")
_SHORT = 12


@cache
def sources_digest() -> str:
    """Of the packages that make an experiment's numbers; 64 hexadecimal digits, as this process first found them."""
    return digest_of(*NUMERICAL_PACKAGES)


def short(digest: str) -> str:
    """As much of it as a reader compares."""
    return digest[:_SHORT]


def digest_of(*packages: str) -> str:
    """SHA-256 over the paths and contents of all .py files of these packages; the same from a folder and a zip."""
    digest = hashlib.sha256()
    for package in packages:
        for path, content in sorted(_sources(files(package), package)):
            digest.update(f"{path}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def _sources(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _sources(item, f"{path}/{item.name}")
        elif item.name.endswith(".py"):
            yield f"{path}/{item.name}", item.read_bytes()
