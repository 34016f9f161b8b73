"""A trial in a real worker of Ray: interrupted where it stands, heard in its own log, killed without losing that."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from service.trial_logs import TrialLog
from service.tuning.execution import TrialExecution
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.trial import StudyTrial
from trainers.config import TrainConfig

pytestmark = pytest.mark.soak  # half a minute each; test_trial.py has such trials without Ray

LONG = {"epochs": 100_000, "report_every_epochs": 100_000}


class SpeakingTrial(StudyTrial):
    """Prints before, while and after it trains."""

    def setup(self, config: dict[str, Any]) -> None:
        super().setup(config)
        begin = self._begin

        def begin_to_speak() -> TrialExecution:
            execution = begin()
            quiet = execution._next_report

            def speaking() -> TrialReport:
                print("while it trains")
                os.write(2, b"from a library in C\n")
                return quiet()

            execution._next_report = speaking  # type: ignore[method-assign]
            return execution

        self._begin = begin_to_speak

    def step(self) -> dict[str, Any]:
        print("of the worker before")
        result = super().step()
        print("of the worker after")
        return result

    def process(self) -> int:
        return os.getpid()

    def output(self) -> tuple[str, str]:
        """Where this worker's own stdout and stderr lead."""
        return str(Path("/proc/self/fd/1").readlink()), str(Path("/proc/self/fd/2").readlink())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}},
        )
        yield
        ray.shutdown()


@pytest.fixture
def actors(cluster: None) -> Iterator[Callable[[dict[str, Any]], Any]]:
    started: list[Any] = []

    def start(order: dict[str, Any]) -> Any:
        started.append(ray.remote(num_cpus=0)(SpeakingTrial).remote(config=order))
        return started[-1]

    yield start
    for actor in started:
        ray.kill(actor)


def order(storage: Path, *, trial_id: str = "s-1-0", **changes: Any) -> dict[str, Any]:
    train = {"dataset": "digits", "model": "mlp", "epochs": 2, "batch_size": 256, **changes.pop("train", {})}
    fields: dict[str, Any] = {
        "study_id": "s",
        "trial_id": trial_id,
        "attempt": 1,
        "epochs_done": 0,
        "train": TrainConfig.from_mapping(train).to_mapping(),
        "threads": 1,
        "storage_uri": storage.as_uri(),
        "checkpoint_every_epochs": 1,
        "keep_last_checkpoint": True,
        **changes,
    }
    return TrialOrder(**fields).to_tune_config()


def log(storage: Path, trial_id: str = "s-1-0") -> str:
    log = TrialLog(storage.as_uri(), "s", trial_id, 1)
    return b"".join(log.read(log.extent())).decode()


def test_a_worker_survives_the_trial_that_takes_too_long(
    tmp_path: Path, actors: Callable[[dict[str, Any]], Any]
) -> None:
    actor = actors(order(tmp_path, train=LONG, max_trial_s=7, seconds_left=1.0))
    own = ray.get(actor.output.remote(), timeout=60)
    report = TrialReport.from_tune_result(ray.get(actor.train.remote(), timeout=60))
    assert report.error == "the trial has trained for its budget.max_trial_s of 7 s"
    process = ray.get(actor.process.remote(), timeout=60)

    assert ray.get(actor.reset.remote(order(tmp_path, trial_id="s-2-0")), timeout=60)
    reports = [TrialReport.from_tune_result(ray.get(actor.train.remote(), timeout=60)) for _ in range(2)]
    assert [(report.epoch, report.error) for report in reports] == [(1, None), (2, None)]
    assert ray.get(actor.process.remote(), timeout=60) == process
    assert ray.get(actor.output.remote(), timeout=60) == own

    assert log(tmp_path).endswith("the trial failed: the trial has trained for its budget.max_trial_s of 7 s\n")
    second = log(tmp_path, "s-2-0")
    assert second.count("while it trains\nfrom a library in C\n") == 2
    assert "of the worker" not in second + log(tmp_path)
    assert f"(process {process})" in second


def test_a_worker_that_is_killed_loses_no_more_than_the_last_second_of_its_log(
    tmp_path: Path, actors: Callable[[dict[str, Any]], Any], wait_until: Callable[..., None]
) -> None:
    actor = actors(order(tmp_path, train=LONG))
    process = psutil.Process(ray.get(actor.process.remote(), timeout=60))
    running = actor.train.remote()
    wait_until(lambda: "training from the start" in log(tmp_path), 60)
    process.send_signal(signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(running, timeout=60)
    assert "while it trains\nfrom a library in C\n" in log(tmp_path)
    assert not TrialLog(tmp_path.as_uri(), "s", "s-1-0", 1).extent().is_finished
