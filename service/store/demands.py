"""What a study with a driver could train at once, which is what its share of the cluster goes by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from service.shares import Demand
from service.spec import stored_plan
from service.store import tables
from service.study import OPEN_TRIAL_STATES, Intent, StudyState, TrialState


@dataclass(frozen=True, slots=True)
class _Recorded:
    """How many configurations a study has, and trials that have not ended: begun ones have had an attempt."""

    configurations: int = 0
    unended: int = 0
    begun: int = 0
    running: int = 0


def demands_of(connection: Connection, studies: Sequence[Row[Any]]) -> list[Demand]:
    """The demands of studies that have a driver, in this order, from their rows."""
    recorded = _recorded(connection, [study.id for study in studies])
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

    One that is on its way to an end begins nothing; stopped by its user, it finishes what has begun. Those that will
    confirm its best count once they are recorded: until then a slot kept for them would idle.
    """
    if study.state == StudyState.STOPPING:
        return recorded.begun if study.intent == Intent.STOP else recorded.running
    planned = stored_plan(study.spec)
    if planned is None:
        return math.inf  # an older version has accepted it: nobody can tell
    proposals = max(0, planned.configurations - recorded.configurations)
    unended = recorded.unended + proposals * len(study.spec["replicates"]["seeds"])
    return max(1, unended)  # one lets its driver find out what comes next


def _recorded(connection: Connection, study_ids: Sequence[str]) -> dict[str, _Recorded]:
    trials, configurations = tables.trials, tables.configurations
    of_trials = connection.execute(
        select(
            trials.c.study_id,
            func.count().label("unended"),
            func.count().filter(trials.c.attempt > 0).label("begun"),
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
    return {
        row.study_id: _Recorded(row.number, count.unended, count.begun, count.running)
        if (count := counts.get(row.study_id))
        else _Recorded(row.number)
        for row in of_configurations
    }
