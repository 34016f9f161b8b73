"""Results of studies as a service would answer them, made up by a formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from service.analysis.aggregation import aggregate
from service.reproduction.experiment import StudyResults
from service.spec import StudySpec
from service.study import (
    Configuration,
    Intent,
    Origin,
    Purpose,
    Reason,
    Result,
    Scalar,
    Study,
    StudyState,
    Trial,
    TrialState,
)

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)

Metrics = Callable[[Mapping[str, Scalar], int, int], dict[str, float]]
"""What a trial reports: of its point, its seed and the epoch."""


def made_up(
    spec: StudySpec,
    metrics: Metrics,
    *,
    epochs: range,
    failed: Callable[[Mapping[str, Scalar], int], bool] = lambda _point, _seed: False,
) -> StudyResults:
    """The whole grid of the spec as it would have ended, reported at these epochs."""
    configurations, trials, results = [], [], {}
    for number, point in enumerate(spec.space.grid(), 1):
        configuration = Configuration(
            id=f"s-{number}", study_id="s", number=number, point=point, origin=Origin.SEARCH, created_at=NOW
        )
        configurations.append(configuration)
        for seed in spec.replicates.seeds:
            trial = _trial(configuration, seed, len(trials) + 1, is_failed=failed(point, seed))
            reported = tuple(
                Result(trial_id=trial.id, epoch=epoch, attempt=1, metrics=metrics(point, seed, epoch), recorded_at=NOW)
                for epoch in epochs
            )
            results[trial.id] = reported
            last = reported[-1].metrics
            trials.append(trial.model_copy(update={"metrics": last, "objective": last.get(spec.objective.metric)}))
    return StudyResults(_study(spec), tuple(aggregate(configurations, trials)), tuple(trials), results)


def _trial(of: Configuration, seed: int, number: int, *, is_failed: bool) -> Trial:
    return Trial(
        id=f"{of.id}-{seed}",
        study_id="s",
        configuration_id=of.id,
        number=number,
        seed=seed,
        purpose=Purpose.SEARCH,
        state=TrialState.FAILED if is_failed else TrialState.SUCCEEDED,
        attempt=1,
        epochs_done=1,
        metrics={},
        objective=None,
        error=None,
        note=None,
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=30),
        mlflow_run_id=None,
    )


def _study(spec: StudySpec) -> Study:
    return Study(
        id="s",
        name=spec.name,
        description="",
        owner="local",
        labels={},
        state=StudyState.SUCCEEDED,
        intent=Intent.RUN,
        reason=Reason.SPACE_EXHAUSTED,
        error=None,
        waiting_reason=None,
        slots=None,
        spec=spec.to_mapping(),
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW + timedelta(minutes=5),
        archived_at=None,
        elapsed_s=300.0,
        running_since=None,
        cloned_from=None,
        version=1,
        driver_attempt=1,
        revision=1,
        exported_revision=1,
        mlflow_experiment_id=None,
        mlflow_run_id=None,
    )
