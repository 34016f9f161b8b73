"""Whether a study that has ended has anything to go on with: what a change must lead to, or it is refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, select

from search_spaces.space import SearchSpace
from service.errors import InvalidTransitionError
from service.spec import StudySpec, accepted_spec
from service.spec_sections import Budget
from service.store import records, tables
from service.store.demands import at_target
from service.store.inserting import last_number
from service.store.ranking import most_seeds_first
from service.store.spending import used_up
from service.study import Origin, Purpose, Reason, StudyState, TrialState

_LIMITS = ("max_trials", "max_failed_trials", "max_wallclock_s", "max_gpu_hours")
"""The limits of a budget that end a study; null is no limit."""


def raised_limits(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the limits that are higher in the new budget than in the old one, or none any more."""
    return [name for name in _LIMITS if old.get(name) is not None and (new[name] is None or new[name] > old[name])]


def check_going_on(connection: Connection, study: Row[Any], spec: StudySpec) -> bool:
    """Whether a study that has ended goes on with this spec; False where that is no more than there is.

    So it is where limits are raised that had been lowered below what is used, and where failed trials are all that is
    left, and there was no time for their retry. Raises InvalidTransitionError where the next driver would only end it
    again.
    """
    old = Budget.model_validate(study.spec["budget"])
    failures = len(records.trials_in(connection, study.id, [TrialState.FAILED]))
    had_no_time = bool(failures and used_up(connection, study, old))
    was_lowered = all(
        _is_below_use(connection, study, limit, failures)
        for limit in raised_limits(study.spec["budget"], spec.budget.model_dump(mode="json"))
    )
    budget = spec.budget
    limit = used_up(connection, study, budget)
    is_at_target = study.id in at_target(connection, [study])
    if study.reason == Reason.TARGET_REACHED or (is_at_target and not _has_more_at_target(connection, study.id, spec)):
        if was_lowered or (had_no_time and limit is None):
            return False
        raise InvalidTransitionError(
            f"study {study.id!r} has reached objective.target: a clone with another target can go on"
        )
    if limit is not None:
        raise InvalidTransitionError(f"study {study.id!r} has used up budget.{limit} as well: raise that too")
    cut_off = trials_cut_off(connection, study.id, spec, searches=True)
    if not (cut_off or _ends_well(connection, study, failures) or _has_more_to_confirm(connection, study.id, spec)):
        no_more = _why_no_more(connection, study.id, spec)
        if no_more and (had_no_time or was_lowered):
            return False
        if no_more:
            otherwise = f"; a retry runs its {failures} failed trials again" if failures else ""
            raise InvalidTransitionError(f"study {study.id!r} has tried {no_more}{otherwise}")
    _check_failures(study, spec, failures=failures)
    return True


def check_confirming_change(connection: Connection, study: Row[Any], spec: StudySpec) -> None:
    """Raises InvalidTransitionError where a study cannot be told to confirm its best so, whether it has ended or not.

    A driver reads what it is to confirm as it begins. What has been confirmed on some seeds stays comparable only where
    more are added to them.
    """
    if StudyState(study.state).has_driver:
        raise InvalidTransitionError(
            f"study {study.id!r} is {study.state}: pause it, or wait for its end, before you change what it confirms"
        )
    used = set().union(*_confirming_seeds(connection, study.id, begun=True).values())
    if gone := sorted(used.difference(spec.confirm.seeds if spec.confirm else ())):
        raise InvalidTransitionError(
            f"study {study.id!r} has confirmed configurations on seed {gone[0]}: confirm.seeds must keep "
            f"{', '.join(map(str, sorted(used)))}, and may have more"
        )


def check_confirming(connection: Connection, study: Row[Any], spec: StudySpec) -> bool:
    """Whether a study that has ended goes on with what this spec confirms.

    False where it has confirmed all of that, and where there is nothing to confirm yet and a raised limit lets it go on
    to that. Raises InvalidTransitionError where the next driver would only end it again, or would go on with the
    search, which only a higher budget.max_trials asks for.
    """
    check_confirming_change(connection, study, spec)
    raised = raised_limits(study.spec["budget"], spec.budget.model_dump(mode="json"))
    has_results = bool(_best_ones(connection, study.id, spec))
    has_more = _has_more_to_confirm(connection, study.id, spec)
    if has_results and not (has_more or trials_cut_off(connection, study.id, spec, searches=False)):
        return False
    if raised and (study.state == StudyState.FAILED or not has_results):
        return False
    failures = len(records.trials_in(connection, study.id, [TrialState.FAILED]))
    if study.state == StudyState.FAILED and (failures or study.reason == Reason.DRIVER_FAILED):
        raise InvalidTransitionError(f"study {study.id!r} has failed: retry it before you have its best confirmed")
    if not has_results:
        raise InvalidTransitionError(f"study {study.id!r} has no configuration with a result: there is none to confirm")
    limit = used_up(connection, study, spec.budget)
    if limit is not None:
        raise InvalidTransitionError(f"study {study.id!r} has used up budget.{limit}: raise that too")
    is_over = study.id in at_target(connection, [study]) or _why_no_more(connection, study.id, spec)
    if not is_over and "max_trials" not in raised:
        most = last_number(connection, tables.configurations, study.id) * len(spec.replicates.seeds)
        raise InvalidTransitionError(
            f"study {study.id!r} has ended before its search was over: with budget.max_trials at {most}, in the same "
            "change, it confirms the best that it has; without confirm, a raised limit lets it search on first"
        )
    _check_failures(study, spec, failures=failures)
    return True


def trials_cut_off(connection: Connection, study_id: str, spec: StudySpec, *, searches: bool) -> list[str]:
    """Ids of the cancelled trials that a study which is reopened runs after all: those that confirm on seeds of the
    spec, and where it searches on, those of the search.
    """
    table = tables.trials
    confirms = (table.c.purpose == Purpose.CONFIRM) & table.c.seed.in_(spec.confirm.seeds if spec.confirm else ())
    query = select(table.c.id).where(
        table.c.study_id == study_id,
        table.c.state == TrialState.CANCELLED,
        confirms | (table.c.purpose == Purpose.SEARCH) if searches else confirms,
    )
    return list(connection.execute(query.order_by(table.c.number)).scalars())


def _check_failures(study: Row[Any], spec: StudySpec, *, failures: int) -> None:
    """Raises InvalidTransitionError where so many have failed that the next driver would end the study at once."""
    most = spec.budget.max_failed_trials
    if most is not None and failures > most:
        raise InvalidTransitionError(
            f"study {study.id!r} has {failures} failed trials, more than budget.max_failed_trials allows, "
            f"{most}: raise that too, or retry them"
        )


def _has_more_at_target(connection: Connection, study_id: str, spec: StudySpec) -> bool:
    """Whether a study at its target goes on with something: what had begun, or what confirms its best."""
    table = tables.trials
    kept = select(func.count()).where(
        table.c.study_id == study_id,
        table.c.state == TrialState.CANCELLED,
        (table.c.attempt > 0) | (table.c.purpose == Purpose.CONFIRM),
    )
    return bool(connection.execute(kept).scalar_one()) or _has_more_to_confirm(connection, study_id, spec)


def _ends_well(connection: Connection, study: Row[Any], failures: int) -> bool:
    """Whether one failure too many ended the study, beside trials that did not fail: without it, it ends well."""
    old = study.spec["budget"].get("max_failed_trials")
    if study.reason != Reason.TOO_MANY_FAILURES or old is None:
        return False
    return bool(old < failures < last_number(connection, tables.trials, study.id))


def _has_more_to_confirm(connection: Connection, study_id: str, spec: StudySpec) -> bool:
    """Whether one of the best configurations lacks a confirming trial: the next driver adds them, as it ranks."""
    if spec.confirm is None:
        return False
    there, seeds = _confirming_seeds(connection, study_id), set(spec.confirm.seeds)
    return any(
        seeds - there.get(configuration_id, set()) for configuration_id in _best_ones(connection, study_id, spec)
    )


def _best_ones(connection: Connection, study_id: str, spec: StudySpec) -> list[str]:
    """Ids of the configurations that the spec has confirmed, the best first."""
    table = tables.configurations
    best = (
        select(table.c.id)
        .where(table.c.study_id == study_id, table.c.objective_n > 0)
        .order_by(*most_seeds_first(spec.objective.mode))
        .limit(spec.confirm.top_k if spec.confirm else 0)
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


def _is_below_use(connection: Connection, study: Row[Any], limit: str, failures: int) -> bool:
    """Whether this limit is lower than what the study has used, and is not what ended it."""
    old = study.spec["budget"][limit]
    if limit == "max_trials":
        most = accepted_spec(study.spec).configuration_budget()
        return most is not None and most < last_number(connection, tables.configurations, study.id)
    if limit == "max_failed_trials":
        return study.reason != Reason.TOO_MANY_FAILURES and bool(failures > old)
    only = Budget.model_validate({limit: old})
    return study.reason != Reason.BUDGET_EXHAUSTED and used_up(connection, study, only) is not None


def _why_no_more(connection: Connection, study_id: str, spec: StudySpec) -> str | None:
    """Why the search is over: its space is, or the budget has no room for more; None where it is not."""
    size, most = spec.space.size(), spec.configuration_budget()
    if size is not None and _tried(connection, study_id, spec.space) >= size:
        return f"its whole search space, {size} configurations: no budget gives it more"
    tried = last_number(connection, tables.configurations, study_id)
    if most is not None and tried >= most:
        return f"{tried} configurations, as many as budget.max_trials allows: raise that"
    return None


def _tried(connection: Connection, study_id: str, space: SearchSpace) -> int:
    """How many points of the space the study has. Older versions have recorded enqueued ones beside it, as given."""
    table = tables.configurations
    searched = select(func.count()).where(table.c.study_id == study_id, table.c.origin == Origin.SEARCH)
    enqueued = select(table.c.point).where(table.c.study_id == study_id, table.c.origin == Origin.USER)
    points = connection.execute(enqueued).scalars()
    return int(connection.execute(searched).scalar_one()) + sum(map(space.is_exact, points))
