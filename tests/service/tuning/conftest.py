"""Specs, and what a store's snapshot of a study looks like, without a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.spec import StudySpec, parse_spec
from service.store.driving import NewConfigurationsError
from service.store.snapshots import EpochValue, StudySnapshot
from service.study import Configuration, Intent, Origin, Purpose, Study, StudyState, Trial, TrialState

START = datetime(2026, 1, 1, tzinfo=UTC)


class RecordedStudy:
    """What a study's store holds: configurations, trials, results in order; it is a ConfigurationLog too."""

    def __init__(self) -> None:
        self.configurations: list[Configuration] = []
        self.trials: dict[str, Trial] = {}
        self.epoch_values: list[EpochValue] = []
        self.lost_attempts: dict[str, int] = {}
        self.trained_s: dict[str, float] = {}
        self.attempts_s = 0.0
        self.elapsed_s = 0.0
        self.starting_s = 0.0
        self.intent = Intent.RUN
        self.failures: list[Exception] = []

    def add_configuration(
        self, point: dict[str, Any], point_key: str, seeds: Sequence[int], *, last_known: int | None = None
    ) -> tuple[Configuration, list[Trial]]:
        if self.failures:
            raise self.failures.pop()
        number = len(self.configurations) + 1
        if last_known not in (None, number - 1):
            raise NewConfigurationsError(f"there are configurations after number {last_known}")
        configuration = Configuration(
            id=f"s-{number}",
            study_id="s",
            number=number,
            point=point,
            origin=Origin.SEARCH,
            created_at=START,
        )
        self.configurations.append(configuration)
        trials = [self._trial(configuration, seed) for seed in seeds]
        return configuration, trials

    def add_confirming_trials(self, configuration_id: str, seeds: Sequence[int]) -> list[Trial]:
        (configuration,) = [one for one in self.configurations if one.id == configuration_id]
        return [self._trial(configuration, seed, Purpose.CONFIRM) for seed in seeds]

    def configurations_after(self, number: int) -> list[tuple[Configuration, list[Trial]]]:
        return [
            (one, [trial for trial in self.trials.values() if trial.configuration_id == one.id])
            for one in self.configurations
            if one.number > number
        ]

    def change(self, trial_id: str, **values: Any) -> None:
        self.trials[trial_id] = self.trials[trial_id].model_copy(update=values)

    def end(self, trial_id: str, objective: float | None, state: TrialState = TrialState.SUCCEEDED) -> None:
        self.change(trial_id, state=state, objective=objective, attempt=self.trials[trial_id].attempt or 1)

    def report(self, trial_id: str, epoch: int, value: float) -> None:
        self.change(trial_id, epochs_done=epoch, metrics={"val_accuracy": value})
        self.epoch_values.append(EpochValue(trial_id, epoch, value))

    def snapshot(self) -> StudySnapshot:
        study = Study(
            id="s",
            name="s",
            description="",
            owner="ada",
            labels={},
            state=StudyState.RUNNING,
            intent=self.intent,
            reason=None,
            error=None,
            waiting_reason=None,
            spec={},
            created_at=START,
            started_at=START,
            finished_at=None,
            archived_at=None,
            elapsed_s=self.elapsed_s,
            running_since=START - timedelta(seconds=self.starting_s),
            cloned_from=None,
            slots=None,
            version=1,
            driver_attempt=1,
            revision=1,
            exported_revision=0,
            mlflow_experiment_id=None,
            mlflow_run_id=None,
        )
        trials = list(self.trials.values())
        return StudySnapshot(
            study,
            list(self.configurations),
            trials,
            list(self.epoch_values),
            dict(self.lost_attempts),
            dict(self.trained_s),
            self.attempts_s,
            START,
        )

    def _trial(self, configuration: Configuration, seed: int, purpose: Purpose = Purpose.SEARCH) -> Trial:
        trial = Trial(
            id=f"{configuration.id}-{seed}",
            study_id="s",
            configuration_id=configuration.id,
            number=len(self.trials) + 1,
            seed=seed,
            purpose=purpose,
            state=TrialState.PENDING,
            attempt=0,
            epochs_done=0,
            metrics={},
            objective=None,
            error=None,
            note=None,
            created_at=START,
            started_at=None,
            finished_at=None,
            mlflow_run_id=None,
        )
        self.trials[trial.id] = trial
        return trial


@pytest.fixture
def recorded() -> RecordedStudy:
    return RecordedStudy()


@pytest.fixture(scope="session")
def new_recording() -> type[RecordedStudy]:
    return RecordedStudy


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., StudySpec]:
    def make(**changes: Any) -> StudySpec:
        objective = {"metric": "val_accuracy", "mode": "max"}
        return parse_spec({"name": "s", "search_space": "paper_lambda_rho", "objective": objective, **changes})

    return make
