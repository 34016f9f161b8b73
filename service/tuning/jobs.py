"""Drivers as Ray Jobs, submitted over HTTP: a restart of the API or the controller touches no running study."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ray.job_submission import JobStatus, JobSubmissionClient

from service.errors import ServiceUnavailableError
from service.store.reconciling import DriverClaim

DRIVER_COMMAND = ("python", "-m", "service.tuning.driver")


class DriverJobs:
    """The drivers of a Ray cluster. A driver's job is named after its study and its number, so it runs at most once.

    It needs no CPU of its own: drivers that hold one would deadlock a small cluster. Errors of the cluster are
    ServiceUnavailableError.
    """

    def __init__(self, jobs_url: str, *, command: Sequence[str] = DRIVER_COMMAND) -> None:
        self._url = jobs_url
        self._command = command
        self._client: JobSubmissionClient | None = None

    def check(self) -> None:
        """Raises ServiceUnavailableError where the cluster does not answer."""
        try:
            self._connected().get_version()
        except (RuntimeError, OSError) as error:
            self._client = None
            raise ServiceUnavailableError(f"the Ray cluster at {self._url} does not answer") from error

    def start(self, claim: DriverClaim) -> None:
        """Submits the driver; it may take a few seconds until it runs."""
        try:
            self._connected().submit_job(
                entrypoint=shlex.join([*self._command, claim.study_id, str(claim.driver_attempt)]),
                submission_id=_job_id(claim),
                entrypoint_num_cpus=0,
                metadata={"study_id": claim.study_id, "driver_attempt": str(claim.driver_attempt)},
            )
        except (RuntimeError, OSError) as error:
            self._client = None
            raise ServiceUnavailableError(f"the Ray cluster at {self._url} does not take jobs: {error}") from error

    def stop(self, claim: DriverClaim) -> None:
        """Ends the driver and with it all of its workers; one that has ended already is none."""
        try:
            client = self._connected()
            if client.get_job_status(_job_id(claim)) in (JobStatus.PENDING, JobStatus.RUNNING):
                client.stop_job(_job_id(claim))
        except (RuntimeError, OSError) as error:
            self._client = None
            if "404" in str(error) or "does not exist" in str(error):
                return
            raise ServiceUnavailableError(f"the Ray cluster at {self._url} does not answer: {error}") from error

    def _connected(self) -> JobSubmissionClient:
        if self._client is None:
            self._client = JobSubmissionClient(self._url)
        return self._client


def _job_id(claim: DriverClaim) -> str:
    return f"{claim.study_id}-{claim.driver_attempt}"
