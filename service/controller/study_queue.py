"""The studies that wait for a driver: which is next, for which of them others make room, and why the rest wait."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict

from service import logs
from service.controller.guarded_jobs import GuardedJobs
from service.controller.starts import Starts
from service.errors import ServiceUnavailableError
from service.giving_way import GivingWay
from service.store.reconciling import DriverClaim, QueuedStudy, ReconcilingStore

logger = logging.getLogger(__name__)


class StudyQueue:
    """What the leading controller knows of them, and does for them.

    max_running: as many studies have a driver at most. room_interval_s: between two looks at who is to make room.
    clock: in seconds.
    """

    def __init__(
        self,
        store: ReconcilingStore,
        jobs: GuardedJobs,
        starts: Starts,
        giving_way: GivingWay,
        *,
        max_running: int,
        room_interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._starts = starts
        self._giving_way = giving_way
        self._max_running = max_running
        self._room_interval_s = room_interval_s
        self._clock = clock
        self._turns: Counter[str] = Counter()  # the higher, the later the owner's last study was started
        self._asked_to_leave: frozenset[DriverClaim] = frozenset()
        self._room_again_at = float("-inf")

    def start_next(self) -> None:
        """Starts as many as may run and whose turn it is; says of the others why they wait."""
        waiting = self._starts.due(self._store.queued())
        if not waiting:
            return
        try:
            self._jobs.check()
        except ServiceUnavailableError as error:
            self._wait_for_cluster(waiting, error)
            return
        running = Counter(study.demand.owner for study in self._store.driven())
        while waiting and running.total() < self._max_running and self._jobs.silence is None:
            study = min(waiting, key=lambda study: self._rank(study, running))  # of equal ones the oldest
            waiting.remove(study)
            if self._starts.start(study.study_id):
                self._giving_way.started(study.study_id)
                running[study.owner] += 1
                self._turns[study.owner] = max(self._turns.values(), default=0) + 1
        if waiting and self._jobs.silence is not None:
            self._wait_for_cluster(waiting, self._jobs.silence)
        elif waiting:
            self._make_room(waiting)
            self._wait_for_place(waiting, running.total())

    def _rank(self, study: QueuedStudy, running: Counter[str]) -> tuple[bool, int, int]:
        """Of the studies that wait, the one with the least is started next. running: studies, by their owners."""
        makes_room = self._giving_way.lacks(study.study_id) is not None
        return makes_room, running[study.owner], self._turns[study.owner]

    def _make_room(self, waiting: Sequence[QueuedStudy]) -> None:
        """Asks drivers of studies that no node holds to end, for studies that wait and could run.

        A driver that is asked gives its lease up, and its study is queued again; until then it is asked at every look.
        """
        if self._clock() < self._room_again_at:
            return
        self._room_again_at = self._clock() + self._room_interval_s
        driven = self._store.driven()
        if all(study.demand.running for study in driven) and not self._giving_way.makes_any_room:
            self._giving_way.all_train()
            return
        try:
            nodes = self._jobs.nodes()
            needs = self._store.needs([study.study_id for study in waiting])
            leaving = self._giving_way.leaving(driven, needs, nodes, now=self._clock())
            for claim in leaving:
                if claim not in self._asked_to_leave:
                    logger.info("study %s makes room for one that could run", claim.study_id, extra=asdict(claim))
                self._jobs.stop(claim)
            self._asked_to_leave = frozenset(leaving)
        except ServiceUnavailableError as error:
            logger.warning("studies that no node holds keep their places: %s", error)

    def _wait_for_cluster(self, waiting: Sequence[QueuedStudy], error: ServiceUnavailableError) -> None:
        """Says that this is why they have no driver."""
        self._store.set_waiting_reason([study.study_id for study in waiting], logs.redacted(str(error)))

    def _wait_for_place(self, waiting: Sequence[QueuedStudy], running: int) -> None:
        """Says of each why it has no driver: there are as many as may be, or it makes room for others."""
        full = f"{running} studies run, as many as may at a time; it is among the {len(waiting)} that wait"
        reasons: defaultdict[str, list[str]] = defaultdict(list)
        for study in waiting:
            lacks = self._giving_way.lacks(study.study_id)
            makes_room = f"{lacks}; meanwhile it lets studies run that the cluster can hold"
            reasons[makes_room if lacks else full].append(study.study_id)
        for reason, study_ids in reasons.items():
            self._store.set_waiting_reason(study_ids, reason)
