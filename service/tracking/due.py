"""When something is written to MLflow: what has ended at once, what runs now and then."""

from __future__ import annotations

from dataclasses import dataclass

from service.store.exporting import StudyBacklog, TrialBacklog
from service.study import Study, Trial, TrialState


@dataclass(frozen=True, slots=True)
class Due:
    """What is due of one study's backlog.

    trials: to be written now. unseen: trials that have no run because they never started; nothing to write.
    study: whether the parent run is due. catches_up: whether MLflow shows the whole study once all of it is written.
    """

    trials: list[TrialBacklog]
    unseen: list[TrialBacklog]
    study: bool
    catches_up: bool


def due(
    backlog: StudyBacklog,
    *,
    max_trials: int,
    study_age_s: float | None,
    study_interval_s: float,
    trial_ages_s: dict[str, float],
    min_interval_s: float,
) -> Due:
    """What to write now.

    max_trials: how many trials the backlog was read with; one that has as many may not be all of it.
    study_age_s, trial_ages_s: seconds since this process last wrote the parent run, and each trial's run; None, and
    no entry, where it has not. What has ended and what is new is due at once, the rest every `min_interval_s`, the
    parent run every `study_interval_s`.
    """
    unseen = [item for item in backlog.trials if not has_run(item.trial)]
    seen = [item for item in backlog.trials if has_run(item.trial)]
    ready = [
        item
        for item in seen
        if item.trial.state.is_final or trial_ages_s.get(item.trial.id, min_interval_s) >= min_interval_s
    ]
    whole = len(ready) == len(seen) and len(backlog.trials) < max_trials
    aged = study_age_s is None or study_age_s >= study_interval_s
    study = whole if backlog.study.state.is_final else aged
    return Due(trials=ready, unseen=unseen, study=study, catches_up=whole and study)


def has_run(trial: Trial) -> bool:
    """Whether a trial is shown in MLflow: once it has started, or has failed before it could; what is shown stays."""
    return trial.attempt > 0 or trial.state is TrialState.FAILED or trial.mlflow_run_id is not None


def has_parent_run(study: Study) -> bool:
    """Whether a study is shown in MLflow: once it has started, or has ended before it could; what is shown stays."""
    return study.started_at is not None or study.state.is_final or study.mlflow_run_id is not None
