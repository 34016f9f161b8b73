"""MLflow's tracking server as the exporter uses it: few calls, our own errors, nothing of MLflow in the signatures."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import SamstudyError
from service.tracking.limits import RunContent, batches
from service.tracking.runs import STUDY_ID, TRIAL_ID, RunStatus

_PROCESS_SETTINGS = {
    # Our own loop tries again. MLflow's client would repeat a create_run whose answer came too late, and double it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else ending a run reads it first, to print a link
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its lines are lines of the process' own log
}
_TIMEOUT = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; with the default a dead server holds one call for minutes
_SEARCH_PAGE = 1_000
_MAX_NAMESAKES = 100


class TrackingUnavailableError(SamstudyError):
    """MLflow does not answer, or not as MLflow; whatever was to be written there is written later."""

    status = 503
    code = "tracking_unavailable"
    title = "MLflow is not available"


class RunGoneError(Exception):
    """MLflow does not have this run or experiment any more, or keeps it only as deleted."""


class RefusedError(Exception):
    """MLflow does not take this, and answers otherwise: a matter of one study, which must not hold up the others."""


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run that is there. trial_id: None for a study's parent run. params: as MLflow has them, by name.

    tags: the names of those that it has. latest: of each metric the last point's step and its time in ms since 1970.
    ended_ms: when it ended last, also of one that runs again; None: never.
    """

    run_id: str
    trial_id: str | None
    status: str
    params: Mapping[str, str]
    tags: frozenset[str]
    latest: Mapping[str, tuple[int, int]]
    ended_ms: int | None


class TrackingServer:
    """One tracking server. Every method raises TrackingUnavailableError and RefusedError."""

    def __init__(self, url: str) -> None:
        os.environ.update(_PROCESS_SETTINGS)  # MLflow reads its settings from there, some of them when imported
        os.environ.setdefault(*_TIMEOUT)  # a slow server may need more
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=url)
        self._url = url

    def open_experiment(self, name: str) -> str:
        """Id of the experiment with this name, made where there is none.

        MLflow never gives a deleted experiment's name away again. What a person has deleted stays deleted: the
        experiment is then called `name (2)`, and so on.
        """
        for number in range(1, _MAX_NAMESAKES):
            candidate = name if number == 1 else f"{name} ({number})"
            with self._answers():
                found = self._client.get_experiment_by_name(candidate)
            if found is None:
                made = self._create_experiment(candidate)
                if made is not None:
                    return made
                with self._answers():
                    found = self._client.get_experiment_by_name(candidate)
            if found is not None and found.lifecycle_stage == "active":
                return str(found.experiment_id)
        raise RefusedError(f"{_MAX_NAMESAKES} experiments called {name!r} have been deleted")

    def has_experiment(self, experiment_id: str) -> bool:
        """Whether the experiment is there and not deleted."""
        try:
            with self._answers():
                return str(self._client.get_experiment(experiment_id).lifecycle_stage) == "active"
        except RunGoneError:
            return False

    def experiments(self) -> list[str]:
        """Ids of all experiments that are not deleted."""
        found: list[str] = []
        token = None
        while True:
            with self._answers():
                page = self._client.search_experiments(max_results=_SEARCH_PAGE, page_token=token)
            found += [str(experiment.experiment_id) for experiment in page]
            token = page.token
            if not token:
                return found

    def runs_of(self, experiment_ids: Sequence[str], study_id: str) -> list[KnownRun]:
        """Every run of this study there that is not deleted, the oldest first; the order is always the same."""
        runs: list[KnownRun] = []
        token = None
        while True:
            with self._answers():
                page = self._client.search_runs(
                    list(experiment_ids),
                    filter_string=f"tags.`{STUDY_ID}` = '{study_id}'",
                    max_results=_SEARCH_PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            for run in page:
                known = run.data.to_proto()
                runs.append(
                    KnownRun(
                        run.info.run_id,
                        run.data.tags.get(TRIAL_ID),
                        run.info.status,
                        params=dict(run.data.params),
                        tags=frozenset(run.data.tags),
                        latest={metric.key: (metric.step, metric.timestamp) for metric in known.metrics},
                        ended_ms=run.info.end_time or None,
                    )
                )
            token = page.token
            if not token:
                return runs

    def create_run(self, experiment_id: str, *, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Id of a new run, which is RUNNING. Raises RunGoneError where the experiment is gone."""
        try:
            with self._answers():
                run = self._client.create_run(experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
                return str(run.info.run_id)
        except RefusedError as error:
            if not self.has_experiment(experiment_id):
                raise RunGoneError(str(error)) from error
            raise

    def write(self, run_id: str, content: RunContent) -> None:
        """Writes everything in as few calls as possible. Raises RunGoneError."""
        from mlflow.entities import Metric, Param, RunTag

        for batch in batches(content):
            with self._answers_about(run_id):
                self._client.log_batch(
                    run_id,
                    metrics=[Metric(point.key, point.value, point.timestamp_ms, point.step) for point in batch.metrics],
                    params=[Param(key, value) for key, value in batch.params.items()],
                    tags=[RunTag(key, value) for key, value in batch.tags.items()],
                    synchronous=True,
                )

    def set_status(self, run_id: str, status: RunStatus, *, end_ms: int | None = None) -> None:
        """Moves the run to this status; `end_ms` for one that has ended. Raises RunGoneError."""
        with self._answers_about(run_id):
            if end_ms is None:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status=status, end_time=end_ms)

    def delete_run(self, run_id: str) -> None:
        """Moves the run to those that are deleted, where it may be already; MLflow can restore it from there."""
        with contextlib.suppress(RunGoneError), self._answers():
            self._client.delete_run(run_id)

    def delete_tag(self, run_id: str, name: str) -> None:
        """Takes a tag off the run, where it may be off already."""
        with contextlib.suppress(RunGoneError), self._answers_about(run_id):
            self._client.delete_tag(run_id, name)

    def write_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Writes files beside each other into the run's artifacts. Raises RunGoneError."""
        with tempfile.TemporaryDirectory(prefix="samstudy-") as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            with self._answers_about(run_id):
                self._upload(run_id, folder)

    def _upload(self, run_id: str, folder: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_artifacts(run_id, folder)
        except MlflowException:
            raise
        except Exception as error:  # of a folder, or of an object store's library where clients write there themselves
            raise RefusedError(f"MLflow's artifacts cannot be written: {error!r}") from error

    def _create_experiment(self, name: str) -> str | None:
        """None where somebody else has just made it."""
        from mlflow.exceptions import MlflowException

        with self._answers():
            try:
                return str(self._client.create_experiment(name))
            except MlflowException as error:
                if error.error_code == "RESOURCE_ALREADY_EXISTS":
                    return None
                raise

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns MLflow's errors into ours.

        Most of its errors do not tell whether MLflow or what was sent is to blame: with a 500 or a timeout it can be
        either. So MLflow is asked something else.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            code: Any = error.error_code
            if code == "RESOURCE_DOES_NOT_EXIST":
                raise RunGoneError(str(error)) from error
            if not self._answers_otherwise():
                raise TrackingUnavailableError(f"MLflow at {self._url} does not answer: {error}") from error
            raise RefusedError(str(error)) from error

    def _answers_otherwise(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.search_experiments(max_results=1)
        except MlflowException:
            return False
        return True

    @contextlib.contextmanager
    def _answers_about(self, run_id: str) -> Iterator[None]:
        """Like `_answers`; MLflow refuses what is written to a deleted run as it refuses a bad value, so it asks."""
        try:
            with self._answers():
                yield
        except RefusedError as error:
            with self._answers():
                is_deleted = self._client.get_run(run_id).info.lifecycle_stage == "deleted"
            if is_deleted:
                raise RunGoneError(str(error)) from error
            raise
