"""The words of the service: studies, configurations, trials, attempts, results, and the states they pass through."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from service.errors import InvalidTransitionError

Scalar = bool | int | float | str
"""A value of a search-space parameter on the wire."""


class StudyState(StrEnum):
    """QUEUED → RUNNING → SUCCEEDED | FAILED | CANCELLED, with PAUSED and STOPPING between.

    STOPPING: what still runs is being brought to where `Study.intent` wants it: paused, drained or cancelled.
    A study that has ended goes back to QUEUED when its budget is raised or its failed trials are retried.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED)

    @property
    def has_driver(self) -> bool:
        return self in (StudyState.RUNNING, StudyState.STOPPING)


DRIVEN_STATES = tuple(state for state in StudyState if state.has_driver)
"""The states of a study that a driver has."""


class Reason(StrEnum):
    """Why a study ended."""

    TARGET_REACHED = "TARGET_REACHED"
    MAX_TRIALS = "MAX_TRIALS"
    SPACE_EXHAUSTED = "SPACE_EXHAUSTED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    TOO_MANY_FAILURES = "TOO_MANY_FAILURES"
    DRIVER_FAILED = "DRIVER_FAILED"
    USER = "USER"


class TrialState(StrEnum):
    """PENDING → RUNNING → one of the final four.

    Back to PENDING when an attempt is lost, PAUSED with its study in between; a retried or reopened trial is PENDING
    again.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    EARLY_STOPPED = "EARLY_STOPPED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self not in OPEN_TRIAL_STATES


OPEN_TRIAL_STATES = (TrialState.PENDING, TrialState.RUNNING, TrialState.PAUSED)
"""The states of a trial that has not ended."""


class AttemptState(StrEnum):
    """How one execution of a trial ended; LOST when its worker, node or driver went away."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    EARLY_STOPPED = "EARLY_STOPPED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


class Intent(StrEnum):
    """What the user wants of a study; the controller and the driver make it so.

    PAUSE: no new trials, the running ones save their state and leave. STOP: no new trials, the running ones end.
    CANCEL: everything ends now.
    """

    RUN = "RUN"
    PAUSE = "PAUSE"
    STOP = "STOP"
    CANCEL = "CANCEL"


class Origin(StrEnum):
    """Where a configuration comes from: the search algorithm, or a user who enqueued the point."""

    SEARCH = "SEARCH"
    USER = "USER"


class Purpose(StrEnum):
    """What a trial is for: the search learns from SEARCH; CONFIRM runs the best again on seeds the search never saw."""

    SEARCH = "SEARCH"
    CONFIRM = "CONFIRM"


_STUDY_TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset(set(StudyState) - {StudyState.QUEUED}),
    StudyState.RUNNING: frozenset(set(StudyState) - {StudyState.RUNNING, StudyState.PAUSED}),
    StudyState.STOPPING: frozenset(set(StudyState) - {StudyState.STOPPING}),
    StudyState.PAUSED: frozenset({StudyState.QUEUED, StudyState.SUCCEEDED, StudyState.CANCELLED}),
    StudyState.SUCCEEDED: frozenset({StudyState.QUEUED}),
    StudyState.FAILED: frozenset({StudyState.QUEUED}),
    StudyState.CANCELLED: frozenset({StudyState.QUEUED}),
}

_TRIAL_TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.PENDING: frozenset({TrialState.RUNNING, TrialState.CANCELLED, TrialState.FAILED}),
    TrialState.RUNNING: frozenset(set(TrialState) - {TrialState.RUNNING}),
    TrialState.PAUSED: frozenset({TrialState.RUNNING, TrialState.CANCELLED, TrialState.FAILED}),
    TrialState.FAILED: frozenset({TrialState.PENDING}),
    TrialState.CANCELLED: frozenset({TrialState.PENDING}),
}


def check_study_transition(old: StudyState, new: StudyState) -> None:
    """Raises InvalidTransitionError where a study cannot go from `old` to `new`."""
    if new not in _STUDY_TRANSITIONS[old]:
        raise InvalidTransitionError(f"a study that is {old} cannot become {new}")


def check_trial_transition(old: TrialState, new: TrialState) -> None:
    """Raises InvalidTransitionError where a trial cannot go from `old` to `new`."""
    if new not in _TRIAL_TRANSITIONS.get(old, frozenset()):
        raise InvalidTransitionError(f"a trial that is {old} cannot become {new}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Study(_Record):
    """One spec, one owner, one budget."""

    id: str
    name: str
    description: str
    owner: str
    labels: dict[str, str]
    state: StudyState
    intent: Intent = Field(description="what the user asked for last")
    reason: Reason | None = Field(description="why it ended")
    error: str | None = Field(description="what went wrong, where something did")
    waiting_reason: str | None = Field(description="why nothing happens, in plain words, where nothing does")
    slots: int | None = Field(description="its share: trials that may train at once; null while it shares with nobody")
    spec: dict[str, Any] = Field(description="the study spec as it was accepted, defaults filled in")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    archived_at: datetime | None = Field(description="when it was put out of sight; null: it is listed")
    elapsed_s: float = Field(description="seconds that earlier drivers have spent on it, awake")
    running_since: datetime | None = Field(description="when its present driver was started; null where it has none")
    cloned_from: str | None = Field(description="the study whose spec this one took over")
    version: int = Field(description="grows with every change that a user makes; its ETag")
    driver_attempt: int = Field(description="number of its last driver; a restored backup goes on far ahead")
    revision: int = Field(description="grows with every change to the study or its trials")
    exported_revision: int = Field(description="the revision that MLflow shows")
    mlflow_experiment_id: str | None
    mlflow_run_id: str | None = Field(description="the parent run")

    @computed_field(description="whether MLflow shows the study as it is now")  # type: ignore[prop-decorator]
    @property
    def is_exported(self) -> bool:
        return self.revision == self.exported_revision


class Configuration(_Record):
    """One point of the search space."""

    id: str
    study_id: str
    number: int = Field(description="1, 2, … in the order in which they were proposed or enqueued")
    point: dict[str, Scalar]
    origin: Origin
    created_at: datetime


class Trial(_Record):
    """A configuration and a seed."""

    id: str
    study_id: str
    configuration_id: str
    number: int = Field(description="1, 2, … within the study")
    seed: int
    purpose: Purpose
    state: TrialState
    attempt: int = Field(description="number of the current or last attempt; 0 before the first")
    epochs_done: int
    metrics: dict[str, float] = Field(description="of the last epoch that was reported")
    objective: float | None = Field(description="what this trial says of the study's objective, once it ended")
    error: str | None = Field(description="the traceback of a failed trial")
    note: str | None = Field(
        description="why it was stopped early: which value, against how many others, or where its training diverged"
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    mlflow_run_id: str | None


class Attempt(_Record):
    """One execution of a trial."""

    trial_id: str
    number: int
    driver_attempt: int
    state: AttemptState
    node: str | None
    error: str | None
    warning: str | None = Field(
        None, description="the last thing that went wrong without ending it, such as a checkpoint that was not written"
    )
    started_at: datetime
    finished_at: datetime | None = Field(
        description="the last sign of life of its driver, where it was lost with that: its training had ended by then"
    )


class Result(_Record):
    """What one epoch of a trial reported. The first attempt to report an epoch is the one that counts."""

    trial_id: str
    epoch: int
    attempt: int
    metrics: dict[str, float]
    recorded_at: datetime


class Event(_Record):
    """One thing that happened to a study; ids grow, so that a reader can resume after the last one seen."""

    id: int
    study_id: str
    trial_id: str | None
    kind: str = Field(description="such as study.state, trial.state, driver.lost, driver.slept or study.restored")
    data: dict[str, Any]
    at: datetime
