"""Drivers as Ray Jobs, submitted over HTTP: a restart of the API or the controller touches no running study.

Spoken directly, because Ray's own client waits without a limit for a cluster that accepts and does not answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import httpx

from service.addresses import on_this_machine
from service.errors import ServiceSilentError, ServiceUnavailableError
from service.placement import Node
from service.settings import HOW_TO_ESCAPE, without_user
from service.store.reconciling import DriverClaim

DRIVER_COMMAND = ("python", "-m", "service.tuning.driver")
_OPEN_STATUSES = ("PENDING", "RUNNING")
_TIMEOUT_S = 10.0
_MOST_NODES = 10_000


class DriverJobs:
    """The drivers of a Ray cluster. A driver's job is named after its study and its number, so it runs at most once.

    It needs no CPU of its own: drivers that hold one would deadlock a small cluster. Whatever goes wrong with the
    cluster is a ServiceUnavailableError, and a ServiceSilentError where it does not answer at all.

    token: of Ray's authentication; empty where that is off.
    """

    def __init__(
        self, jobs_url: str, *, token: str, command: Sequence[str] = DRIVER_COMMAND, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._url = without_user(jobs_url)
        self._command = command
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(
                base_url=jobs_url, headers=headers, timeout=timeout_s, trust_env=not on_this_machine(jobs_url)
            )
        except (httpx.InvalidURL, ValueError) as error:
            reason = str(error) if self._url == jobs_url else HOW_TO_ESCAPE  # the error may quote a part of it
            raise ServiceUnavailableError(f"{self._url!r} is no address of a Ray cluster: {reason}") from None

    def check(self) -> None:
        """Raises ServiceUnavailableError where the cluster does not answer."""
        self._ask("GET", "/api/version")

    def nodes(self) -> list[Node]:
        """What the cluster's living nodes have, busy or not."""
        answer = self._ask("GET", "/api/v0/nodes", params={"detail": "true", "limit": _MOST_NODES}) or {}
        try:
            listed = answer["data"]["result"]["result"]
            alive = [node["resources_total"] for node in listed if node["state"] == "ALIVE"]
        except (KeyError, TypeError) as error:
            raise ServiceUnavailableError(f"the Ray cluster at {self._url} does not say what it has") from error
        return [Node(cpu=float(node.get("CPU", 0.0)), gpu=float(node.get("GPU", 0.0))) for node in alive]

    def start(self, claim: DriverClaim) -> None:
        """Submits the driver; it may take a few seconds until it runs."""
        self._ask(
            "POST",
            "/api/jobs/",
            json={
                "entrypoint": shlex.join([*self._command, claim.study_id, str(claim.driver_attempt)]),
                "submission_id": _job_id(claim),
                "entrypoint_num_cpus": 0,
                "metadata": {"study_id": claim.study_id, "driver_attempt": str(claim.driver_attempt)},
            },
        )

    def stop(self, claim: DriverClaim) -> bool:
        """Lets the driver end and with it all of its workers; answers whether it has, or never was.

        The cluster gives a driver a moment to leave before it kills it, so that it may have to be asked again.
        """
        path = f"/api/jobs/{_job_id(claim)}"
        job = self._ask("GET", path, missing_ok=True)
        if job is None or job.get("status") not in _OPEN_STATUSES:
            return True
        self._ask("POST", f"{path}/stop", missing_ok=True)
        return False

    def _ask(self, method: str, path: str, *, missing_ok: bool = False, **request: Any) -> dict[str, Any] | None:
        try:
            answer = self._http.request(method, path, **request)
            if missing_ok and answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            return dict(answer.json())
        except httpx.HTTPStatusError as error:
            reason = f"{error.response.status_code} {error.response.text.strip()[-500:]}"
            raise ServiceUnavailableError(
                f"the Ray cluster at {self._url} refused {method} {path}: {reason}"
            ) from error
        except (httpx.HTTPError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ServiceSilentError(f"the Ray cluster at {self._url} does not answer: {reason}") from error


def _job_id(claim: DriverClaim) -> str:
    return f"{claim.study_id}-{claim.driver_attempt}"
