"""The digest of the sources: it changes with any of them, and is the same from a folder and from a zip."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest

from service.reproduction.sources import NUMERICAL_PACKAGES, digest_of, short, sources_digest

NAME = "a_made_up_package"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a subpackage, and with files that are no sources."""
    folder = tmp_path / "sources" / NAME
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "__init__.py").write_text("ONE = 1\n")
    (folder / "notes.txt").write_text("some")
    return folder


@pytest.fixture(autouse=True)
def path_and_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves nothing behind of what was imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(NAME, None)


def digest_from(place: Path) -> str:
    """As a process would find it that has this place first on its path."""
    sys.modules.pop(NAME, None)
    sys.path.insert(0, str(place))
    invalidate_caches()
    try:
        return digest_of(NAME)
    finally:
        sys.path.remove(str(place))


def test_it_is_of_the_sources_and_of_nothing_else(package: Path) -> None:
    before = digest_from(package.parent)
    (package / "notes.txt").write_text("others")
    assert digest_from(package.parent) == before
    (package / "inner" / "__init__.py").write_text("ONE = 2\n")
    assert digest_from(package.parent) != before


def test_a_source_that_is_moved_or_added_changes_it(package: Path) -> None:
    digests = {digest_from(package.parent)}
    (package / "more.py").write_text("")
    digests.add(digest_from(package.parent))
    (package / "more.py").rename(package / "inner" / "more.py")
    digests.add(digest_from(package.parent))
    assert len(digests) == 3


def test_from_a_zip_it_is_the_same(package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a_wheel.zip"
    with zipfile.ZipFile(archive, "w") as wheel:
        for path in sorted(package.rglob("*")):
            wheel.write(path, path.relative_to(package.parent))
    assert digest_from(archive) == digest_from(package.parent)


def test_it_is_of_the_packages_that_make_the_numbers() -> None:
    assert set(NUMERICAL_PACKAGES) == {"trainers", "search_spaces"}
    assert sources_digest() == digest_of(*NUMERICAL_PACKAGES) != digest_of("search_spaces")
    assert sources_digest().startswith(short(sources_digest()))
