"""What becomes of a study that its user changes: planned from the study and what is asked for, before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row

from service.errors import InvalidSpecError
from service.spec import StudySpec, accepted_spec
from service.spec_checks import confirming_number_problem
from service.spec_sections import Budget, Confirm
from service.store import records
from service.store.reopening import check_confirming_change, confirms_on, raised_limits, searches_on
from service.store.standing import confirmed_on, standing
from service.study import Intent, Study, StudyState


@dataclass(frozen=True, slots=True)
class StudyChanges:
    """What a user changes of a study; what is None or left out stays.

    budget: the given limits only, None in it being no limit. labels: all of them, those before are replaced.
    confirm: the whole section.
    """

    budget: Mapping[str, Any] = field(default_factory=dict)
    confirm: Confirm | None = None
    labels: Mapping[str, str] | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """What the changes come to.

    spec: the study's from then on, as it is stored. reopens: whether the study, which has ended, goes on. cut_off: ids
    of its cancelled trials that run after all then.
    """

    spec: Mapping[str, Any]
    reopens: bool = False
    cut_off: Sequence[str] = ()

    def told(self) -> dict[str, Any]:
        """What can be changed, as the event of the change tells it."""
        return {name: self.spec.get(name) for name in ("budget", "confirm", "labels", "description")}


def plan_change(connection: Connection, study: Row[Any], changes: StudyChanges) -> ChangePlan:
    """Plans the change of a locked study; it reads the store, and writes nothing.

    Raises InvalidSpecError, and InvalidTransitionError where the study as it is cannot be changed so, or would only be
    ended again at once.
    """
    changed, is_told_to_confirm = _changed(study.spec, changes), changes.confirm is not None
    if not (changes.budget or is_told_to_confirm):
        return ChangePlan(changed)  # texts alone, which may be of a study that only another version could run
    spec = accepted_spec(changed)
    if StudyState(study.state).is_final:
        return _plan_for_ended(connection, study, spec, is_told_to_confirm=is_told_to_confirm)
    _check_unended(connection, study, spec, is_told_to_confirm=is_told_to_confirm)
    return ChangePlan(spec.to_mapping())


def _changed(spec: Mapping[str, Any], changes: StudyChanges) -> dict[str, Any]:
    changed = {**spec, "budget": {**spec["budget"], **changes.budget}}
    if changes.labels is not None:
        changed["labels"] = dict(changes.labels)
    if changes.description is not None:
        changed["description"] = changes.description
    if changes.confirm is not None:
        if problem := confirming_number_problem(changes.confirm):
            raise InvalidSpecError([problem])
        changed["confirm"] = changes.confirm.model_dump(mode="json")
    return changed


def _plan_for_ended(
    connection: Connection, study: Row[Any], spec: StudySpec, *, is_told_to_confirm: bool
) -> ChangePlan:
    """A study that has ended goes on where there is more for it to confirm, or where a raised limit lets it search on.

    Where it confirms, only a raised max_trials asks for more search. Raises InvalidTransitionError.
    """
    raised = raised_limits(study.spec["budget"], spec.budget.model_dump(mode="json"))
    if not (is_told_to_confirm or raised):
        return ChangePlan(spec.to_mapping())
    ended, stands = records.as_record(Study, study), standing(connection, study, spec)
    if is_told_to_confirm:
        check_confirming_change(ended, spec, confirmed_on(connection, study.id))
    confirms = is_told_to_confirm and confirms_on(ended, spec, stands)
    asks_for_more = "max_trials" in raised if confirms else bool(raised)
    searches = asks_for_more and searches_on(ended, spec, stands)
    if not (confirms or searches):
        return ChangePlan(spec.to_mapping())
    cut_off = stands.cut_off if searches else stands.cut_off_confirming
    return ChangePlan(spec.to_mapping(), reopens=True, cut_off=cut_off)


def _check_unended(connection: Connection, study: Row[Any], spec: StudySpec, *, is_told_to_confirm: bool) -> None:
    """Raises InvalidTransitionError where a study that has not ended cannot be changed so.

    One on its way to its end is given no other work.
    """
    ends = study.intent in (Intent.STOP, Intent.CANCEL)
    if ends and spec.budget != Budget.model_validate(study.spec["budget"]):
        raise records.impossible(study, "given another budget")
    if is_told_to_confirm and spec.confirm != accepted_spec(study.spec).confirm:
        if ends:
            raise records.impossible(study, "told what to confirm")
        check_confirming_change(records.as_record(Study, study), spec, confirmed_on(connection, study.id))
