"""Shares of the cluster, as its running studies are told them; `service.shares` says what is fair."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.controller.guarded_jobs import GuardedJobs
from service.errors import ServiceUnavailableError
from service.shares import Usage, fair_shares
from service.store.reconciling import ReconcilingStore

logger = logging.getLogger(__name__)


class Sharing:
    """What the leading controller remembers of them. interval_s: between two looks at them. clock: in seconds."""

    def __init__(
        self, store: ReconcilingStore, jobs: GuardedJobs, *, interval_s: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._interval_s = interval_s
        self._clock = clock
        self._usage = Usage()
        self._again_at = float("-inf")

    def tell(self) -> None:
        """Tells the running studies their shares, now and then: the cluster or what they want may have changed."""
        if self._clock() < self._again_at:
            return
        self._again_at = self._clock() + self._interval_s
        studies = self._store.driven()
        if len(studies) < 2 and all(study.slots is None for study in studies):
            return
        try:
            nodes = self._jobs.nodes()
        except ServiceUnavailableError as error:
            logger.warning("shares stay as they are: %s", error)
            return
        demands = [study.demand for study in studies]
        self._usage.count(demands, nodes, now=self._clock())
        shares = fair_shares(demands, nodes, self._usage)
        before = {study.demand.study_id: study.slots for study in studies}
        changed = {study_id: slots for study_id, slots in shares.items() if slots != before[study_id]}
        if changed:
            self._store.set_slots(changed)
