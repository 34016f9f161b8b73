"""What a study that is deleted, or whose start a restored store has lost, has left in MLflow."""

from __future__ import annotations

import time

from service.tracking.server import KnownRun, RunGoneError, TrackingServer

_EXPERIMENTS_AT_ONCE = 200
_UNFINISHED = ("RUNNING", "SCHEDULED")


class LeftRuns:
    """The runs of studies that the store no longer has, or does not know of.

    Every method answers whether there was anything to do, and raises TrackingUnavailableError and RefusedError.
    experiment_id: where the runs are; None: they are looked for in every experiment.
    """

    def __init__(self, tracking_url: str) -> None:
        self._server = TrackingServer(tracking_url)

    def delete(self, study_id: str, experiment_id: str | None) -> bool:
        """Deletes all of the study's runs, as MLflow does: `mlflow gc` gives their space back."""
        found = self._runs(study_id, experiment_id)
        for run in found:
            self._server.delete_run(run.run_id)
        return bool(found)

    def end(self, study_id: str, experiment_id: str | None) -> bool:
        """Ends the study's runs that nobody will end any more, as KILLED; deletes those that nothing was written to."""
        unfinished = [run for run in self._runs(study_id, experiment_id) if run.status in _UNFINISHED]
        for run in unfinished:
            if run.params:
                try:
                    self._server.set_status(run.run_id, "KILLED", end_ms=round(time.time() * 1000))
                except RunGoneError:
                    continue
            else:
                self._server.delete_run(run.run_id)
        return bool(unfinished)

    def _runs(self, study_id: str, experiment_id: str | None) -> list[KnownRun]:
        experiments = self._server.experiments() if experiment_id is None else [experiment_id]
        found: list[KnownRun] = []
        for start in range(0, len(experiments), _EXPERIMENTS_AT_ONCE):
            try:
                found += self._server.runs_of(experiments[start : start + _EXPERIMENTS_AT_ONCE], study_id)
            except RunGoneError:  # the experiment is gone, and the runs with it
                continue
        return found
