"""What a study with a driver could train at once, which is what its share of the cluster goes by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from service.analysis.counting import reaches
from service.shares import Demand
from service.spec import stored_plan
from service.store import tables
from service.study import OPEN_TRIAL_STATES, Intent, Purpose, StudyState, TrialState


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What a study has come to.

    configurations: how many it has. unended: of its trials. begun: those of them that have had an attempt. confirming:
    those and the ones that confirm its best. running: those that train. is_at_target: whether it has reached its
    objective's target.
    """

    configurations: int = 0
    unended: int = 0
    begun: int = 0
    confirming: int = 0
    running: int = 0
    is_at_target: bool = False


def demands_of(connection: Connection, studies: Sequence[Row[Any]]) -> list[Demand]:
    """The demands of studies that have a driver, in this order, from their rows."""
    recorded = _recorded(connection, studies)
    return [_demand(study, recorded.get(study.id, _Recorded())) for study in studies]


def _demand(study: Row[Any], recorded: _Recorded) -> Demand:
    wanted, most = _wanted(study, recorded), study.spec["budget"]["max_concurrent_trials"]
    resources = study.spec["resources_per_trial"]
    return Demand(
        study.id,
        study.owner,
        float(resources["cpu"]),
        float(resources["gpu"]),
        wanted if most is None else min(wanted, most),
        recorded.running,
    )


def _wanted(study: Row[Any], recorded: _Recorded) -> float:
    """Trials that run or could: recorded ones, and those that its plan has room for.

    One that is on its way to an end begins nothing; stopped by its user, it finishes what has begun, and at its target
    it begins only what confirms its best. Those that will do so count once they are recorded: until then a slot kept
    for them would idle.
    """
    if study.state == StudyState.STOPPING:
        return recorded.begun if study.intent == Intent.STOP else recorded.running
    if recorded.is_at_target:
        return max(1, recorded.confirming)
    planned = stored_plan(study.spec)
    if planned is None:
        return math.inf  # an older version has accepted it: nobody can tell
    proposals = max(0, planned.configurations - recorded.configurations)
    unended = recorded.unended + proposals * len(study.spec["replicates"]["seeds"])
    return max(1, unended)  # one lets its driver find out what comes next


def _recorded(connection: Connection, studies: Sequence[Row[Any]]) -> dict[str, _Recorded]:
    trials, configurations = tables.trials, tables.configurations
    study_ids = [study.id for study in studies]
    has_begun = trials.c.attempt > 0
    of_trials = connection.execute(
        select(
            trials.c.study_id,
            func.count().label("unended"),
            func.count().filter(has_begun).label("begun"),
            func.count().filter(has_begun | (trials.c.purpose == Purpose.CONFIRM)).label("confirming"),
            func.count().filter(trials.c.state == TrialState.RUNNING).label("running"),
        )
        .where(trials.c.study_id.in_(study_ids), trials.c.state.in_(OPEN_TRIAL_STATES))
        .group_by(trials.c.study_id)
    )
    counts = {row.study_id: row for row in of_trials}
    of_configurations = connection.execute(
        select(configurations.c.study_id, func.count().label("number"))
        .where(configurations.c.study_id.in_(study_ids))
        .group_by(configurations.c.study_id)
    )
    reached = at_target(connection, studies)
    return {
        row.study_id: _Recorded(
            row.number, count.unended, count.begun, count.confirming, count.running, row.study_id in reached
        )
        if (count := counts.get(row.study_id))
        else _Recorded(row.number, is_at_target=row.study_id in reached)
        for row in of_configurations
    }


def at_target(connection: Connection, studies: Sequence[Row[Any]]) -> set[str]:
    """Ids of those of which a whole configuration has reached the target, by the rule of their drivers."""
    table = tables.configurations
    objectives = {study.id: study.spec["objective"] for study in studies}
    with_target = {study_id: of for study_id, of in objectives.items() if of.get("target") is not None}
    if not with_target:
        return set()
    mean = table.c.objective_mean
    bests = connection.execute(
        select(table.c.study_id, func.min(mean).label("least"), func.max(mean).label("most"))
        .where(table.c.study_id.in_(with_target), table.c.complete)
        .group_by(table.c.study_id)
    )
    return {
        row.study_id
        for row in bests
        if (of := with_target[row.study_id])
        if reaches(row.most if of["mode"] == "max" else row.least, of["target"], of["mode"])
    }
