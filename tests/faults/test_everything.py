"""Everything of the service dies at once in mid-study, `samstudy up` included, and is started again on its home."""

from __future__ import annotations

from collections.abc import Callable

from tests.embedded_service import Service
from tests.faults.invariants import Witness


def test_a_study_survives_the_death_of_everything(service: Service, begin: Callable[..., Witness]) -> None:
    witness = begin("killed-everything")
    witness.wait_for_trials(finished=1, epochs=5)
    witness.remember()
    scratch = (service.home / "ray").readlink()
    service.kill()
    assert not service.processes()
    assert scratch.exists()
    service.start()
    assert not scratch.exists(), "what the killed service had in the temporary folder is gone"
    assert (service.home / "ray").readlink().exists()
    study = witness.check(trials=4)
    assert study.driver_attempt == 2
    with service.client() as client:
        assert client.study(study.id).state == study.state
