"""`kill -9` of each part of the service while a study runs. Nobody lends a hand afterwards."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import httpx
import pytest

from service.study import AttemptState, Trial, TrialState
from tests.embedded_service import Service, frozen, kill, wait_until
from tests.faults.invariants import Witness

pytestmark = pytest.mark.soak  # `make test` kills all of them at once, in test_everything.py

PARTS = {
    "api": ("service.cli", "api"),
    "controller": ("service.cli", "controller"),
    "mlflow": ("mlflow", "server"),
    "ray-gcs": ("gcs_server",),
    "ray-raylet": ("raylet/raylet",),
    "ray-head": ("ray.scripts.scripts", "start"),
}


def assert_gone_on(witness: Witness, trial: Trial) -> None:
    """The trial's second attempt has trained what the first one had not saved, and nothing else."""
    results = witness.store.results(witness.study_id, trial.id)
    before = [result.epoch for result in results if result.attempt == 1]
    continued = witness.continued_after(trial.id, 2)
    assert continued >= (before[-1] if before else 0)
    assert witness.epochs_trained(trial.id, 2) == list(range(continued + 1, trial.epochs_done + 1))
    of_the_second = range(before[-1] + 1 if before else 1, trial.epochs_done + 1)
    assert [result.epoch for result in results if result.attempt == 2] == list(of_the_second)


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
    witness = begin("killed-driver", epochs=150)
    witness.wait_for_trials(finished=1, training=2, epochs=5)  # of two one at least is still training at the kill
    witness.remember()
    kill(service.drivers(witness.study_id))
    study = witness.check(trials=4)
    assert study.driver_attempt == 2
    lost = [event for event in witness.store.events(study.id) if event.kind == "driver.lost"]
    assert [event.data["driver_attempt"] for event in lost] == [1]
    gone_on = [trial for trial in witness.trials() if trial.attempt == 2]
    assert max(witness.continued_after(trial.id, 2) for trial in gone_on) >= 5
    for trial in gone_on:
        assert_gone_on(witness, trial)


def test_a_killed_worker_costs_an_attempt_and_the_trial_goes_on_from_its_checkpoint(
    service: Service, begin: Callable[..., Witness]
) -> None:
    witness = begin("killed-worker", trials=2, epochs=250)
    witness.wait_for_trials(finished=0, training=2, epochs=5)
    kill([service.worker()])
    study = witness.check(trials=2)
    assert study.driver_attempt == 1
    (retried,) = [trial for trial in witness.trials() if trial.attempt == 2]
    lost, last = witness.store.attempts(study.id, retried.id)
    assert (lost.state, last.state) == (AttemptState.LOST, AttemptState.SUCCEEDED)
    assert lost.error
    assert witness.continued_after(retried.id, 2) >= 5
    assert_gone_on(witness, retried)


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


@contextmanager
def held_down(service: Service, part: str) -> Iterator[None]:
    """`kill -9` for a part, and again for whatever starts in its place, while the block runs."""
    over = threading.Event()

    def hold() -> None:
        while not over.wait(0.3):
            kill(service.processes(*PARTS[part]))

    kill(service.processes(*PARTS[part]))
    holding = threading.Thread(target=hold)
    holding.start()
    try:
        yield
    finally:
        over.set()
        holding.join()


@pytest.mark.timeout(900)
def test_trials_do_not_wait_for_an_mlflow_whose_port_refuses_for_a_minute(
    service: Service, begin: Callable[..., Witness]
) -> None:
    slow = {"dataset": "digits", "model": "mlp", "epochs": 400, "batch_size": 8, "lr": 0.01}
    witness = begin("mlflow-gone-for-60", trials=4, train=slow)
    witness.wait_for_trials(finished=0, training=2)
    recorded = [sum(trial.epochs_done for trial in witness.trials())]
    with held_down(service, "mlflow"):
        for _ in range(12):
            until = time.monotonic() + 5
            while time.monotonic() < until:
                with pytest.raises(httpx.ConnectError):
                    httpx.get(f"{service.addresses.mlflow_url}/health", timeout=5)
                time.sleep(0.2)
            recorded.append(sum(trial.epochs_done for trial in witness.trials()))
        assert not witness.study().state.is_final
        assert not witness.study().is_exported
    assert all(later > earlier for earlier, later in pairwise(recorded)), recorded
    witness.remember()
    study = witness.check(trials=4, deadline_s=600)
    assert study.driver_attempt == 1
    assert {trial.attempt for trial in witness.trials()} == {1}


def test_a_study_survives_the_death_of_rays_head_and_mlflow_at_once(
    service: Service, begin: Callable[..., Witness]
) -> None:
    witness = begin("killed-ray-head-and-mlflow")
    witness.wait_for_trials(finished=1)
    witness.remember()
    kill([*service.processes(*PARTS["ray-head"]), *service.processes(*PARTS["mlflow"])])
    witness.check(trials=4)


@pytest.mark.parametrize("part", ["mlflow", "ray-gcs", "ray-raylet", "ray-head"])
def test_a_study_survives_the_death_of(part: str, service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin(f"killed-{part}")
    witness.wait_for_trials(finished=1)
    witness.remember()
    kill(service.processes(*PARTS[part]))
    witness.check(trials=4, deadline_s=240)


def test_a_study_survives_the_death_of_every_part_at_once(service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin("killed-every-part")
    witness.wait_for_trials(finished=1)
    witness.remember()
    kill(service.processes())
    witness.check(trials=4, deadline_s=240)


def test_a_ray_that_came_back_without_its_dashboard_is_started_once_more(
    service: Service, begin: Callable[..., Witness]
) -> None:
    """Somebody else has the port at that moment; Ray says so in its log, and goes on without it."""
    witness = begin("port-taken")
    witness.wait_for_trials(finished=1)
    witness.remember()
    port = int(service.addresses.ray_url.rpartition(":")[2])
    (head,) = service.processes(*PARTS["ray-head"])
    kill([head])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def has_it() -> bool:
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                return False
            other.listen()
            return True

        wait_until(has_it, what="the port is free for a moment")
        log = service.home / "logs" / "ray.log"
        wait_until(lambda: "already occupied" in log.read_text(), what="Ray has found its port taken")
    witness.check(trials=4, deadline_s=420)
