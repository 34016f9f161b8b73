"""`samstudy doctor`: is everything there, does everything answer, and what to do where not."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from service.errors import SamstudyError
from service.settings import Settings, settings

if TYPE_CHECKING:
    from service.addresses import Addresses

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "fastapi", "sqlalchemy", "pydantic")
LEAST_DISK_BYTES = 2 * 1024**3
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` says what to do where `well` is False."""

    what: str
    well: bool
    said: str
    remedy: str = ""


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command()(doctor)


def doctor() -> None:
    """Check packages, settings, store, services, disk and ports."""
    current = settings()
    typer.echo("settings (SAMSTUDY_<NAME>):")
    for name, value in shown_settings(current).items():
        typer.echo(f"  {name} = {value}")
    well = True
    for finding in examine(current):
        well &= finding.well
        remedy = "" if finding.well or not finding.remedy else f" → {finding.remedy}"
        typer.echo(f"{'✓' if finding.well else '✗'} {finding.what}: {finding.said}{remedy}")
    if not well:
        raise typer.Exit(1)


def shown_settings(current: Settings) -> dict[str, str]:
    """Every setting, passwords in URLs left out."""
    return {name: re.sub(r"(://[^:/@\s]*):[^@/\s]*@", r"\1:***@", str(value)) for name, value in current}


def examine(current: Settings) -> Iterator[Finding]:
    """Everything that can be wrong, one after the other."""
    from service.addresses import running_addresses

    running = running_addresses(current.home)
    yield _python()
    yield from map(_package, PACKAGES)
    yield _torchvision()
    yield _disk(current.home)
    yield _store(current)
    api = _api(current, running)
    yield api
    yield _answers("MLflow", running.mlflow_url if running else current.mlflow_url, "/health")
    yield _answers("Ray", running.ray_url if running else current.ray_jobs_url, "/api/version")
    if not api.well:
        for name, url in _usual_addresses(current).items():
            yield _port(name, url)


def _python() -> Finding:
    return Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "pip install samstudy")


def _torchvision() -> Finding:
    try:
        import trainers.vision  # noqa: F401 (importing is the test)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        remedy = "install the torchvision that belongs to this torch (torch 2.13 and torchvision 0.28)"
        return Finding("torchvision", False, f"cannot be imported: {error}", remedy)
    return Finding("torchvision", True, "can be used")


def _disk(home: Path) -> Finding:
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    remedy = "make room, or set SAMSTUDY_HOME to a folder elsewhere"
    return Finding("disk", free >= LEAST_DISK_BYTES, f"{free / 1024**3:.1f} GiB free in {home}", remedy)


def _store(current: Settings) -> Finding:
    from service.store.database import Database

    file = _sqlite_file(current.store_url)
    if file is not None and not file.exists():
        return Finding("store", False, f"{file} is not there yet", "samstudy up (or samstudy migrate) makes it")
    try:
        database = Database(current.store_url)
        try:
            database.check_schema()
        finally:
            database.dispose()
    except (SamstudyError, ImportError) as error:
        return Finding("store", False, str(error), "check SAMSTUDY_DATABASE_URL; samstudy migrate updates the schema")
    return Finding("store", True, "answers, and its schema is this version's")


def _sqlite_file(url: str) -> Path | None:
    """The file behind a SQLite URL: looking at a store must not make one."""
    prefix = "sqlite:///"
    return Path(url.removeprefix(prefix)) if url.startswith(prefix) and ":memory:" not in url else None


def _api(current: Settings, running: Addresses | None) -> Finding:
    from service.client import Client

    url = current.url or (running.api_url if running else _usual_addresses(current)["API"])
    try:
        with Client(url, timeout_s=_TIMEOUT_S, patience_s=0) as client:
            client.check_ready()
    except SamstudyError as error:
        return Finding("API", False, error.detail, "samstudy up starts it; SAMSTUDY_URL says where else it is")
    return Finding("API", True, f"ready at {url}")


def _answers(name: str, url: str, path: str) -> Finding:
    import httpx

    try:
        status = httpx.get(url.rstrip("/") + path, timeout=_TIMEOUT_S, trust_env=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(name, False, f"nothing answers at {url} ({error})", "samstudy up starts it")
    # Ray answers 401 or 403 without its token: it is there
    return Finding(name, status < 500, f"answers at {url}", f"it answers HTTP {status}: look into its log")


def _usual_addresses(current: Settings) -> dict[str, str]:
    return {
        "API": f"http://{current.host}:{current.port}",
        "MLflow": current.mlflow_url,
        "Ray": current.ray_jobs_url,
    }


def _port(name: str, url: str) -> Finding:
    host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return Finding(f"port {port}", True, f"taken; samstudy up takes another one for {name}")
    return Finding(f"port {port}", True, f"free for {name}")
