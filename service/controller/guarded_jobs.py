"""The cluster, as one look of the controller asks it: with little patience."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import ServiceSilentError
from service.placement import Node
from service.store.reconciling import DriverClaim
from service.tuning.jobs import DriverJobs


class GuardedJobs:
    """`DriverJobs` behind a circuit breaker: after a call that waits in vain, the look asks the cluster nothing more.

    Each call takes its time, and the store's own matters must not wait for them all. A call raises what it does in
    `DriverJobs`; after one in vain every call raises its ServiceSilentError, at once.

    silence: that error; None as long as the cluster has answered each call of this look.
    """

    def __init__(self, jobs: DriverJobs) -> None:
        self._jobs = jobs
        self.silence: ServiceSilentError | None = None

    def reset(self) -> None:
        """Another look begins, and may ask the cluster again."""
        self.silence = None

    def check(self) -> None:
        """Raises ServiceUnavailableError where the cluster does not answer."""
        with self._asking():
            self._jobs.check()

    def nodes(self) -> list[Node]:
        """What the cluster's living nodes have, busy or not."""
        with self._asking():
            return self._jobs.nodes()

    def start(self, claim: DriverClaim) -> None:
        """Submits the driver."""
        with self._asking():
            self._jobs.start(claim)

    def stop(self, claim: DriverClaim) -> bool:
        """Lets the driver end; whether it has, or never was."""
        with self._asking():
            return self._jobs.stop(claim)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        if self.silence is not None:
            raise self.silence
        try:
            yield
        except ServiceSilentError as error:
            self.silence = error
            raise
