"""`samstudy up`: the whole service on one machine, its processes started, watched and stopped together.

Everything is bound to loopback. Usual ports where they are free, others where not.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from service.addresses import Addresses, holding, publish, withdraw
from service.errors import ServiceUnavailableError
from service.settings import Settings
from service.store.database import Database
from service.supervision import Part

PARTS = ("ray", "mlflow", "api", "controller")
_LOOPBACK = "127.0.0.1"
_SCRATCH = "samstudy-"
_RAY_WORKER_PORTS = range(10_002, 20_000)
_OBJECT_STORE_BYTES = 100_000_000  # trials exchange no objects; Ray's default would take a third of the memory


def run_embedded(config: Settings, *, on_ready: Callable[[Addresses], None], log: Callable[[str], None] = print) -> int:
    """Runs the service until SIGINT or SIGTERM; answers the exit status.

    on_ready: called once when every part answers. log: hears of parts that ended and were started again.
    Raises AlreadyRunningError, and ServiceUnavailableError where a part does not come up.
    """
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with embedded_service(config, log=log, stopping=stopping) as (addresses, watch):
            if not stopping.is_set():
                on_ready(addresses)
            while not stopping.wait(0.2):
                watch()
            log("stopping: what trains goes on from its checkpoints at the next start")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


@contextmanager
def embedded_service(
    config: Settings, *, log: Callable[[str], None], stopping: threading.Event, only: Collection[str] = PARTS
) -> Iterator[tuple[Addresses, Callable[[], None]]]:
    """The service while the block runs: its addresses, and a function that starts again what has ended.

    only: the parts to start. Raises what `run_embedded` raises.
    """
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        cleanup.enter_context(holding(config.home))
        scratch = cleanup.enter_context(_scratch(config.home))
        addresses, parts = _parts(config, scratch)
        parts = [part for part in parts if part.name in only]
        Database(config.store_url).migrate()
        for part in parts:
            cleanup.callback(part.stop)  # the last one first: the controller, then what it uses
        for part in parts:
            part.start()
        for part in parts:
            part.wait_until_ready(stopping)
        publish(addresses)
        cleanup.callback(withdraw, addresses)

        def watch() -> None:
            for part in parts:
                if what := part.keep_up():
                    log(f"{part.name} {what} and was started again; see {part.log_file}")

        yield addresses, watch


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A folder for Ray and for temporary files of drivers and workers, to which `ray` in the home leads.

    Its path is short, as those of Ray's sockets are limited. The one that a killed service has left behind goes first.
    """
    link = home / "ray"
    if link.is_symlink():
        left = link.readlink()
        link.unlink()
        if left.name.startswith(_SCRATCH):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    link.symlink_to(scratch)
    try:
        yield scratch
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _parts(config: Settings, scratch: Path) -> tuple[Addresses, list[Part]]:
    """The processes of the service, in the order in which they are stopped last."""
    taken: set[int] = set()
    api_port, mlflow_port, ray_port = (_free_port(usual, taken) for usual in (config.port, 5000, 8265))
    addresses = Addresses(
        api_url=f"http://{_LOOPBACK}:{api_port}",
        mlflow_url=f"http://{_LOOPBACK}:{mlflow_port}",
        ray_url=f"http://{_LOOPBACK}:{ray_port}",
        home=str(config.home),
        pid=os.getpid(),
    )
    environment = _environment(config, addresses)
    ray_environment = {
        **environment,
        # Ray then takes loopback for the node's address, and every one of its servers binds there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "TMPDIR": str(scratch),
        "AUTOSCALER_METRIC_PORT": str(_free_port(0, taken)),
        "DASHBOARD_METRIC_PORT": str(_free_port(0, taken)),
    }
    samstudy = [sys.executable, "-m", "service.cli"]
    mlflow = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        _LOOPBACK,
        "--port",
        str(mlflow_port),
        "--workers",
        "1",
    ]
    mlflow += ["--backend-store-uri", f"sqlite:///{config.home / 'mlflow.db'}"]
    mlflow += ["--artifacts-destination", (config.home / "mlartifacts").as_uri()]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    ray += ["--node-ip-address", _LOOPBACK, "--port", str(_free_port(0, taken))]
    ray += ["--ray-client-server-port", str(_free_port(0, taken)), "--dashboard-agent-listen-port", "0"]
    ray += ["--dashboard-host", _LOOPBACK, "--dashboard-port", str(ray_port), "--include-log-monitor", "false"]
    ray += ["--object-store-memory", str(_OBJECT_STORE_BYTES), "--temp-dir", str(scratch)]
    logs = config.home / "logs"
    return addresses, [
        Part(
            "ray",
            ray,
            environment=ray_environment,
            logs=logs,
            ready_url=f"{addresses.ray_url}/api/version",
            token=ray_environment["RAY_AUTH_TOKEN"],
        ),
        Part("mlflow", mlflow, environment=environment, logs=logs, ready_url=f"{addresses.mlflow_url}/health"),
        Part(
            "api",
            [*samstudy, "api"],
            environment=environment,
            logs=logs,
            ready_url=f"{addresses.api_url}/readyz",
            alive_url=f"{addresses.api_url}/healthz",
        ),
        Part("controller", [*samstudy, "controller"], environment=environment, logs=logs, ready_url=None),
    ]


def _environment(config: Settings, addresses: Addresses) -> dict[str, str]:
    """What every process of the service sees: these settings, a token of this run for Ray, nobody else's Ray."""
    others = ("RAY_", "TUNE_", "SAMSTUDY_API_KEY")  # the service itself asks nothing of the API
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    ours = config.model_copy(
        update={
            "database_url": config.store_url,
            "storage": config.storage_uri,
            "host": _LOOPBACK,
            "port": addresses.api_url.rpartition(":")[2],
            "mlflow_url": addresses.mlflow_url,
            "ray_jobs_url": addresses.ray_url,
        }
    )
    return {
        **inherited,
        **_no_proxy(inherited),
        **ours.to_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes more, for nothing that we use
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "50",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",  # to every process, as --disable-usage-stats is not
    }


def _no_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """What keeps the parts' questions to each other from a proxy, whoever asks: MLflow's client, Ray's, Ray's agents.

    Some programs read one spelling and some the other; the user's own exceptions stay.
    """
    kept = {name: environment.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    lists = {name: own or next(filter(None, kept.values()), "") for name, own in kept.items()}
    own_names = f"{_LOOPBACK},localhost"
    return {name: own if own == "*" else ",".join(filter(None, (own, own_names))) for name, own in lists.items()}


def _free_port(usual: int, taken: set[int]) -> int:
    """The usual port where it is free, another where not; Ray keeps its workers' ports for itself."""
    for candidate in (usual, *[0] * 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_LOOPBACK, candidate))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
        if port not in taken and port not in _RAY_WORKER_PORTS:
            taken.add(port)
            return port
    raise ServiceUnavailableError("there is no free port on the loopback address")
