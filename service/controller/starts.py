"""Starts of drivers: the study is claimed, the cluster takes the driver's job, and then it is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from service import logs
from service.controller.guarded_jobs import GuardedJobs
from service.errors import ServiceUnavailableError
from service.store.reconciling import QueuedStudy, ReconcilingStore

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A start that the cluster refused, and when the next one is due, `pause_s` after it."""

    again_at: float
    pause_s: float


class Starts:
    """What the leading controller knows of them, and does.

    lease_s: what a driver has for its first heartbeat. clock: in seconds.
    """

    def __init__(
        self, store: ReconcilingStore, jobs: GuardedJobs, *, lease_s: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._lease_s = lease_s
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}
        self._has_unconfirmed = False
        self._looked_in_term = 0

    def confirm_living(self, *, term: int) -> None:
        """Tells of drivers that live although the controller which started them could not say so any more.

        term: that of this look; before each, another controller may have left some.
        """
        if not self._has_unconfirmed and term == self._looked_in_term:
            return
        unconfirmed = self._store.unconfirmed_starts()
        for start in unconfirmed:
            if start.lives:
                self._store.confirm_start(start.claim)
        self._has_unconfirmed, self._looked_in_term = bool(unconfirmed), term

    def due(self, queued: Sequence[QueuedStudy]) -> list[QueuedStudy]:
        """Those whose last start was not refused so lately that another one would only be refused too.

        queued: all that there are; of a study that has left the queue the refusal is forgotten.
        """
        ids = {study.study_id for study in queued}
        self._refusals = {study_id: refusal for study_id, refusal in self._refusals.items() if study_id in ids}
        return [study for study in queued if not self._rests(study.study_id)]

    def start(self, study_id: str) -> bool:
        """Starts a driver for a queued study; whether it has one then."""
        claim = self._store.claim(study_id, self._lease_s)
        if claim is None:
            return False
        self._has_unconfirmed = True
        try:
            self._jobs.start(claim)
        except ServiceUnavailableError as error:
            if not self._store.give_back(claim, logs.redacted(str(error))):
                message = "study %s: driver %d is there, though its start was not answered: %s"
                logger.warning(message, study_id, claim.driver_attempt, error, extra=asdict(claim))
                self._refusals.pop(study_id, None)
                return True
            pause_s = self._refused(study_id)
            message = "study %s: driver %d cannot be started: %s; again in %.0f s"
            logger.warning(message, study_id, claim.driver_attempt, error, pause_s, extra=asdict(claim))
            return False
        self._refusals.pop(study_id, None)
        self._store.confirm_start(claim)
        logger.info("study %s: driver %d submitted", study_id, claim.driver_attempt, extra=asdict(claim))
        return True

    def _rests(self, study_id: str) -> bool:
        refusal = self._refusals.get(study_id)
        return refusal is not None and self._clock() < refusal.again_at

    def _refused(self, study_id: str) -> float:
        """Remembers it; in how many seconds the next start is due, twice as many as the last time."""
        before = self._refusals.get(study_id)
        pause_s = min(2 * before.pause_s, _LONGEST_PAUSE_S) if before else _FIRST_PAUSE_S
        self._refusals[study_id] = _Refusal(self._clock() + pause_s, pause_s)
        return pause_s
