"""Drivers whose lease ran out: they are lost once their job has ended, and their studies wait for the next ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from service import logs
from service.controller.guarded_jobs import GuardedJobs
from service.controller.leadership import Leadership
from service.errors import ServiceUnavailableError
from service.giving_way import GivingWay
from service.store.reconciling import DriverClaim, PendingCancel, ReconcilingStore

logger = logging.getLogger(__name__)

LONGEST_WAIT_FOR_JOB_S = 600.0
"""After this a driver without a lease is taken for gone, though the cluster does not say that its job has ended."""

_JOB_ENDS_WITHIN_S = 15.0  # Ray kills a driver that has not left within 3 s of being asked to

_MAX_DRIVER_LOSSES = 5

_STOOD_STILL = 0.5  # of a lease: a driver that stood still as long has too little left of its own to be judged by


@dataclass(slots=True)
class _Overdue:
    """A driver without a lease. since: when that was seen. asked_at: when the cluster first took note of its end.

    is_told: whether the log says that the cluster does not.
    """

    since: float
    asked_at: float | None = None
    is_told: bool = False


class LostDrivers:
    """What the leading controller knows of drivers without a lease, and does about them.

    lease_s: of a driver. clock: in seconds. asleep: for how many of them the machine slept, like `asleep_since_boot_s`.
    """

    def __init__(
        self,
        store: ReconcilingStore,
        jobs: GuardedJobs,
        leadership: Leadership,
        giving_way: GivingWay,
        *,
        lease_s: float,
        clock: Callable[[], float],
        asleep: Callable[[], float],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._leadership = leadership
        self._giving_way = giving_way
        self._lease_s = lease_s
        self._clock = clock
        self._asleep = asleep
        self._asleep_s = asleep()  # when it last judged drivers
        self._overdue: dict[DriverClaim, _Overdue] = {}
        self._left_behind: dict[DriverClaim, float] = {}

    def stood_still(self, seconds: float) -> None:
        """Hears how long the machine has slept or the process was stopped: drivers beside it may have been, too."""
        if seconds > _STOOD_STILL * self._lease_s:
            logger.warning("the controller stood still for %.0f s; drivers have time to renew their leases", seconds)
            self._leadership.break_contact()

    def overdue(self) -> list[DriverClaim]:
        """Drivers whose lease ran out while they could have renewed it.

        While the store did not answer they could not, nor while the machine slept; back again, they get the time of a
        lease, or what they have still to report, finished trials among it, would be refused.
        """
        for claim in self._store.shorten_leases(self._lease_s):
            message = "study %s: the store's clock went back; driver %d has %.0f s to renew its lease"
            logger.warning(message, claim.study_id, claim.driver_attempt, self._lease_s, extra=asdict(claim))
        asleep_s = self._asleep()
        if asleep_s - self._asleep_s > _STOOD_STILL * self._lease_s:  # perhaps in the midst of this look
            self.stood_still(asleep_s - self._asleep_s)
        self._asleep_s = asleep_s
        since = self._leadership.in_contact_since
        just_back = since is None or self._clock() - since < self._lease_s
        return self._store.overdue_drivers(given_up=just_back)

    def replace(self, overdue: Sequence[DriverClaim], cancelling: Sequence[PendingCancel]) -> None:
        """Declares these drivers lost, each once its job has ended.

        Not those of studies that are being cancelled, which end with their jobs.
        """
        self._overdue = {claim: self._overdue.get(claim) or _Overdue(self._clock()) for claim in overdue}
        being_cancelled = {cancel.study_id for cancel in cancelling}
        for claim in overdue:
            if claim.study_id not in being_cancelled:
                with logs.about(**asdict(claim)):
                    self._replace(claim)

    def end_left_behind(self) -> None:
        """Goes on asking for the end of jobs whose drivers are lost, for a while: they may hold workers."""
        for claim, since in list(self._left_behind.items()):
            try:
                has_ended = self._jobs.stop(claim)
            except ServiceUnavailableError:
                has_ended = False
            if has_ended or self._clock() - since > LONGEST_WAIT_FOR_JOB_S:
                del self._left_behind[claim]

    def _replace(self, claim: DriverClaim) -> None:
        """Declares a driver lost once its job has ended: it may be merely silent, and hold its workers.

        Until then the study is not done with it, whatever its user asks for meanwhile. A job that does not end is not
        waited for long, since the store refuses what its driver says; where the cluster does not answer it is, since no
        other driver could be started.
        """
        now, overdue = self._clock(), self._overdue[claim]
        try:
            has_ended = self._jobs.stop(claim)
            overdue.asked_at = now if overdue.asked_at is None else overdue.asked_at
            give_up_at = overdue.asked_at + _JOB_ENDS_WITHIN_S
        except ServiceUnavailableError as error:
            has_ended, give_up_at = False, overdue.since + LONGEST_WAIT_FOR_JOB_S
            if not overdue.is_told:
                overdue.is_told = True
                logger.warning("study %s: its driver is silent, and %s", claim.study_id, error)
        if not has_ended and now < give_up_at:
            return
        # One that makes room was asked to end, also where it was killed before it could give its lease up.
        was_asked = self._giving_way.lacks(claim.study_id) is not None
        study = self._store.lose_driver(claim, max_losses=_MAX_DRIVER_LOSSES, was_asked=was_asked)
        if study is not None:
            logger.warning("study %s lost driver %d; it is %s", claim.study_id, claim.driver_attempt, study.state)
            if not has_ended:
                self._left_behind[claim] = now
