"""Fair shares of a cluster: how many trials of each study may train at once. A pure function, and what it goes by."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

MOST_SLOTS = 10_000
"""More workers than a Ray cluster runs: a study with tiny trials needs no larger share."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one node of the cluster has, busy or not."""

    cpu: float
    gpu: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What a running study asks for.

    cpu, gpu: of one trial. wanted: trials that it could train at once. running: trials of it that train now.
    """

    study_id: str
    owner: str
    cpu: float
    gpu: float
    wanted: float
    running: int


class Usage:
    """What owners and their studies have had of a cluster: dominant shares that trained, times seconds.

    Whoever comes later begins with the least that the others have had, and is owed nothing for the time before.
    """

    def __init__(self) -> None:
        self._owners: dict[str, float] = {}
        self._studies: dict[str, float] = {}
        self._counted_at: float | None = None

    def count(self, demands: Sequence[Demand], nodes: Sequence[Node], *, now: float) -> None:
        """Adds what has trained since it was last counted, and forgets who is gone. now: of a clock, in seconds."""
        seconds = 0.0 if self._counted_at is None else now - self._counted_at
        self._counted_at = now
        self._owners = _from_the_least(self._owners, [demand.owner for demand in demands])
        self._studies = _from_the_least(self._studies, [demand.study_id for demand in demands])
        cpus, gpus = _totals(nodes)
        for demand in demands:
            had = demand.running * _dominant(demand, cpus, gpus) * seconds if cpus > 0 else 0.0
            self._owners[demand.owner] += had
            self._studies[demand.study_id] += had

    def of_owner(self, owner: str) -> float:
        """What all of the owner's studies have had."""
        return self._owners.get(owner, 0.0)

    def of_study(self, study_id: str) -> float:
        """What the study has had."""
        return self._studies.get(study_id, 0.0)


def fair_shares(demands: Sequence[Demand], nodes: Sequence[Node], usage: Usage | None = None) -> dict[str, int | None]:
    """Slots by study: Dominant Resource Fairness (Ghodsi et al., NSDI 2011), between owners and then between studies.

    One slot after the other goes to the study with the smallest dominant share of the owner with the smallest one, of
    equal ones to the first in the order given; at most MOST_SLOTS to each. The first slots go in the order of what they
    have had until now: those who do not fit side by side, as beside trials that take a whole node, have the same over
    time. A study alone, or a cluster that is not known, has no limit: None.
    """
    usage = usage or Usage()
    cpus, gpus = _totals(nodes)
    if len(demands) < 2 or cpus <= 0:
        return {demand.study_id: None for demand in demands}
    slots = {demand.study_id: 0 for demand in demands}
    most = {
        demand.study_id: min(demand.wanted, MOST_SLOTS, sum(_fitting(demand, node) for node in nodes))
        for demand in demands
    }
    of_owner: defaultdict[str, list[tuple[float, float, int, Demand]]] = defaultdict(list)  # a heap by their shares
    for index, demand in enumerate(demands):
        heappush(of_owner[demand.owner], (0.0, usage.of_study(demand.study_id), index, demand))
    owners = [(0.0, usage.of_owner(owner), studies[0][2], owner) for owner, studies in of_owner.items()]
    heapify(owners)
    free_cpus, free_gpus = cpus, gpus
    while owners:
        owned, used, _, owner = heappop(owners)
        studies = of_owner[owner]
        _, _, index, demand = heappop(studies)
        fits = demand.cpu <= free_cpus + 1e-9 and demand.gpu <= free_gpus + 1e-9
        if fits and slots[demand.study_id] < most[demand.study_id]:
            slots[demand.study_id] += 1
            free_cpus -= demand.cpu
            free_gpus -= demand.gpu
            dominant = _dominant(demand, cpus, gpus)
            owned, used = owned + dominant, 0.0
            heappush(studies, (slots[demand.study_id] * dominant, 0.0, index, demand))
        if studies:  # one that has no more does not come back: what is free only gets less
            heappush(owners, (owned, used, studies[0][2], owner))
    return dict(slots)


def _from_the_least(had: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """What these had; those that had nothing yet, the least of the others."""
    least = min((had[name] for name in names if name in had), default=0.0)
    return {name: had.get(name, least) for name in names}


def _totals(nodes: Sequence[Node]) -> tuple[float, float]:
    """CPUs and GPUs of the whole cluster."""
    return sum(node.cpu for node in nodes), sum(node.gpu for node in nodes)


def _dominant(demand: Demand, cpus: float, gpus: float) -> float:
    """The larger of the shares of the cluster's CPUs and GPUs that one trial takes."""
    return max(demand.cpu / cpus, demand.gpu / gpus if gpus > 0 else 0.0)


def _fitting(demand: Demand, node: Node) -> int:
    """How many of the study's trials one node holds."""
    by_gpu = node.gpu / demand.gpu if demand.gpu > 0 else math.inf
    return math.floor(min(node.cpu / demand.cpu, by_gpu, MOST_SLOTS) + 1e-9)  # a quotient may be infinite
