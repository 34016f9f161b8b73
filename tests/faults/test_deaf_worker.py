"""A worker that hears nothing any more, as in a call into a library that never returns, and its trial's time is up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.study import TrialState
from tests.embedded_service import Service, lives, wait_until
from tests.faults.conftest import submit

pytestmark = pytest.mark.soak


@pytest.fixture
def impatient_service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "home", {"SAMSTUDY_TRIAL_GRACE_S": "2"})
    yield service
    assert service.stop() == (0, [])


def test_the_trial_fails_its_worker_is_gone_and_the_others_go_on(impatient_service: Service) -> None:
    """The first of the trials never ends by itself, and the others do long before their time is up."""
    witness = submit(
        impatient_service,
        "deaf-worker",
        train={"dataset": "digits", "model": "mlp", "batch_size": 128, "lr": 0.05},
        search_space={"epochs": {"type": "categorical", "choices": [100_000, 20, 21, 22]}},
        budget={"max_trial_s": 30, "max_failed_trials": None},
    )

    def worker_of_the_first() -> int | None:
        trials = witness.trials()
        return witness.process_id(trials[0].id, 1) if trials and trials[0].epochs_done else None

    wait_until(lambda: worker_of_the_first() is not None, what="the first trial trains")
    deaf = psutil.Process(worker_of_the_first())
    deaf.suspend()
    wait_until(lambda: witness.study().state.is_final, what="the study ends")
    (failed,) = witness.trials(TrialState.FAILED)
    assert failed.id == witness.trials()[0].id
    assert len(witness.trials(TrialState.SUCCEEDED)) == 3
    assert "max_trial_s of 30 s" in str(failed.error)
    assert "its worker was killed" in str(failed.error)
    wait_until(lambda: not lives(deaf), what="the deaf worker is gone")
