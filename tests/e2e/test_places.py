"""One place for a study at a time, and one that no node can hold on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.study import StudyState
from tests.e2e.test_the_whole_way import spec_for
from tests.embedded_service import Service, wait_until


@pytest.mark.soak
def test_a_study_that_no_node_can_hold_lets_others_run_and_waits_for_its_node(tmp_path: Path) -> None:
    settings = {"SAMSTUDY_MAX_RUNNING_STUDIES": "1", "SAMSTUDY_NODE_GRACE_S": "2"}
    service = Service(tmp_path / "home", settings)
    try:
        with service.client() as client:
            stuck = client.submit(spec_for("stuck", resources_per_trial={"cpu": 1, "gpu": 8}))
            wait_until(
                lambda: "needs 1 CPU and 8 GPUs" in str(client.study(stuck.id).pending_reason),
                what="its driver says what is missing",
            )
            other = client.submit(spec_for("can run", epochs=5, replicates={"seeds": [0]}))
            wait_until(lambda: client.study(other.id).state.is_final, what="the other study has ended")
            assert client.study(other.id).state is StudyState.SUCCEEDED

            def asks_again() -> bool:
                study = client.study(stuck.id)
                return study.driver_attempt == 2 and "needs 1 CPU and 8 GPUs" in str(study.waiting_reason)

            wait_until(asks_again, what="there is a place for it again, and its second driver lives")
            client.cancel(stuck.id)
            told = [event.data["state"] for event in client.events(stuck.id) if event.kind == "study.state"]
            assert told == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "STOPPING", "CANCELLED"]
    finally:
        service.stop()
