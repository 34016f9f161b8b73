"""Files that somebody beside the exporter puts into a study's run, once the study has ended."""

from __future__ import annotations

from collections.abc import Mapping

from service.errors import SamstudyError
from service.tracking.server import RefusedError, RunGoneError, TrackingServer


class NotAttachedError(SamstudyError):
    """MLflow does not take the files, or does not have the run any more."""

    status = 502
    code = "not_attached"
    title = "MLflow does not take the files"


def attach(tracking_url: str, run_id: str, files: Mapping[str, bytes]) -> None:
    """Writes files, by name, into the artifacts of a run; those of the same name are replaced.

    Raises TrackingUnavailableError where MLflow does not answer, else NotAttachedError.
    """
    try:
        TrackingServer(tracking_url).write_files(run_id, files)
    except (RunGoneError, RefusedError) as error:
        raise NotAttachedError(f"MLflow's run {run_id}: {error}") from error
