"""The servers that the benchmarks ask, each a process of its own, and databases that nobody else uses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil
from sqlalchemy import create_engine

from tests.postgresql import PostgresqlServer

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")

_STARTS_WITHIN_S = 120.0
_STOPS_WITHIN_S = 30.0
_DURABLE = {"fsync": "on", "full_page_writes": "on"}


@contextmanager
def empty_database(kind: Kind, folder: Path) -> Iterator[str]:
    """The URL of a database with nothing in it; PostgreSQL's waits for the disk, as in production."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'benchmark.db'}"
        return
    with PostgresqlServer(_DURABLE) as server:
        yield server.url()


def as_autovacuum_leaves_it(url: str) -> None:
    """PostgreSQL does this by itself within a minute of so many inserts; SQLite has nothing that would."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()


@contextmanager
def api(store_url: str, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """`samstudy api` over this store, and where it is."""
    port = _free_port()
    environment = {
        "SAMSTUDY_DATABASE_URL": store_url,
        "SAMSTUDY_HOME": str(folder),
        "SAMSTUDY_HOST": "127.0.0.1",
        "SAMSTUDY_PORT": str(port),
    }
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service.cli", "api"]
    with _process(command, environment, folder / "api.log", f"{url}/readyz") as process:
        yield process, url


@contextmanager
def mlflow(database_url: str, folder: Path) -> Iterator[str]:
    """MLflow's server as `samstudy up` starts it, and where it is."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database_url, "--artifacts-destination", str(folder / "artifacts")]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    url = f"http://127.0.0.1:{port}"
    with _process(command, environment, folder / "mlflow.log", f"{url}/health"):
        yield url


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, ready_url: str
) -> Iterator[psutil.Process]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | environment, cwd=Path.cwd(), process_group=0
        )
    try:
        give_up_at = time.monotonic() + _STARTS_WITHIN_S
        while not _answers(ready_url):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise SystemExit(f"{' '.join(command)} does not start:\n{log.read_text()[-4_000:]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOPS_WITHIN_S)
        with suppress(ProcessLookupError):  # its children, where it has left any behind
            os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
