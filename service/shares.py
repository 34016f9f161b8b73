"""Fair shares of a cluster: how many trials of each study may train at once. A pure function."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
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
    """What a running study asks for. cpu, gpu: of one trial. wanted: trials that it could train at once."""

    study_id: str
    owner: str
    cpu: float
    gpu: float
    wanted: float


def fair_shares(demands: Sequence[Demand], nodes: Sequence[Node]) -> dict[str, int | None]:
    """Slots by study: Dominant Resource Fairness (Ghodsi et al., NSDI 2011), between owners and then between studies.

    One slot after the other goes to the study with the smallest dominant share of the owner with the smallest one, of
    equal ones to the first in the order given; at most MOST_SLOTS to each. A study alone, or a cluster that is not
    known, has no limit: None.
    """
    cpus, gpus = sum(node.cpu for node in nodes), sum(node.gpu for node in nodes)
    if len(demands) < 2 or cpus <= 0:
        return {demand.study_id: None for demand in demands}
    slots = {demand.study_id: 0 for demand in demands}
    most = {
        demand.study_id: min(demand.wanted, MOST_SLOTS, sum(_fitting(demand, node) for node in nodes))
        for demand in demands
    }
    of_owner: defaultdict[str, list[tuple[float, int, Demand]]] = defaultdict(list)  # a heap of studies by their shares
    for index, demand in enumerate(demands):
        of_owner[demand.owner].append((0.0, index, demand))  # in order, and so a heap
    owners = [(0.0, *studies[0][:2], owner) for owner, studies in of_owner.items()]
    heapify(owners)
    free_cpus, free_gpus = cpus, gpus
    while owners:
        owned, _, index, owner = heappop(owners)
        studies = of_owner[owner]
        demand = heappop(studies)[2]
        fits = demand.cpu <= free_cpus + 1e-9 and demand.gpu <= free_gpus + 1e-9
        if fits and slots[demand.study_id] < most[demand.study_id]:
            slots[demand.study_id] += 1
            free_cpus -= demand.cpu
            free_gpus -= demand.gpu
            dominant = _dominant(demand, cpus, gpus)
            owned += dominant
            heappush(studies, (slots[demand.study_id] * dominant, index, demand))
        if studies:  # one that has no more does not come back: what is free only gets less
            heappush(owners, (owned, *studies[0][:2], owner))
    return dict(slots)


def _dominant(demand: Demand, cpus: float, gpus: float) -> float:
    """The larger of the shares of the cluster's CPUs and GPUs that one trial takes."""
    return max(demand.cpu / cpus, demand.gpu / gpus if gpus > 0 else 0.0)


def _fitting(demand: Demand, node: Node) -> int:
    """How many of the study's trials one node holds."""
    by_gpu = math.floor(node.gpu / demand.gpu + 1e-9) if demand.gpu > 0 else math.inf
    return int(min(math.floor(node.cpu / demand.cpu + 1e-9), by_gpu))
