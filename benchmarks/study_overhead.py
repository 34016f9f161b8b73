"""What a study costs through the service, beside the plain Ray Tune script that a user would write instead.

    python benchmarks/study_overhead.py

Runs on this machine, one after the other: the same grid of short trials through the service (already up; from the POST
until every run is complete in MLflow), the plain script, and the plain script with `reuse_actors=True`, each with an
MLflow server of its own on SQLite. Then it times POST. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from mlflow import MlflowClient
from mlflow.entities import Run

from service.client import Client
from service.embedded import embedded_service
from service.settings import Settings

_DEADLINE_S = 1200.0
_POSTS = 50


def main() -> None:
    """Prints every wall time, then the ratios."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--seeds", type=int, default=2, help="20 trials for each")
    arguments.add_argument("--epochs", type=int, default=5)
    options = arguments.parse_args()
    spec = _spec(seeds=options.seeds, epochs=options.epochs)
    trials = 20 * options.seeds
    print(f"{trials} trials of {options.epochs} epochs, digits, mlp, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="samstudy-benchmark-") as folder:
        service_s, post_s = _through_the_service(spec, trials, Path(folder) / "service")
        print(f"POST /studies, median of {_POSTS}: {1000 * post_s:.1f} ms", flush=True)
        plain_s = _plain_script(options.seeds, options.epochs, trials, Path(folder) / "plain")
        reusing_s = _plain_script(options.seeds, options.epochs, trials, Path(folder) / "reuse", "--reuse-actors")
    print(f"plain script, reuse_actors=True: {reusing_s:.1f} s")
    print(f"ratio plain with reuse_actors/service: {reusing_s / service_s:.1f}")
    print(f"plain script: {plain_s:.1f} s")
    print(f"service: {service_s:.1f} s")
    print(f"ratio plain/service: {plain_s / service_s:.1f}")


def _spec(*, seeds: int, epochs: int) -> dict[str, object]:
    return {
        "name": "overhead",
        "train": {"dataset": "digits", "model": "mlp", "epochs": epochs, "batch_size": 64, "lr": 0.05},
        "search_space": {
            "lambda": {"type": "categorical", "choices": [0.0, 0.5, 1.0, "1/t", "1-1/t"]},
            "rho": {"type": "categorical", "choices": [0.05, 0.1, 0.2, 0.4]},
        },
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": list(range(seeds))},
    }


def _through_the_service(spec: dict[str, object], trials: int, home: Path) -> tuple[float, float]:
    """Seconds from the POST until MLflow has every run, and the median seconds of a POST."""
    config = Settings(home=home)
    with embedded_service(config, log=print, stopping=threading.Event()) as (addresses, _watch):
        mlflow = MlflowClient(addresses.mlflow_url)
        with Client(addresses.api_url) as client:
            started = time.monotonic()
            study = client.submit(spec)
            study.wait(_DEADLINE_S)
            _wait_until(lambda: len(_finished(mlflow, "overhead")) == trials + 1)
            elapsed_s = time.monotonic() - started
            _check_runs(_finished(mlflow, "overhead"), children=trials)
        posts = []
        with httpx.Client(base_url=addresses.api_url) as http:
            for number in range(_POSTS):
                before = time.perf_counter()
                answer = http.post("/api/v1/studies", json={**spec, "name": f"post-{number}"})
                posts.append(time.perf_counter() - before)
                answer.raise_for_status()
                http.post(f"/api/v1/studies/{answer.json()['id']}/cancel").raise_for_status()
    return elapsed_s, statistics.median(posts)


def _plain_script(seeds: int, epochs: int, trials: int, home: Path, *flags: str) -> float:
    """Seconds that the plain script takes, with an MLflow server on SQLite that is up already."""
    home.mkdir()
    config = Settings(home=home)
    script = [sys.executable, str(Path(__file__).with_name("plain_tune.py"))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SAMSTUDY_"))}
    environment |= {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with embedded_service(config, log=print, stopping=threading.Event(), only=("mlflow",)) as (addresses, _watch):
        command = [*script, "--mlflow-url", addresses.mlflow_url, "--seeds", str(seeds), "--epochs", str(epochs)]
        started = time.monotonic()
        subprocess.run([*command, *flags], env=environment, check=True, timeout=_DEADLINE_S, stdout=subprocess.DEVNULL)
        elapsed_s = time.monotonic() - started
        _check_runs(_finished(MlflowClient(addresses.mlflow_url), "plain"), children=trials)
    return elapsed_s


def _finished(mlflow: MlflowClient, experiment: str) -> list[Run]:
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs = mlflow.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", max_results=1000)
    return list(runs)


def _check_runs(runs: list[Run], *, children: int) -> None:
    """Both ways must have logged the same thing: every trial with its last validation and test accuracy."""
    complete = [run for run in runs if {"val_accuracy", "test_accuracy"} <= run.data.metrics.keys()]
    if len(complete) != children:
        raise SystemExit(f"MLflow has {len(complete)} complete trials of {children}")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not done within {_DEADLINE_S:.0f} s")
        time.sleep(0.25)


if __name__ == "__main__":
    main()
