"""Why trials wait."""

from __future__ import annotations

from typing import Any

import pytest

from service.analysis.waiting import Care, pending_reason, waiting_reason
from service.study import Intent, Study, StudyState, TrialState
from tests.service.analysis.records import NOW, configuration, trial


def a_study(state: StudyState = StudyState.RUNNING, most: int | None = None, **changes: Any) -> Study:
    fields: dict[str, Any] = {
        "id": "s",
        "name": "s",
        "description": "",
        "owner": "ada",
        "labels": {},
        "state": state,
        "intent": Intent.RUN,
        "reason": None,
        "error": None,
        "waiting_reason": None,
        "slots": None,
        "spec": {"budget": {"max_concurrent_trials": most}},
        "created_at": NOW,
        "started_at": None,
        "finished_at": None,
        "archived_at": None,
        "elapsed_s": 0.0,
        "running_since": None,
        "cloned_from": None,
        "version": 1,
        "driver_attempt": 1,
        "revision": 1,
        "exported_revision": 0,
        "mlflow_experiment_id": None,
        "mlflow_run_id": None,
    }
    return Study(**{**fields, **changes})


def reason(
    study: Study,
    *,
    running: int = 0,
    attempt: int = 0,
    state: TrialState = TrialState.PENDING,
    has_controller: bool = True,
    driver_is_silent: bool = False,
) -> str | None:
    waiting = trial(configuration(1), 0, None, state).model_copy(update={"attempt": attempt})
    return pending_reason(study, waiting, Care(running, has_controller, driver_is_silent))


@pytest.mark.parametrize(
    "state", [state for state in TrialState if state not in (TrialState.PENDING, TrialState.PAUSED)]
)
def test_only_what_waits_has_a_reason(state: TrialState) -> None:
    assert reason(a_study(), state=state) is None


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (a_study(StudyState.QUEUED), "its study is queued: it waits for its driver"),
        (a_study(StudyState.QUEUED, waiting_reason="Ray does not answer"), "its study is queued: Ray does not answer"),
        (a_study(StudyState.PAUSED, waiting_reason="paused by its user"), "its study is paused"),
        (a_study(StudyState.STOPPING, intent=Intent.PAUSE), "its study is being paused"),
        (a_study(StudyState.STOPPING, intent=Intent.CANCEL), "its study is being cancelled"),
        (
            a_study(StudyState.STOPPING, intent=Intent.STOP),
            "its study is being stopped: what has not begun is cancelled",
        ),
        (a_study(waiting_reason="no node has a GPU"), "no node has a GPU"),
        (a_study(), "waits for a free worker"),
    ],
)
def test_the_state_of_the_study_comes_first(study: Study, said: str) -> None:
    assert reason(study) == said


def test_without_a_controller_nothing_starts() -> None:
    queued = a_study(StudyState.QUEUED, waiting_reason="waits for its driver")
    assert reason(queued, has_controller=False) == "its study is queued: no controller runs that would start it"
    assert reason(a_study(StudyState.PAUSED), has_controller=False) == "its study is paused"
    assert reason(a_study(), has_controller=False) == "waits for a free worker"


@pytest.mark.parametrize(
    ("study", "done"),
    [
        (a_study(), "replace it"),
        (a_study(most=1, waiting_reason="no node has a GPU"), "replace it"),
        (a_study(StudyState.STOPPING, intent=Intent.STOP), "replace it"),
        (a_study(StudyState.STOPPING, intent=Intent.PAUSE), "pause the study"),
        (a_study(StudyState.STOPPING, intent=Intent.CANCEL), "cancel the study"),
    ],
)
def test_a_driver_that_has_stopped_answering_comes_first(study: Study, done: str) -> None:
    said = "its driver has stopped answering"
    assert (
        reason(study, running=1, driver_is_silent=True)
        == f"{said}; the controller will {done} once the driver's job has ended"
    )
    alone = reason(study, running=1, driver_is_silent=True, has_controller=False)
    assert alone == f"{said}, and no controller runs that would {done}"


def test_a_study_that_has_ended_lacks_nobody() -> None:
    assert reason(a_study(StudyState.CANCELLED), has_controller=False) == "waits for a free worker"


def test_a_limit_is_a_reason_once_it_is_reached() -> None:
    assert reason(a_study(most=2), running=1) == "waits for a free worker"
    assert reason(a_study(most=2), running=2) == "budget.max_concurrent_trials is 2, and 2 train"
    assert reason(a_study(slots=3), running=3) == "its study's share, 3 at a time, is in use"
    assert reason(a_study(slots=0)) == "its study's share is used up: other studies have every slot"


def test_what_the_driver_says_comes_before_a_limit() -> None:
    said = "has reached its target: what trains does so to its end, no other begins"
    assert reason(a_study(slots=1, waiting_reason=said), running=1) == said
    assert reason(a_study(slots=0, waiting_reason="no node has a GPU")) == "no node has a GPU"


def test_of_two_limits_the_lower_one_is_the_reason() -> None:
    assert reason(a_study(most=2, slots=3), running=3) == "budget.max_concurrent_trials is 2, and 3 train"
    assert reason(a_study(most=3, slots=2), running=2) == "its study's share, 2 at a time, is in use"


def test_a_trial_that_has_begun_is_next_whatever_ended_its_last_attempt() -> None:
    """A worker that was lost, a failure that is retried, an end that is taken back: the trial does not tell which."""
    said = reason(a_study(), attempt=2)
    assert said == "attempt 2 has ended; the next one begins as soon as a worker is free"


def test_a_trial_that_has_begun_goes_on_while_its_study_is_being_stopped() -> None:
    said = reason(a_study(StudyState.STOPPING, intent=Intent.STOP), attempt=1)
    assert said == "attempt 1 has ended; the next one begins as soon as a worker is free"


def test_what_has_not_begun_is_cancelled_also_where_the_driver_that_stops_its_study_was_lost() -> None:
    lost = "its driver was lost; a new one is being started"
    study = a_study(StudyState.QUEUED, intent=Intent.STOP, waiting_reason=lost)
    assert reason(study) == "its study is being stopped: what has not begun is cancelled"
    assert reason(study, attempt=1) == f"its study is queued: {lost}"
    said = "its study is queued: no controller runs that would start it"
    assert reason(study, has_controller=False) == reason(study, attempt=1, has_controller=False) == said
    assert waiting_reason(study, Care(0, has_controller=True, driver_is_silent=False)) == f"its study is queued: {lost}"
