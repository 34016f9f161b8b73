"""A worker that hears nothing any more, as in a call into a library that never returns, and its trial's time is up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.study import TrialState
from tests.embedded_service import Service, wait_until
from tests.faults.conftest import submit

pytestmark = pytest.mark.soak


@pytest.fixture
def impatient_service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "home", {"SAMSTUDY_TRIAL_GRACE_S": "2"})
    yield service
    assert service.stop() == (0, [])


def test_the_trial_fails_its_worker_is_gone_and_the_others_go_on(impatient_service: Service) -> None:
    service = impatient_service
    witness = submit(
        service, "deaf-worker", trials=4, epochs=150, budget={"max_trial_s": 30, "max_failed_trials": None}
    )
    witness.wait_for_trials(finished=0, training=2, epochs=1)
    deaf = service.worker()
    deaf.suspend()
    wait_until(lambda: witness.study().state.is_final, what="the study ends")
    (failed,) = witness.trials(TrialState.FAILED)
    assert len(witness.trials(TrialState.SUCCEEDED)) == 3
    assert "max_trial_s of 30 s" in str(failed.error)
    assert "its worker was killed" in str(failed.error)
    wait_until(lambda: not deaf.is_running() or deaf.status() == "zombie", what="the deaf worker is gone")
