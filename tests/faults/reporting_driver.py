"""A process that reports as a driver does: `python -m tests.faults.reporting_driver STORE STUDY ATTEMPT TRIAL N S`.

It waits for a line on stdin, so that several begin together, and hands N epochs over to the driver's own recorder, one
every S seconds. It prints how many seconds that took, until the store had all of them.
"""

from __future__ import annotations

import sys
import time

from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reports import AttemptStarted, EpochReported, TrialEnded
from service.study import Reason, StudyState, TrialState
from service.tuning.recorder import Recorder

_METRICS = {f"metric_{number}": 0.1 for number in range(12)}


def main(store_url: str, study_id: str, driver_attempt: int, trial_id: str, epochs: int, every_s: float) -> None:
    database = Database(store_url)
    store = DrivingStore(database, study_id, driver_attempt)
    recorder = Recorder(store, lease_s=30, heartbeat_s=0.5)
    recorder.start()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    recorder.record(AttemptStarted(trial_id, 1, "node-1"))
    for epoch in range(1, epochs + 1):
        recorder.record(EpochReported(trial_id, 1, epoch, {**_METRICS, "epoch": float(epoch)}))
        time.sleep(max(0.0, began + epoch * every_s - time.monotonic()))
    recorder.record(TrialEnded(trial_id, 1, TrialState.SUCCEEDED, 0.5))
    recorder.close()
    store.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=store.snapshot().known)
    print(time.monotonic() - began, flush=True)
    database.dispose()


if __name__ == "__main__":
    store_url, study_id, driver_attempt, trial_id, epochs, every_s = sys.argv[1:]
    main(store_url, study_id, int(driver_attempt), trial_id, int(epochs), float(every_s))
