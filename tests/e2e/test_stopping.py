"""SIGTERM to a driver, and to the whole service, in mid-study."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from service.study import StudyState, TrialState
from tests.e2e.test_the_whole_way import spec_for
from tests.embedded_service import Service, wait_until

LEASE_S = 90
EPOCHS = 100


@pytest.mark.soak
def test_what_is_asked_to_end_hands_over_at_once(tmp_path: Path) -> None:
    settings = {"SAMSTUDY_LEASE_S": str(LEASE_S), "SAMSTUDY_LOG_FORMAT": "json"}
    service = Service(tmp_path / "home", settings)
    try:
        with service.client() as client:
            study = client.submit(spec_for("asked", epochs=EPOCHS, replicates={"seeds": [0]}))

            def succeeded() -> list[str]:
                return [trial.id for trial in client.trials(study.id, states=[TrialState.SUCCEEDED])]

            wait_until(lambda: len(succeeded()) >= 1, what="a trial has ended")
            finished = succeeded()
            (driver,) = service.drivers(study.id)
            driver.send_signal(signal.SIGTERM)  # what Ray sends when its job is stopped
            wait_until(
                lambda: client.study(study.id).driver_attempt == 2,
                deadline_s=LEASE_S / 2,
                what="the next driver has the study, long before the lease would have run out",
            )
            wait_until(lambda: client.study(study.id).state.is_final, what="the study has ended")
            assert client.study(study.id).state is StudyState.SUCCEEDED
            attempts = {trial.id: trial.attempt for trial in client.trials(study.id)}
            assert {attempts[trial_id] for trial_id in finished} == {1}
            assert max(attempts.values()) <= 2

            running = client.submit(spec_for("on its way", epochs=EPOCHS))
            wait_until(lambda: client.study(running.id).state is StudyState.RUNNING, what="another study runs")
    finally:
        status, survivors = service.stop(signal.SIGTERM)
    assert (status, survivors) == (0, [])
    for name in ("api", "controller"):
        lines = (service.home / "logs" / f"{name}.log").read_text().splitlines()
        assert lines
        assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in lines), name
    submitted = [json.loads(line) for line in lines if "submitted" in line]
    assert {(line["study_id"], line["driver_attempt"]) for line in submitted} >= {(study.id, 1), (study.id, 2)}
