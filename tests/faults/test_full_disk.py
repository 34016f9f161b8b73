"""The disk of the checkpoints is full in mid-study: what is trained counts, and checkpoints come again with room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedded_service import Service, kill, wait_until
from tests.faults.conftest import submit
from tests.small_disk import SmallDisk, small_disk

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small file system"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "storage", size_bytes=16 * 2**20) as disk:
        yield disk


@pytest.fixture
def service_on_the_disk(tmp_path: Path, disk: SmallDisk) -> Iterator[Service]:
    service = Service(tmp_path / "home", {"SAMSTUDY_STORAGE": disk.path.as_uri()})
    yield service
    assert service.stop() == (0, [])


def test_a_full_disk_costs_checkpoints_and_no_result(service_on_the_disk: Service, disk: SmallDisk) -> None:
    service = service_on_the_disk
    witness = submit(service, "full-disk", trials=2, epochs=300)
    witness.wait_for_trials(finished=0, training=2, epochs=3)
    reached = {trial.id: trial.epochs_done for trial in witness.trials()}
    disk.fill()

    def warned() -> bool:
        disk.fill()  # as often as a checkpoint that was being written meanwhile gives its room back
        attempts = [attempt for trial_id in reached for attempt in witness.store.attempts(witness.study_id, trial_id)]
        return len([attempt for attempt in attempts if "No space left" in (attempt.warning or "")]) >= 2

    wait_until(warned, what="both attempts say that their checkpoints could not be written")
    kill([service.worker()])  # its trial goes on from the checkpoint that was there before
    wait_until(lambda: any(trial.attempt == 2 for trial in witness.trials()), what="a second attempt")
    disk.free()
    witness.remember()
    study = witness.check(trials=2)
    assert study.driver_attempt == 1
    (retried,) = [trial for trial in witness.trials() if trial.attempt == 2]
    assert witness.continued_after(retried.id, 2) >= reached[retried.id] >= 3
