"""Whether a study that has ended goes on with a changed spec: decided by how it stands, without the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from service.errors import InvalidTransitionError
from service.spec import StudySpec, accepted_spec
from service.store.standing import Standing
from service.study import Reason, Study, StudyState

_LIMITS = ("max_trials", "max_failed_trials", "max_wallclock_s", "max_gpu_hours")
"""The limits of a budget that end a study; null is no limit."""


def raised_limits(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the limits that are higher in the new budget than in the old one, or none any more."""
    return [name for name in _LIMITS if old.get(name) is not None and (new[name] is None or new[name] > old[name])]


def searches_on(study: Study, spec: StudySpec, stands: Standing) -> bool:
    """Whether a study that has ended goes on with this spec; False where that is no more than there is.

    So it is where limits are raised that had been lowered below what is used, and where failed trials are all that is
    left, and there was no time for their retry. Raises InvalidTransitionError where the next driver would only end it
    again.
    """
    had_no_time = bool(stands.failures and stands.no_time_before)
    raised = raised_limits(study.spec["budget"], spec.budget.model_dump(mode="json"))
    was_lowered = all(_is_below_use(study, limit, stands) for limit in raised)
    has_more_at_target = stands.keeps_at_target or stands.lacks_confirming
    if study.reason == Reason.TARGET_REACHED or (stands.is_at_target and not has_more_at_target):
        if was_lowered or (had_no_time and stands.no_time is None):
            return False
        raise InvalidTransitionError(
            f"study {study.id!r} has reached objective.target: a clone with another target can go on"
        )
    if stands.no_time is not None:
        raise InvalidTransitionError(f"study {study.id!r} has used up budget.{stands.no_time} as well: raise that too")
    if not (stands.cut_off or stands.lacks_confirming or _ends_well(study, stands)):
        no_more = _why_no_more(spec, stands)
        if no_more and (had_no_time or was_lowered):
            return False
        if no_more:
            otherwise = f"; a retry runs its {stands.failures} failed trials again" if stands.failures else ""
            raise InvalidTransitionError(f"study {study.id!r} has tried {no_more}{otherwise}")
    _check_failures(study, spec, stands)
    return True


def check_confirming_change(study: Study, spec: StudySpec, confirmed_on: Collection[int]) -> None:
    """Raises InvalidTransitionError where a study cannot be told to confirm its best so, whether it has ended or not.

    confirmed_on: the seeds on which it has confirmed something. A driver reads what it is to confirm as it begins, and
    what has been confirmed on some seeds stays comparable only where more are added to them.
    """
    if study.state.has_driver:
        raise InvalidTransitionError(
            f"study {study.id!r} is {study.state}: pause it, or wait for its end, before you change what it confirms"
        )
    if gone := sorted(set(confirmed_on).difference(spec.confirm.seeds if spec.confirm else ())):
        raise InvalidTransitionError(
            f"study {study.id!r} has confirmed configurations on seed {gone[0]}: confirm.seeds must keep "
            f"{', '.join(map(str, sorted(confirmed_on)))}, and may have more"
        )


def confirms_on(study: Study, spec: StudySpec, stands: Standing) -> bool:
    """Whether a study that has ended goes on with what this spec confirms.

    False where it has confirmed all of that, and where there is nothing to confirm yet and a raised limit lets it go on
    to that. Raises InvalidTransitionError where the next driver would only end it again, or would go on with the
    search, which only a higher budget.max_trials asks for.
    """
    raised = raised_limits(study.spec["budget"], spec.budget.model_dump(mode="json"))
    if stands.has_results and not (stands.lacks_confirming or stands.cut_off_confirming):
        return False
    if raised and (study.state is StudyState.FAILED or not stands.has_results):
        return False
    if study.state is StudyState.FAILED and (stands.failures or study.reason == Reason.DRIVER_FAILED):
        raise InvalidTransitionError(f"study {study.id!r} has failed: retry it before you have its best confirmed")
    if not stands.has_results:
        raise InvalidTransitionError(f"study {study.id!r} has no configuration with a result: there is none to confirm")
    if stands.no_time is not None:
        raise InvalidTransitionError(f"study {study.id!r} has used up budget.{stands.no_time}: raise that too")
    is_over = stands.is_at_target or _why_no_more(spec, stands)
    if not is_over and "max_trials" not in raised:
        most = stands.configurations * len(spec.replicates.seeds)
        raise InvalidTransitionError(
            f"study {study.id!r} has ended before its search was over: with budget.max_trials at {most}, in the same "
            "change, it confirms the best that it has; without confirm, a raised limit lets it search on first"
        )
    _check_failures(study, spec, stands)
    return True


def _check_failures(study: Study, spec: StudySpec, stands: Standing) -> None:
    """Raises InvalidTransitionError where so many have failed that the next driver would end the study at once."""
    most = spec.budget.max_failed_trials
    if most is not None and stands.failures > most:
        raise InvalidTransitionError(
            f"study {study.id!r} has {stands.failures} failed trials, more than budget.max_failed_trials allows, "
            f"{most}: raise that too, or retry them"
        )


def _ends_well(study: Study, stands: Standing) -> bool:
    """Whether one failure too many ended the study, beside trials that did not fail: without it, it ends well."""
    old = study.spec["budget"].get("max_failed_trials")
    return study.reason == Reason.TOO_MANY_FAILURES and old is not None and old < stands.failures < stands.trials


def _is_below_use(study: Study, limit: str, stands: Standing) -> bool:
    """Whether this limit was lower than what the study has used, and is not what ended it."""
    if limit == "max_trials":
        most = accepted_spec(study.spec).configuration_budget()
        return most is not None and most < stands.configurations
    if limit == "max_failed_trials":
        return study.reason != Reason.TOO_MANY_FAILURES and stands.failures > study.spec["budget"][limit]
    return study.reason != Reason.BUDGET_EXHAUSTED and limit in stands.used_limits


def _why_no_more(spec: StudySpec, stands: Standing) -> str | None:
    """Why the search is over: its space is, or the budget has no room for more; None where it is not."""
    size, most = spec.space.size(), spec.configuration_budget()
    if size is not None and stands.tried >= size:
        return f"its whole search space, {size} configurations: no budget gives it more"
    if most is not None and stands.configurations >= most:
        return f"{stands.configurations} configurations, as many as budget.max_trials allows: raise that"
    return None
