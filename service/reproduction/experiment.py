"""What an experiment is: studies, and the report that is made of their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from search_spaces import scalar_key
from service.analysis.aggregation import ConfigurationResult
from service.spec import StudySpec, accepted_spec
from service.study import Result, Scalar, Study, Trial, TrialState
from trainers.catalog import facts_of


@dataclass(frozen=True, slots=True)
class StudyResults:
    """A study that has ended and everything that it found. results: of each trial, by its id, epoch by epoch."""

    study: Study
    configurations: tuple[ConfigurationResult, ...]
    trials: tuple[Trial, ...]
    results: Mapping[str, tuple[Result, ...]]

    def spec(self) -> StudySpec:
        """The spec as the service accepted it."""
        return accepted_spec(self.study.spec)

    def configuration(self, point: Mapping[str, Scalar]) -> ConfigurationResult | None:
        """The first configuration that has these values of these parameters."""
        wanted = {name: scalar_key(value) for name, value in point.items()}
        for result in self.configurations:
            values = {name: scalar_key(value) for name, value in result.configuration.point.items()}
            if wanted.items() <= values.items():
                return result
        return None

    def runs(
        self, of: ConfigurationResult, metric: str, *, start: float | None = None
    ) -> dict[int, dict[float, float]]:
        """The metric of each trial that succeeded, by seed, and by the number of steps after which it was measured.

        start: its value before the first step, where that is known.
        """
        values = self.spec().train_config(of.configuration.point, seed=0).to_mapping()
        steps_per_epoch = -(-facts_of(values).train_size // int(values["batch_size"]))
        runs = {}
        for trial in self._succeeded(of):
            run = {} if start is None else {0.0: start}
            for result in self.results[trial.id]:
                if metric in result.metrics:
                    run[float(result.epoch * steps_per_epoch)] = result.metrics[metric]
            if len(run) > (start is not None):
                runs[trial.seed] = run
        return runs

    def last(self, of: ConfigurationResult, metric: str) -> dict[int, float]:
        """The metric's value at the end of each trial that succeeded with a finite one, by seed."""
        values = {trial.seed: trial.metrics.get(metric, math.nan) for trial in self._succeeded(of)}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    @property
    def not_succeeded(self) -> int:
        """How many trials ended otherwise."""
        return sum(trial.state is not TrialState.SUCCEEDED for trial in self.trials)

    @property
    def ended_at(self) -> datetime:
        """When the study ended."""
        return self.study.finished_at or self.study.created_at

    def _succeeded(self, of: ConfigurationResult) -> list[Trial]:
        found = [trial for trial in self.trials if trial.configuration_id == of.configuration.id]
        return [trial for trial in found if trial.state is TrialState.SUCCEEDED]


@dataclass(frozen=True, slots=True)
class Report:
    """What an experiment found. body: Markdown that names the files beside it. files: pictures and pages, by name."""

    body: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Experiment:
    """One figure or table of the paper.

    name: of its files. about: Markdown, what was run and what the paper says of it. studies: by the part they play.
    report: a pure function of the studies' results, by part. extent: how much of the published setting it is, with
    what is left out, in words.
    """

    name: str
    title: str
    about: str
    studies: Mapping[str, StudySpec]
    report: Callable[[Mapping[str, StudyResults]], Report]
    extent: str = "a setting of its own"
