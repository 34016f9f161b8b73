"""Fair shares of a cluster: how many trials of each study may train at once. A pure function, and what it goes by."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from service.placement import ROUNDING, Node, has_place

MOST_SLOTS = 10_000
"""More workers than a Ray cluster runs: a study with tiny trials needs no larger share."""


_TURN_S = 60.0
"""How long those who do not fit side by side train in turn, or until the trials end that they have begun."""

_LONGEST_GAP_S = 60.0
"""Between two looks; in a longer one the machine slept, another controller led, or the cluster did not answer."""

_FORGOTTEN_AFTER_S = 600.0
"""For which an owner has had no study with a driver."""


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
    """What owners have had of a cluster: dominant shares that trained, times seconds.

    Who comes anew, or has all that they want, counts as having had no less than the one who has had least of those that
    want more: nobody is owed anything for a time in which they wanted nothing, as in start-time fair queueing (Goyal,
    Vin and Cheng 1996). Who is away for some minutes, as while a driver is replaced, is owed the same afterwards.
    """

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._seen_at: dict[str, float] = {}
        self._counted_at: float | None = None

    def count(self, demands: Sequence[Demand], nodes: Sequence[Node], *, now: float) -> None:
        """Adds what has trained since it was last counted. now: of a clock, in seconds."""
        seconds = 0.0 if self._counted_at is None else min(now - self._counted_at, _LONGEST_GAP_S)
        self._counted_at = now
        cpus, gpus = _totals(nodes)
        had = dict.fromkeys((demand.owner for demand in demands), 0.0)
        for demand in demands if cpus > 0 else ():
            had[demand.owner] += demand.running * _dominant(demand, cpus, gpus) * seconds
        known = {owner: self._had[owner] + more for owner, more in had.items() if owner in self._had}
        want_more = {one.owner for one in demands if one.running < one.wanted and _wanted(one, nodes)}
        contending = [value for owner, value in known.items() if owner in want_more]
        least = min(contending, default=max(known.values(), default=0.0))
        self._seen_at |= dict.fromkeys(had, now)
        self._seen_at = {owner: at for owner, at in self._seen_at.items() if now - at <= _FORGOTTEN_AFTER_S}
        self._had = {owner: value for owner, value in self._had.items() if owner in self._seen_at}
        for owner in had:
            value = known.get(owner, least)
            self._had[owner] = value if owner in want_more else max(value, least)

    def of(self, owner: str) -> float:
        """What all of the owner's studies have had."""
        return self._had.get(owner, 0.0)


def fair_shares(demands: Sequence[Demand], nodes: Sequence[Node], usage: Usage | None = None) -> dict[str, int | None]:
    """Slots by study: Dominant Resource Fairness (Ghodsi et al., NSDI 2011), between owners and then between studies.

    One slot after the other goes to the study with the smallest dominant share of the owner with the smallest one, of
    equal ones to the first in the order given; at most MOST_SLOTS to each, and none for which no node has room beside
    the others. A study alone, or a cluster that is not known, has no limit: None. One of which no node could hold a
    trial has a slot all the same, so that its driver asks for a place: a cluster that grows does so for what is asked.

    Owners who do not all fit side by side, as beside trials that take a whole node, have the same over time: the first
    slots go to those who have had least, in turns of _TURN_S of the largest trial.
    """
    cpus, gpus = _totals(nodes)
    if len(demands) < 2 or cpus <= 0:
        return {demand.study_id: None for demand in demands}
    slots = {demand.study_id: 0 for demand in demands}
    most = {demand.study_id: _wanted(demand, nodes) for demand in demands}
    of_owner: defaultdict[str, list[tuple[float, int, Demand]]] = defaultdict(list)  # a heap of studies by their shares
    for index, demand in enumerate(demands):
        of_owner[demand.owner].append((0.0, index, demand))  # in order, and so a heap
    largest = max((_dominant(demand, cpus, gpus) for demand in demands if most[demand.study_id]), default=1.0)
    turn = _TURN_S * largest
    turns = {owner: usage.of(owner) // turn if usage else 0.0 for owner in of_owner}
    owners = [(0.0, turns[owner], studies[0][1], owner) for owner, studies in of_owner.items()]
    heapify(owners)
    room = _Room(nodes)
    while owners:
        owned, turns_had, _, owner = heappop(owners)
        studies = of_owner[owner]
        _, index, demand = heappop(studies)
        if slots[demand.study_id] < most[demand.study_id] and room.take(demand):
            slots[demand.study_id] += 1
            dominant = _dominant(demand, cpus, gpus)
            owned, turns_had = owned + dominant, 0.0
            heappush(studies, (slots[demand.study_id] * dominant, index, demand))
        if studies:  # one that has no more does not come back: what is free only gets less
            heappush(owners, (owned, turns_had, studies[0][1], owner))
    asking = {one.study_id: 1 for one in demands if one.wanted and not has_place(one.cpu, one.gpu, nodes)}
    return {**slots, **asking}


class _Room:
    """What is free on each node while slots are given, from the first node on."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._cpus = [node.cpu for node in nodes]
        self._gpus = [node.gpu for node in nodes]
        self._first: dict[tuple[float, float], int] = {}  # the first node with room, by what a trial needs

    def take(self, demand: Demand) -> bool:
        """Takes the room of one trial off the first node that has it; whether there is one."""
        needs = (demand.cpu, demand.gpu)
        for index in range(self._first.get(needs, 0), len(self._cpus)):
            if demand.cpu <= self._cpus[index] + ROUNDING and demand.gpu <= self._gpus[index] + ROUNDING:
                self._first[needs] = index  # those before have none, and what is free only gets less
                self._cpus[index] -= demand.cpu
                self._gpus[index] -= demand.gpu
                return True
        self._first[needs] = len(self._cpus)
        return False


def _wanted(demand: Demand, nodes: Sequence[Node]) -> float:
    """How many trials the study could train if the cluster were its own."""
    return min(demand.wanted, MOST_SLOTS, sum(_fitting(demand, node) for node in nodes))


def _totals(nodes: Sequence[Node]) -> tuple[float, float]:
    """CPUs and GPUs of the whole cluster."""
    return sum(node.cpu for node in nodes), sum(node.gpu for node in nodes)


def _dominant(demand: Demand, cpus: float, gpus: float) -> float:
    """The larger of the shares of the cluster's CPUs and GPUs that one trial takes."""
    return max(demand.cpu / cpus, demand.gpu / gpus if gpus > 0 else 0.0)


def _fitting(demand: Demand, node: Node) -> int:
    """How many of the study's trials one node holds."""
    by_gpu = node.gpu / demand.gpu if demand.gpu > 0 else math.inf
    return math.floor(min(node.cpu / demand.cpu, by_gpu, MOST_SLOTS) + ROUNDING)  # a quotient may be infinite
