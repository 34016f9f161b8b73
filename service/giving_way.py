"""Which running studies make room for others: those of which no node of the cluster holds a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.placement import Node, has_place, what_lacks
from service.store.reconciling import DrivenStudy, DriverClaim

_LONGEST_GAP_S = 60.0
"""Between two looks, for which a study is taken to have been stuck in between too."""


class GivingWay:
    """What the leading controller remembers of them.

    A study that no node holds has kept those waiting that could run for `grace_s` before it is to make room: a cluster
    that grows does so for those that ask for more than it has, and a node that is started anew comes back. It waits
    behind all others then, until a node holds it or there is a place for it.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._lacking: dict[str, str] = {}
        self._stuck_since: dict[DriverClaim, float] = {}
        self._looked_at = float("-inf")

    def lacks(self, study_id: str) -> str | None:
        """What the cluster lacks for a study that makes room; None for one that does not."""
        return self._lacking.get(study_id)

    @property
    def makes_any_room(self) -> bool:
        """Whether any study does."""
        return bool(self._lacking)

    def started(self, study_id: str) -> None:
        """Hears that there was a place for the study."""
        self._lacking.pop(study_id, None)

    def all_train(self) -> None:
        """Hears that none of the running studies is without a trial that trains."""
        self._stuck_since = {}

    def leaving(
        self,
        driven: Sequence[DrivenStudy],
        needs: Mapping[str, tuple[float, float]],
        nodes: Sequence[Node],
        *,
        now: float,
    ) -> list[DriverClaim]:
        """The drivers that are to end now, at most one for each study that waits and could run.

        driven: the studies that run. needs: the CPUs and GPUs of a trial, of each study that waits. now: in seconds.
        """
        if now - self._looked_at > _LONGEST_GAP_S:  # nobody knows what was meanwhile
            self._stuck_since = {}
        self._looked_at = now
        waiting = {study_id: what_lacks(*of, nodes) for study_id, of in needs.items() if not has_place(*of, nodes)}
        could_run = len(needs) - len(waiting)
        stuck = {
            study.claim: what_lacks(study.demand.cpu, study.demand.gpu, nodes)
            for study in driven
            if not study.demand.running and not has_place(study.demand.cpu, study.demand.gpu, nodes)
        }
        still = waiting.keys() | {claim.study_id for claim in stuck}
        self._lacking = {study_id: lacks for study_id, lacks in self._lacking.items() if study_id in still}
        self._stuck_since = {claim: self._stuck_since.get(claim, now) for claim in stuck} if could_run else {}
        overdue = [claim for claim, since in self._stuck_since.items() if now - since >= self._grace_s]
        if overdue:
            self._lacking |= waiting  # their places are not for others of the kind
            self._lacking |= {claim.study_id: stuck[claim] for claim in overdue[:could_run]}
        return overdue[:could_run]
