"""What a change comes to, before any of it is written."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidTransitionError
from service.store import records
from service.store.changing import ChangePlan, StudyChanges, plan_change
from service.study import Reason, Study, StudyState


def ended_study(stores: Any) -> tuple[Study, str]:
    """A study whose end has cut off its second trial, and that trial's id."""
    study = stores.create()
    stores.lifecycle.patch(study.id, StudyChanges(budget={"max_trials": 2}), if_version=None)
    driver = stores.drive(study)
    stores.succeed(driver, stores.begin(driver))
    cut_off = stores.begin(driver)
    driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
    return stores.studies.get(study.id), cut_off.id


def planned(stores: Any, study: Study, changes: StudyChanges) -> ChangePlan:
    with stores.database.writing() as connection:
        return plan_change(connection, records.locked_study(connection, study.id), changes)


def test_a_plan_names_the_trials_that_run_after_all_and_leaves_the_store_alone(timed_stores: Any) -> None:
    study, cut_off = ended_study(timed_stores)
    before = timed_stores.studies.events(study.id)
    plan = planned(timed_stores, study, StudyChanges(budget={"max_trials": 9}, labels={"team": "vision"}))
    assert (plan.reopens, plan.cut_off) == (True, (cut_off,))
    assert (plan.spec["budget"]["max_trials"], plan.spec["labels"]) == (9, {"team": "vision"})
    assert timed_stores.studies.get(study.id) == study
    assert timed_stores.studies.events(study.id) == before


def test_what_does_not_lead_on_is_planned_without_any_trial(timed_stores: Any) -> None:
    study, _cut_off = ended_study(timed_stores)
    plan = planned(timed_stores, study, StudyChanges(budget={"max_trials": 1}, description="less"))
    assert (plan.reopens, plan.cut_off, plan.spec["description"]) == (False, (), "less")


def test_a_study_on_its_way_to_its_end_can_be_described_and_given_no_other_budget(timed_stores: Any) -> None:
    study = timed_stores.create()
    driver = timed_stores.drive(study)
    timed_stores.begin(driver)
    timed_stores.lifecycle.stop(study.id)
    assert planned(timed_stores, study, StudyChanges(description="new")).spec["description"] == "new"
    with pytest.raises(InvalidTransitionError, match="is being stopped: it cannot be given another budget"):
        planned(timed_stores, study, StudyChanges(budget={"max_trials": 9}))
