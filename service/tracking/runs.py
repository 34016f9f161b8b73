"""What the runs of a study hold: the parent run for the study, a child run for each trial that has started."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from service.analysis.aggregation import ConfigurationResult, Summary, best
from service.analysis.labelling import lost_confirmation, point_label, value_label
from service.spec import StudySpec
from service.store.exporting import TrialBacklog
from service.study import Configuration, Scalar, Study, StudyState, Trial, TrialState
from service.tracking import limits
from service.tracking.limits import MetricPoint, RunContent
from service.tracking.summary import summary
from trainers.config import InvalidTrainConfigError

STUDY_ID, TRIAL_ID = "samstudy.study_id", "samstudy.trial_id"
"""The tags by which a run is known again, whatever the store remembers of it."""

_LABEL, _BEST = "samstudy.label.", "best."
_ERROR, _OBJECTIVE, _NOTE = "samstudy.error", "samstudy.objective", "samstudy.note"

RunStatus = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]

_STUDY_STATUS: dict[StudyState, RunStatus] = {
    StudyState.QUEUED: "SCHEDULED",
    StudyState.RUNNING: "RUNNING",
    StudyState.PAUSED: "SCHEDULED",
    StudyState.STOPPING: "RUNNING",
    StudyState.SUCCEEDED: "FINISHED",
    StudyState.FAILED: "FAILED",
    StudyState.CANCELLED: "KILLED",
}
_TRIAL_STATUS: dict[TrialState, RunStatus] = {
    TrialState.PENDING: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.PAUSED: "SCHEDULED",
    TrialState.SUCCEEDED: "FINISHED",
    TrialState.EARLY_STOPPED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.CANCELLED: "KILLED",
}
_MUTABLE = ("name", "description", "labels", "budget", "confirm")
"""Parts of a spec that are tags of the run, or may change: MLflow's parameters may not."""


def study_status(study: Study) -> RunStatus:
    """The study's state in MLflow's words; the tag samstudy.state has it exactly."""
    return _STUDY_STATUS[study.state]


def trial_status(trial: Trial) -> RunStatus:
    """The trial's state in MLflow's words; EARLY_STOPPED is FINISHED there, and exact in the tag samstudy.state."""
    return _TRIAL_STATUS[trial.state]


def study_run_name(study: Study) -> str:
    """The study's name and the beginning of its id, because names come back."""
    return limits.text(f"{study.name} {study.id[:6]}", limits.MAX_RUN_NAME)


def trial_run_name(trial: Trial, configuration: Configuration) -> str:
    """The point and the seed, such as λ=0.5 ρ=0.1 sampling=uniform seed=0."""
    return limits.text(f"{point_label(configuration.point)} seed={trial.seed}", limits.MAX_RUN_NAME)


def study_identity(study: Study) -> dict[str, str]:
    """The tags that a parent run is born with."""
    return {STUDY_ID: study.id, **_source(study)}


def trial_identity(study: Study, trial: Trial, parent_run_id: str) -> dict[str, str]:
    """The tags that a child run is born with."""
    return {STUDY_ID: study.id, TRIAL_ID: trial.id, "mlflow.parentRunId": parent_run_id, **_source(study)}


def study_params(spec: StudySpec) -> dict[str, str]:
    """The spec, flat: train.lr, search_space.rho, objective.metric, … without what may change later."""
    plain = {name: value for name, value in spec.to_mapping().items() if name not in _MUTABLE}
    return {limits.key(name): limits.text(value, limits.MAX_PARAM) for name, value in _flat(plain)}


def study_content(study: Study, spec: StudySpec, results: Sequence[ConfigurationResult]) -> RunContent:
    """The parent run as the study stands: tags, and once it has ended the metrics of its best configuration."""
    winner = best(results, spec.objective.mode)
    counts = {state: sum(result.trial_states.get(state, 0) for result in results) for state in TrialState}
    tags = {
        "samstudy.state": study.state.value,
        "samstudy.reason": study.reason.value if study.reason else "",
        "samstudy.owner": study.owner,
        "samstudy.metric": spec.objective.metric,
        "samstudy.configurations": str(len(results)),
        **{f"samstudy.trials.{state.value.lower()}": str(count) for state, count in counts.items()},
        **{f"{_LABEL}{name}": value for name, value in study.labels.items()},
        "mlflow.note.content": summary(study, spec, results),
    }
    if study.error:
        tags[_ERROR] = limits.last_lines(study.error)
    if winner:
        point = {name: winner.configuration.point.get(name) for name in spec.space.parameters}
        tags |= {f"{_BEST}{name}": _exact(value) for name, value in point.items()}
        tags[f"{_BEST}configuration"] = str(winner.configuration.number)
        tags[f"{_BEST}by"] = "confirmed" if winner.confirmed else "search"
        if lost := lost_confirmation(winner):
            tags[f"{_BEST}confirmation"] = lost
    metrics = _best_metrics(winner, study.finished_at) if winner and study.finished_at else []
    return RunContent(tags=_clean(tags), metrics=metrics)


def _exact(value: Scalar | None) -> str:
    """A parameter's value, to be copied; a dash for one that is inactive."""
    return f"{value:.12g}" if isinstance(value, float) else value_label(value)


def trial_params(trial: Trial, configuration: Configuration, spec: StudySpec) -> dict[str, str]:
    """The whole training configuration of the trial, by its names on the wire."""
    try:
        values: Mapping[str, Scalar] = spec.train_config(configuration.point, trial.seed).to_mapping()
    except InvalidTrainConfigError:
        values = {**spec.train, **configuration.point, "seed": trial.seed}
    return {limits.key(name): limits.text(str(value), limits.MAX_PARAM) for name, value in values.items()}


def identifying(configuration: Configuration) -> list[str]:
    """The names among a trial's parameters that tell it from the study's other trials: the point and the seed."""
    return [limits.key(name) for name in (*configuration.point, "seed")]


def trial_content(study: Study, item: TrialBacklog, parent_run_id: str) -> RunContent:
    """The child run as the trial stands: its tags, and the epochs that MLflow does not have yet."""
    trial = item.trial
    tags = {
        **trial_identity(study, trial, parent_run_id),  # again: the parent run may have been made anew
        "samstudy.configuration_id": trial.configuration_id,
        "samstudy.configuration": str(item.configuration.number),
        "samstudy.trial": str(trial.number),
        "samstudy.seed": str(trial.seed),
        "samstudy.purpose": trial.purpose.value,
        "samstudy.state": trial.state.value,
        "samstudy.attempt": str(trial.attempt),
    }
    if trial.objective is not None:
        tags[_OBJECTIVE] = repr(trial.objective)
    if trial.note:
        tags[_NOTE] = trial.note
    if trial.error:
        tags[_ERROR] = limits.last_lines(trial.error)
    metrics = [
        MetricPoint(limits.key(name), value, result.epoch, milliseconds(result.recorded_at))
        for result in item.results
        for name, value in result.metrics.items()
    ]
    return RunContent(tags=_clean(tags), metrics=metrics)


def passing_study_tags(names: Iterable[str], spec: StudySpec) -> frozenset[str]:
    """The names among these tags that a parent run loses again where the study has them no more, such as labels."""
    known = (*spec.space.parameters, "configuration", "by", "confirmation")
    ours = {_ERROR, *(limits.key(f"{_BEST}{name}") for name in known)}
    return frozenset(name for name in names if name in ours or name.startswith(_LABEL))


def passing_trial_tags(names: Iterable[str]) -> frozenset[str]:
    """The names among these tags that a child run loses again where the trial has them no more."""
    return frozenset(names) & {_ERROR, _OBJECTIVE, _NOTE}


def summary_metrics(results: Iterable[ConfigurationResult]) -> frozenset[str]:
    """The names of all metrics that the parent run can have: whichever of its configurations were the best."""
    names = {"objective", "objective_confirmed"}
    for result in results:
        names |= {*result.metrics, *_confirmed_metrics(result)}
    return frozenset(limits.key(f"{name}_{what}") for name in names for what in ("mean", "n", "std"))


def milliseconds(moment: datetime) -> int:
    """The moment as MLflow counts time."""
    return round(moment.timestamp() * 1000)


def _source(study: Study) -> dict[str, str]:
    return {"mlflow.source.name": "samstudy", "mlflow.source.type": "JOB", "mlflow.user": limits.text(study.owner)}


def _best_metrics(winner: ConfigurationResult, at: datetime) -> list[MetricPoint]:
    summaries = {**winner.metrics, **_confirmed_metrics(winner)}
    if winner.objective:
        summaries["objective"] = winner.objective
    if winner.confirmed:
        summaries["objective_confirmed"] = winner.confirmed
    values: dict[str, float] = {}
    for name, known in summaries.items():
        values |= {f"{name}_mean": known.mean, f"{name}_n": float(known.n)}
        if known.std is not None:
            values[f"{name}_std"] = known.std
    at_ms = milliseconds(at)
    return [MetricPoint(limits.key(name), value, 0, at_ms) for name, value in values.items() if math.isfinite(value)]


def _confirmed_metrics(result: ConfigurationResult) -> dict[str, Summary]:
    """What stands beside the metrics of the search, by the names that it has there."""
    return {f"{name}_confirmed": known for name, known in result.confirmed_metrics.items()}


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    return {limits.key(name): limits.text(value) for name, value in tags.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings by dotted names; a parameter of the search space stays one JSON text."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and prefix != "search_space.":
            pairs += _flat(value, f"{path}.")
        else:
            pairs.append((path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs
