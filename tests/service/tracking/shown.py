"""What MLflow shows, as the tests read it, and what they put in its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from service.study import Study

NAMES = (f"study-{number}" for number in range(1_000))
"""Every test has experiments of its own."""

Send = Callable[[], requests.Response]
Network = list[Callable[[str, str, Send], requests.Response]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def runs_of(client: MlflowClient, study: Study, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    return list(client.search_runs(experiments, f"tags.`samstudy.study_id` = '{study.id}'", view, max_results=1_000))


def parent_of(client: MlflowClient, study: Study) -> Run:
    (parent,) = [run for run in runs_of(client, study) if "samstudy.trial_id" not in run.data.tags]
    return parent


def children_of(client: MlflowClient, study: Study) -> dict[str, Run]:
    found = [run for run in runs_of(client, study) if "samstudy.trial_id" in run.data.tags]
    by_trial = {run.data.tags["samstudy.trial_id"]: run for run in found}
    assert len(by_trial) == len(found)
    return by_trial


def doubled(client: MlflowClient, run: Run) -> str:
    """A second run with the same identity, which sorts before the first: it starts earlier."""
    tags = {name: value for name, value in run.data.tags.items() if name.startswith(("samstudy.", "mlflow.parent"))}
    return str(client.create_run(run.info.experiment_id, start_time=1, tags=tags).info.run_id)


def history(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


def artifact(client: MlflowClient, run: Run, name: str, folder: Path) -> bytes:
    return Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_bytes()


def answer(status: int) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content = status, b"no"
    return response
