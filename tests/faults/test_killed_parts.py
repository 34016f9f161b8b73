"""`kill -9` of each part of the service while a study runs. Nobody lends a hand afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.study import AttemptState, TrialState
from tests.embedded_service import Service, frozen, kill, wait_until
from tests.faults.invariants import Witness

PARTS = {
    "api": ("service.cli", "api"),
    "controller": ("service.cli", "controller"),
    "mlflow": ("mlflow", "server"),
    "ray-gcs": ("gcs_server",),
    "ray-raylet": ("raylet/raylet",),
    "ray-head": ("ray.scripts.scripts", "start"),
}


@pytest.mark.parametrize("part", ["api", "controller"])
def test_a_study_does_not_notice_the_death_of(part: str, service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin(f"without-{part}")
    witness.wait_for_trials(finished=1)
    witness.remember()
    kill(service.processes(*PARTS[part]))
    study = witness.check(trials=4)
    assert study.driver_attempt == 1
    assert {trial.attempt for trial in witness.trials()} == {1}


def test_a_killed_driver_is_replaced_and_its_trials_go_on(service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin("killed-driver")
    witness.wait_for_trials(finished=1, epochs=5)
    witness.remember()
    kill(service.drivers(witness.study_id))
    study = witness.check(trials=4)
    assert study.driver_attempt == 2
    lost = [event for event in witness.store.events(study.id) if event.kind == "driver.lost"]
    assert [event.data["driver_attempt"] for event in lost] == [1]


def test_a_killed_worker_costs_an_attempt_and_the_trial_goes_on_from_its_checkpoint(
    service: Service, begin: Callable[..., Witness]
) -> None:
    witness = begin("killed-worker", trials=2, epochs=500)
    witness.wait_for_trials(finished=0, training=2, epochs=5)
    kill(service.workers()[:1])
    study = witness.check(trials=2)
    assert study.driver_attempt == 1
    (retried,) = [trial for trial in witness.trials() if trial.attempt == 2]
    lost, last = witness.store.attempts(study.id, retried.id)
    assert (lost.state, last.state) == (AttemptState.LOST, AttemptState.SUCCEEDED)
    assert lost.error
    results = witness.store.results(study.id, retried.id)
    assert (results[0].attempt, results[-1].attempt) == (1, 2)


@pytest.mark.soak
@pytest.mark.parametrize("away_s", [10, 60])
def test_trials_do_not_wait_for_an_mlflow_that_does_not_answer(
    away_s: float, service: Service, begin: Callable[..., Witness]
) -> None:
    """SIGSTOP: it accepts connections and says nothing, which is worse than a server that is gone."""
    witness = begin(f"mlflow-silent-for-{away_s}", trials=4, epochs=60 if away_s == 10 else 300)
    witness.wait_for_trials(finished=0)
    with frozen(*service.processes("mlflow")):
        ended = [trial for trial in witness.trials() if trial.state.is_final]
        wait_until(lambda: witness.trials(TrialState.SUCCEEDED) != ended, what="a trial ends without MLflow")
        witness.remember()
        with pytest.raises(TimeoutError):
            wait_until(lambda: witness.study().is_exported, deadline_s=away_s, what="MLflow shows it")
    study = witness.check(trials=4)
    assert study.driver_attempt == 1


@pytest.mark.soak
@pytest.mark.parametrize("part", ["mlflow", "ray-gcs", "ray-raylet", "ray-head"])
def test_a_study_survives_the_death_of(part: str, service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin(f"killed-{part}")
    witness.wait_for_trials(finished=1)
    witness.remember()
    kill(service.processes(*PARTS[part]))
    witness.check(trials=4, deadline_s=240)


@pytest.mark.soak
def test_a_study_survives_the_death_of_every_part_at_once(service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin("killed-every-part")
    witness.wait_for_trials(finished=1)
    witness.remember()
    kill(service.processes())
    witness.check(trials=4, deadline_s=240)
