"""How a study stands that has ended: what it has come to, and what a spec leaves it to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from search_spaces.space import SearchSpace
from service.spec import StudySpec
from service.spec_sections import Budget
from service.store import records, tables
from service.store.demands import at_target
from service.store.inserting import last_number
from service.store.ranking import most_seeds_first
from service.store.spending import used_up
from service.study import Origin, Purpose, TrialState

_LIMITS_ON_TIME = ("max_wallclock_s", "max_gpu_hours")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a study has come to, and what a spec leaves it to do.

    configurations, trials, failures: how many it has, the last of failed trials. tried: how many points of the space.
    has_results: whether a configuration has one. is_at_target: whether its objective's target is reached.
    no_time_before, no_time: the limit on time that it has used up, by its budget as it was and by the spec's; None
    where there is time left. used_limits: the limits on time of the budget as it was that are used up, each by itself.
    cut_off: ids of the cancelled trials that a study which searches on runs after all; cut_off_confirming: those of
    them that confirm on seeds of the spec. keeps_at_target: whether a cancelled trial had begun or confirms.
    lacks_confirming: whether one of the best configurations lacks a trial that the spec has confirm it.
    """

    configurations: int
    trials: int
    failures: int
    tried: int
    has_results: bool
    is_at_target: bool
    no_time_before: str | None
    no_time: str | None
    used_limits: frozenset[str]
    cut_off: tuple[str, ...]
    cut_off_confirming: tuple[str, ...]
    keeps_at_target: bool
    lacks_confirming: bool


def standing(connection: Connection, study: Row[Any], spec: StudySpec) -> Standing:
    """Reads it of a locked study, whose stored spec is the one before."""
    before = Budget.model_validate(study.spec["budget"])
    alone = {name: Budget.model_validate({name: getattr(before, name)}) for name in _LIMITS_ON_TIME}
    cut_off = _cut_off(connection, study.id, spec)
    return Standing(
        configurations=last_number(connection, tables.configurations, study.id),
        trials=last_number(connection, tables.trials, study.id),
        failures=len(records.trials_in(connection, study.id, [TrialState.FAILED])),
        tried=_tried(connection, study.id, spec.space),
        has_results=bool(_best_ones(connection, study.id, spec, most=1)),
        is_at_target=study.id in at_target(connection, [study]),
        no_time_before=used_up(connection, study, before),
        no_time=used_up(connection, study, spec.budget),
        used_limits=frozenset(name for name, limit in alone.items() if used_up(connection, study, limit)),
        cut_off=tuple(cut_off),
        cut_off_confirming=tuple(trial_id for trial_id, purpose in cut_off.items() if purpose == Purpose.CONFIRM),
        keeps_at_target=_keeps_at_target(connection, study.id),
        lacks_confirming=_lacks_confirming(connection, study.id, spec),
    )


def confirmed_on(connection: Connection, study_id: str) -> set[int]:
    """The seeds on which it has confirmed something, or has begun to."""
    seeds = _confirming_seeds(connection, study_id, begun=True)
    return set().union(*seeds.values())


def _cut_off(connection: Connection, study_id: str, spec: StudySpec) -> Mapping[str, str]:
    """The purposes of the cancelled trials that run after all, by id, in the order of their numbers."""
    table = tables.trials
    confirms = (table.c.purpose == Purpose.CONFIRM) & table.c.seed.in_(spec.confirm.seeds if spec.confirm else ())
    query = select(table.c.id, table.c.purpose).where(
        table.c.study_id == study_id,
        table.c.state == TrialState.CANCELLED,
        confirms | (table.c.purpose == Purpose.SEARCH),
    )
    return {row.id: row.purpose for row in connection.execute(query.order_by(table.c.number))}


def _keeps_at_target(connection: Connection, study_id: str) -> bool:
    table = tables.trials
    kept = select(func.count()).where(
        table.c.study_id == study_id,
        table.c.state == TrialState.CANCELLED,
        (table.c.attempt > 0) | (table.c.purpose == Purpose.CONFIRM),
    )
    return bool(connection.execute(kept).scalar_one())


def _lacks_confirming(connection: Connection, study_id: str, spec: StudySpec) -> bool:
    """Whether one of the best configurations lacks a confirming trial: the next driver adds them, as it ranks."""
    if spec.confirm is None:
        return False
    there, seeds = _confirming_seeds(connection, study_id), set(spec.confirm.seeds)
    best = _best_ones(connection, study_id, spec, most=spec.confirm.top_k)
    return any(seeds - there.get(configuration_id, set()) for configuration_id in best)


def _best_ones(connection: Connection, study_id: str, spec: StudySpec, *, most: int) -> list[str]:
    """Ids of the configurations that have a result, the best first."""
    table = tables.configurations
    best = (
        select(table.c.id)
        .where(table.c.study_id == study_id, table.c.objective_n > 0)
        .order_by(*most_seeds_first(spec.objective.mode))
        .limit(most)
    )
    return list(connection.execute(best).scalars())


def _confirming_seeds(connection: Connection, study_id: str, *, begun: bool = False) -> dict[str, set[int]]:
    """The seeds of each configuration's confirming trials; begun: but for those cancelled before they had begun."""
    table = tables.trials
    query = select(table.c.configuration_id, table.c.seed).where(
        table.c.study_id == study_id, table.c.purpose == Purpose.CONFIRM
    )
    if begun:
        query = query.where((table.c.attempt > 0) | (table.c.state != TrialState.CANCELLED))
    found: defaultdict[str, set[int]] = defaultdict(set)
    for row in connection.execute(query):
        found[row.configuration_id].add(row.seed)
    return found


def _tried(connection: Connection, study_id: str, space: SearchSpace) -> int:
    """How many points of the space the study has. Older versions have recorded enqueued ones beside it, as given."""
    table = tables.configurations
    searched = select(func.count()).where(table.c.study_id == study_id, table.c.origin == Origin.SEARCH)
    enqueued = select(table.c.point).where(table.c.study_id == study_id, table.c.origin == Origin.USER)
    points = connection.execute(enqueued).scalars()
    return int(connection.execute(searched).scalar_one()) + sum(map(space.is_exact, points))
