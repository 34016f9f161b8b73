"""`kill -9` of each process of the service in mid-study. Nobody lends a hand afterwards."""

from __future__ import annotations

import signal
from contextlib import suppress

import psutil
import pytest

from service.client import Client
from service.errors import ServiceUnavailableError
from service.study import StudyState, TrialState
from tests.e2e.conftest import Service, wait_until
from tests.e2e.test_the_whole_way import Tracked, spec_for

EPOCHS = 100
VICTIMS = {
    "controller": ("service.cli", "controller"),
    "api": ("service.cli", "api"),
    "mlflow": ("mlflow", "server"),
    "ray-gcs": ("gcs_server",),
    "ray-raylet": ("raylet/raylet",),
    "everything": (),
}


@pytest.mark.parametrize(
    "victim", [pytest.param(name, marks=[pytest.mark.soak] if VICTIMS[name] else []) for name in VICTIMS]
)
def test_a_study_survives_the_death_of(victim: str, service: Service) -> None:
    name = f"survives-{victim}"
    with Client(service.addresses.api_url, patience_s=60) as client:
        study = client.submit(spec_for(name, epochs=EPOCHS))
        wait_until(
            lambda: len(client.trials(study.id, states=[TrialState.SUCCEEDED])) >= 2, what="some trials have ended"
        )
        finished = client.trials(study.id, states=[TrialState.SUCCEEDED])
        victims = service.processes(*VICTIMS[victim])
        assert victims
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

        wait_until(lambda: _is_over(client, study.id), what="the study has ended and MLflow shows it")
        assert client.study(study.id).state is StudyState.SUCCEEDED
        trials = {trial.id: trial for trial in client.trials(study.id)}
        assert len(trials) == 8
        for trial in trials.values():
            assert [result.epoch for result in client.results(study.id, trial.id)] == list(range(1, EPOCHS + 1))
        for before in finished:
            after = trials[before.id]
            assert (after.attempt, after.finished_at) == (1, before.finished_at)
    tracked = Tracked(service, name)
    children = tracked.children()
    assert set(children) == set(trials)
    assert {run.info.status for run in tracked.runs()} == {"FINISHED"}
    for run in children.values():
        steps = [point.step for point in tracked.mlflow.get_metric_history(run.info.run_id, "val_loss")]
        assert steps == list(range(1, EPOCHS + 1))


def _is_over(client: Client, study_id: str) -> bool:
    try:
        study = client.study(study_id)
    except ServiceUnavailableError:
        return False
    return study.state.is_final and study.is_exported
