"""Why a trial waits, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from service.study import Intent, Study, StudyState, Trial, TrialState

_BEGINS_NOTHING = "its study is being stopped: what has not begun is cancelled"


@dataclass(frozen=True, slots=True)
class Care:
    """Who looks after a study at this moment.

    running: how many of its trials train. has_controller: whether a controller leads, which starts studies and replaces
    drivers. driver_is_silent: whether the study has a driver whose lease ran out.
    """

    running: int
    has_controller: bool
    driver_is_silent: bool


def pending_reason(study: Study, trial: Trial, care: Care) -> str | None:
    """Why a PENDING or PAUSED trial of the study does not train; None for any other trial."""
    if trial.state not in (TrialState.PENDING, TrialState.PAUSED):
        return None
    begun = trial.attempt > 0
    if study.state is StudyState.QUEUED and study.intent is Intent.STOP and not begun:
        return missing_care(study, care) or _BEGINS_NOTHING
    reason = waiting_reason(study, care, begun=begun)
    if reason is not None:
        return reason
    if trial.state is TrialState.PENDING and begun:  # it was lost, or is retried, or its study goes on after its end
        return f"attempt {trial.attempt} has ended; the next one begins as soon as a worker is free"
    return "waits for a free worker"


def waiting_reason(study: Study, care: Care, *, begun: bool = False) -> str | None:
    """Why trials of the study that have not ended wait; None where only the next free worker is missing.

    begun: whether it is about a trial that has had an attempt.
    """
    if study.state.is_final:
        return None
    if missing := missing_care(study, care):
        return missing
    match study.state:
        case StudyState.PAUSED:
            return "its study is paused"
        case StudyState.QUEUED:
            return f"its study is queued: {study.waiting_reason or 'it waits for its driver'}"
        case StudyState.STOPPING if study.intent is Intent.PAUSE:
            return "its study is being paused"
        case StudyState.STOPPING if study.intent is Intent.CANCEL:
            return "its study is being cancelled"
        case StudyState.STOPPING if study.intent is Intent.STOP and not begun:
            return _BEGINS_NOTHING
    return study.waiting_reason or _limit(study, care.running)


def missing_care(study: Study, care: Care) -> str | None:
    """Who the study lacks, without whom nothing of it goes on; None where it lacks nobody."""
    if study.state is StudyState.QUEUED and not care.has_controller:
        return "its study is queued: no controller runs that would start it"
    if not care.driver_is_silent:
        return None
    then = {Intent.PAUSE: "pause the study", Intent.CANCEL: "cancel the study"}.get(study.intent, "replace it")
    if care.has_controller:
        return f"its driver has stopped answering; the controller will {then} once the driver's job has ended"
    return f"its driver has stopped answering, and no controller runs that would {then}"


def _limit(study: Study, running: int) -> str | None:
    """The limit on trials at once that the study has reached; the lower one where it has two."""
    most = study.spec.get("budget", {}).get("max_concurrent_trials")
    if study.slots is not None and running >= study.slots and (most is None or study.slots <= most):
        if study.slots == 0:  # were it that no node could hold a trial of it, its driver would say so
            return "its study's share is used up: other studies have every slot"
        return f"its study's share, {study.slots} at a time, is in use"
    if most is not None and running >= most:
        return f"budget.max_concurrent_trials is {most}, and {running} train"
    return None
