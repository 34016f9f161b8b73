"""What `samstudy doctor` looks at on this machine: packages, disk, ports."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service.cli.findings import Finding, note, well, wrong

if TYPE_CHECKING:
    from trainers.facts import DatasetFacts, ModelFacts

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "fastapi", "sqlalchemy", "pydantic")
LEAST_DISK_BYTES = 2 * 1024**3


def examine_machine(home: Path) -> Iterator[Finding]:
    """Python, packages and disk."""
    from trainers.catalog import DATASETS, MODELS
    from trainers.plugins import LEFT_OUT

    found = platform.python_version()
    is_known = sys.version_info >= (3, 11)
    yield well("Python", found) if is_known else wrong("Python", found, "use Python 3.11 or newer")
    yield from _packages()
    yield _torchvision()
    yield from plugin_findings([*MODELS.values(), *DATASETS.values()], LEFT_OUT)
    yield _disk(home)


def examine_ports(urls: dict[str, str]) -> Iterator[Finding]:
    """Whether what is not up could come up at its usual address. urls: by the name of the part."""
    for name, url in urls.items():
        yield _port(name, url)


def _packages() -> Iterator[Finding]:
    versions: list[str] = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield wrong(name, "not installed", "pip install samstudy")
    yield well("packages", ", ".join(versions))


def plugin_findings(known: Iterable[ModelFacts | DatasetFacts], left_out: Iterable[str]) -> Iterator[Finding]:
    """What packages add to samstudy on this machine, and what they get wrong; nothing where there are none."""
    if names := [facts.name for facts in known if facts.code is not None]:
        yield well("plug-ins", ", ".join(names))
    for problem in left_out:
        yield wrong("plug-ins", problem, "mend its package, or uninstall it: nothing can be trained with this one")


def _torchvision() -> Finding:
    try:
        import trainers.vision  # noqa: F401 (importing is the test)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        remedy = "install the torchvision that belongs to this torch (torch 2.13 and torchvision 0.28)"
        return wrong("torchvision", f"cannot be imported: {error}", remedy)
    return well("torchvision", "can be used with this torch")


def _disk(home: Path) -> Finding:
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    said = f"{free / 1024**3:.1f} GiB free for {home}"
    if free >= LEAST_DISK_BYTES:
        return well("disk", said)
    return wrong("disk", said, "make room, or set SAMSTUDY_HOME to a folder elsewhere")


def _port(name: str, url: str) -> Finding:
    try:
        host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    except ValueError:  # which may quote a part of a password
        return note("port", f"the address of {name} has none that could be read")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return note(f"port {port}", f"taken by something else; samstudy up takes another one for {name}")
    return well(f"port {port}", f"free for {name}")
