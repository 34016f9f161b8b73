"""Cancelled studies whose driver does not end them: the controller does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

from service.controller.guarded_jobs import GuardedJobs
from service.controller.lost_drivers import LONGEST_WAIT_FOR_JOB_S
from service.errors import ServiceUnavailableError
from service.store.reconciling import DriverClaim, PendingCancel, ReconcilingStore

logger = logging.getLogger(__name__)

_PAUSE_S = 2.0
"""Between two looks at drivers that do not end."""


class Cancels:
    """What the leading controller does about them.

    grace_s: how long a cancel is left to the study's driver. clock: in seconds.
    """

    def __init__(
        self, store: ReconcilingStore, jobs: GuardedJobs, *, grace_s: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._grace_s = grace_s
        self._clock = clock
        self._again_at = float("-inf")

    def carry_out(self, cancelling: Sequence[PendingCancel], overdue: Collection[DriverClaim]) -> None:
        """Ends the studies whose driver does not, each once its job has ended: nothing may outlive a cancel.

        Where the cluster cannot say so for long, a driver without a lease is taken for gone. overdue: those.
        """
        if self._clock() < self._again_at:
            return
        for cancel in cancelling:
            age_s = (self._store.now() - cancel.requested_at).total_seconds()
            if 0 <= age_s < self._grace_s:
                continue
            claim = DriverClaim(cancel.study_id, cancel.driver_attempt)
            has_ended = False
            try:
                has_ended = self._jobs.stop(claim)
            except ServiceUnavailableError as error:
                message = "study %s cannot be cancelled yet: %s"
                logger.warning(message, claim.study_id, error, extra=asdict(claim))
            if not has_ended:
                self._again_at = self._clock() + _PAUSE_S
                if claim not in overdue or age_s < LONGEST_WAIT_FOR_JOB_S:
                    continue
                message = "study %s is cancelled although its job may be there: its driver has been silent for long"
                logger.warning(message, claim.study_id, extra=asdict(claim))
            self._store.cancel_now(claim)
