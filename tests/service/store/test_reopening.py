"""Whether a study that has ended goes on: which limits lead on, and what is decided by how it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.errors import InvalidTransitionError
from service.spec import StudySpec, parse_spec
from service.spec_sections import Budget
from service.store.reopening import confirms_on, raised_limits, searches_on
from service.store.standing import Standing
from service.study import Reason, Study, StudyState

ENDS_NO_STUDY = {"max_concurrent_trials", "max_trial_s"}

DONE = Standing(
    configurations=20,
    trials=40,
    failures=0,
    tried=20,
    has_results=True,
    is_at_target=False,
    no_time_before=None,
    no_time=None,
    used_limits=frozenset(),
    cut_off=(),
    cut_off_confirming=(),
    keeps_at_target=False,
    lacks_confirming=False,
)
"""That of a study with all that its budget of 40 trials, on two seeds, allows; its space has more."""

CONTINUUM = {"rho": {"type": "float", "low": 0.01, "high": 0.5}}


def test_every_limit_either_ends_a_study_and_reopens_it_or_is_known_to_end_none() -> None:
    """A new limit belongs in one of the two."""
    lowest, none = dict.fromkeys(Budget.model_fields, 1), dict.fromkeys(Budget.model_fields)
    assert set(raised_limits(lowest, none)) == Budget.model_fields.keys() - ENDS_NO_STUDY


@pytest.fixture
def spec(a_spec: dict[str, Any]) -> StudySpec:
    return parse_spec(
        {**a_spec, "search_space": CONTINUUM, "algorithm": {"name": "random"}, "budget": {"max_trials": 40}}
    )


def ended(spec: StudySpec, reason: Reason = Reason.MAX_TRIALS, state: StudyState = StudyState.SUCCEEDED) -> Study:
    return Study.model_construct(id="s", state=state, reason=reason, spec=spec.to_mapping())


def with_budget(spec: StudySpec, **limits: Any) -> StudySpec:
    return spec.model_copy(update={"budget": spec.budget.model_copy(update=limits)})


class TestSearching:
    @pytest.mark.parametrize(
        ("limits", "changes", "goes_on"),
        [
            ({"max_trials": 60}, {}, True),
            ({"max_trials": 60}, {"failures": 5}, True),
            ({"max_failed_trials": None}, {"failures": 3, "no_time_before": "max_wallclock_s"}, False),
            ({"max_failed_trials": None}, {"cut_off": ("s-1-0",)}, True),
            ({"max_trials": 60}, {"is_at_target": True, "keeps_at_target": True}, True),
        ],
    )
    def test_what_there_is_to_do_is_gone_on_with(
        self, spec: StudySpec, limits: dict[str, Any], changes: dict[str, Any], goes_on: bool
    ) -> None:
        assert searches_on(ended(spec), with_budget(spec, **limits), replace(DONE, **changes)) is goes_on

    @pytest.mark.parametrize(
        ("limits", "changes", "said"),
        [
            ({"max_failed_trials": 9}, {}, "has tried 20 configurations, as many as budget.max_trials allows"),
            ({"max_failed_trials": 9}, {"failures": 2}, "; a retry runs its 2 failed trials again"),
            ({"max_trials": 60}, {"no_time": "max_gpu_hours"}, "has used up budget.max_gpu_hours as well"),
            ({"max_trials": 60}, {"is_at_target": True}, "has reached objective.target"),
            ({"max_trials": 60, "max_failed_trials": 1}, {"failures": 2}, "has 2 failed trials, more than"),
        ],
    )
    def test_what_would_be_ended_again_at_once_is_refused(
        self, spec: StudySpec, limits: dict[str, Any], changes: dict[str, Any], said: str
    ) -> None:
        before = with_budget(spec, max_failed_trials=5 if "max_failed_trials" in limits else None)
        with pytest.raises(InvalidTransitionError) as refused:
            searches_on(ended(before), with_budget(spec, **limits), replace(DONE, **changes))
        assert said in str(refused.value)


class TestConfirming:
    @pytest.mark.parametrize(
        ("changes", "goes_on"),
        [({"lacks_confirming": True}, True), ({"cut_off_confirming": ("s-1-0",)}, True), ({}, False)],
    )
    def test_what_is_not_confirmed_yet_is(self, spec: StudySpec, changes: dict[str, Any], goes_on: bool) -> None:
        assert confirms_on(ended(spec), spec, replace(DONE, **changes)) is goes_on

    @pytest.mark.parametrize(
        ("study", "changes", "said"),
        [
            ({}, {"configurations": 7}, "has ended before its search was over: with budget.max_trials at 14"),
            ({}, {"has_results": False}, "has no configuration with a result"),
            ({"state": StudyState.FAILED}, {"failures": 1}, "has failed: retry it"),
            ({"reason": Reason.DRIVER_FAILED, "state": StudyState.FAILED}, {}, "has failed: retry it"),
            ({}, {"no_time": "max_wallclock_s"}, "has used up budget.max_wallclock_s: raise that too"),
        ],
    )
    def test_what_cannot_be_confirmed_is_refused(
        self, spec: StudySpec, study: dict[str, Any], changes: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InvalidTransitionError) as refused:
            confirms_on(ended(spec, **study), spec, replace(DONE, lacks_confirming=True, **changes))
        assert said in str(refused.value)
