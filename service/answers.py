"""What the API answers beyond the words of study.py and the analysis; the client reads the same models back."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from search_spaces import SearchSpace
from service.analysis.aggregation import ConfigurationResult, Summary
from service.analysis.comparison import Comparison
from service.study import Attempt, Result, Study, Trial, TrialState
from trainers.catalog import DatasetFacts, ModelFacts

STREAM_END = "stream.end"
"""Name of the last server-sent event of a study that has ended; it has no id and is no event of the study."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StudyOverview(Study):
    """A study as a list shows it."""

    trial_counts: dict[TrialState, int] = Field(description="how many trials are in each state that occurs")


class Progress(_Answer):
    """How far a study has come. Planned numbers are the most there will be: a study may end earlier."""

    trials_done: int = Field(description="trials in a final state")
    trials_planned: int | None = Field(description="null where this version cannot tell")
    epochs_done: int
    epochs_planned: int | None = Field(description="null where the search space varies the epochs")


class StudyDetail(StudyOverview):
    """A study, how far it has come, and the best that it has found."""

    progress: Progress
    best: ConfigurationResult | None = Field(description="the best of the configurations whose trials all succeeded")
    mlflow_url: str | None = Field(description="the study's parent run in MLflow; null until it is there")


class StudyList(_Answer):
    """One page of studies, newest first."""

    studies: list[StudyOverview]
    next_page_token: str | None = Field(description="page_token of the next page; null on the last one")


class ConfigurationList(_Answer):
    """The configurations of a study with their results over seeds."""

    configurations: list[ConfigurationResult]


class BestConfiguration(_Answer):
    """What a study has found."""

    metric: str
    mode: Literal["max", "min"]
    best: ConfigurationResult | None = Field(description="null until all trials of some configuration have succeeded")


class TrialList(_Answer):
    """Trials in the order of their numbers."""

    trials: list[Trial]


class TrialDetail(Trial):
    """A trial and every execution of it."""

    attempts: list[Attempt]


class ResultList(_Answer):
    """What a trial has reported, one entry for each epoch."""

    results: list[Result]


class ComparedStudy(_Answer):
    """A study's side of a comparison."""

    study_id: str
    name: str
    configuration: ConfigurationResult | None = Field(description="its best; null where there is none yet")
    by_seed: dict[int, float] = Field(description="the metric of that configuration's trials")
    summary: Summary | None = Field(description="of these values; null where there are none")


class StudyDifference(Comparison):
    """How study `a` differs from study `b`."""

    a: str
    b: str
    p_adjusted: float | None = Field(description="the p value after Holm's correction for all comparisons here")


class StudyComparison(_Answer):
    """The best configurations of several studies, each later one against the first."""

    metric: str
    studies: list[ComparedStudy]
    differences: list[StudyDifference]


class SearchSpaceAnswer(_Answer):
    """A named search space."""

    name: str
    description: str
    space: SearchSpace
    size: int | None = Field(description="how many points it has; null for a continuum")


class SearchSpaceList(_Answer):
    """Every named search space."""

    search_spaces: list[SearchSpaceAnswer]


class ModelList(_Answer):
    """What can be trained."""

    models: list[ModelFacts]


class DatasetList(_Answer):
    """What it can be trained on."""

    datasets: list[DatasetFacts]


class Status(_Answer):
    """Whether the service is well."""

    status: Literal["ok"] = "ok"


class ProblemField(_Answer):
    """One thing wrong with a request."""

    field: str = Field(description="its path, such as search_space.rho.low")
    message: str = Field(description="the rule that is broken")


class Problem(_Answer):
    """Why a request was not carried out (RFC 9457)."""

    type: str = Field(description="urn:samstudy:problem:<code>")
    title: str = Field(description="the same for every occurrence")
    status: int
    detail: str
    code: str = Field(description="stable, for programs")
    errors: list[ProblemField] = Field(description="every field that is wrong, where fields are")
    request_id: str | None = Field(None, description="finds this request in the service's log")
