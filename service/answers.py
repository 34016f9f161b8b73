"""What the API answers beyond the words of study.py and the analysis; the client reads the same models back."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from search_spaces import Point, SearchSpace
from service.access import ApiKey
from service.analysis.aggregation import ConfigurationResult, Summary
from service.analysis.comparison import Comparison
from service.analysis.importances import ImportanceMethod
from service.spec_sections import Mode
from service.study import Attempt, Result, Study, Trial, TrialState
from service.webhook import Delivery, Webhook
from trainers.facts import DatasetFacts, ModelFacts

STREAM_END = "stream.end"
"""Name of the last server-sent event of a study that has ended; it has no id and is no event of the study."""


StudySortOrder = Literal["-created_at", "created_at", "name", "-name"]
"""A minus begins with the last: -created_at is the newest first."""

ConfigurationSortOrder = Literal["number", "-number", "objective"]
"""objective: the best mean of the search trials first, of the complete configurations before those that lack a seed."""

TrialSortOrder = Literal["number", "-number"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StudyOverview(Study):
    """A study as a list shows it."""

    trial_counts: dict[TrialState, int] = Field(description="how many trials are in each state that occurs")
    trials_planned: int | None = Field(
        None, description="the most there will be, those that are there included; null where this version cannot tell"
    )


class Progress(_Answer):
    """How far a study has come. Planned numbers are the most there will be: a study may end earlier.

    A study that was reopened and finds a better configuration than it has confirmed confirms that too: those trials
    count once they are recorded.
    """

    trials_done: int = Field(description="trials in a final state")
    trials_planned: int | None = Field(description="null where this version cannot tell")
    epochs_done: int
    epochs_planned: int | None = Field(description="null where the search space varies the epochs")


class StudyDetail(StudyOverview):
    """A study, how far it has come, and the best that it has found."""

    progress: Progress
    pending_reason: str | None = Field(description="why what it has to run does not train; null where nothing waits")
    best: ConfigurationResult | None = Field(
        description="the best of its confirmed configurations where there are any, else of the complete "
        "ones, else of those with the most seeds; null where no trial has an objective"
    )
    mlflow_url: str | None = Field(description="the study's parent run in MLflow; null until it is there")


class StudyList(_Answer):
    """One page of studies."""

    studies: list[StudyOverview]
    next_page_token: str | None = Field(description="page_token of the next page; null on the last one")


class ConfigurationList(_Answer):
    """One page of a study's configurations with their results over seeds."""

    configurations: list[ConfigurationResult]
    next_page_token: str | None = Field(description="page_token of the next page; null on the last one")


class BestConfiguration(_Answer):
    """What a study has found."""

    metric: str
    mode: Mode
    best: ConfigurationResult | None = Field(
        description="the best confirmed configuration where there are any, by the mean over its confirming trials, "
        "else the best one whose search trials all succeeded, by their mean, else of those of which most seeds "
        "succeeded (`complete` is false then); null where no trial succeeded"
    )


class TrialOverview(Trial):
    """A trial as a list shows it."""

    point: Point = Field(description="its configuration's value of each parameter that is active there")
    pending_reason: str | None = Field(description="why it waits, in plain words; null where it does not wait")


class TrialList(_Answer):
    """One page of a study's trials."""

    trials: list[TrialOverview]
    next_page_token: str | None = Field(description="page_token of the next page; null on the last one")


class TrialDetail(TrialOverview):
    """A trial and every execution of it."""

    attempts: list[Attempt]


class ResultList(_Answer):
    """One page of what a trial has reported, one entry for each epoch."""

    results: list[Result]
    next_page_token: str | None = Field(description="page_token of the next page; null on the last one")


class ComparedStudy(_Answer):
    """A study's side of a comparison."""

    study_id: str
    name: str
    configuration: ConfigurationResult | None = Field(description="its best; null where there is none yet")
    by_seed: dict[int, float] = Field(
        description="the metric of that configuration's trials, at the epoch that `at` says"
    )
    missing_by_seed: dict[int, TrialState] = Field(
        default_factory=dict,
        description="the state of each of that configuration's trials, of those compared, that has no such value",
    )
    summary: Summary | None = Field(description="of these values; null where there are none")


class StudyDifference(Comparison):
    """How study `a` differs from study `b`."""

    a: str
    b: str
    p_adjusted: float | None = Field(
        description="the p value after the correction for all comparisons here that have one; null where there is none"
    )


class StudyComparison(_Answer):
    """The best configurations of several studies, each later one against the first."""

    metric: str
    at: Literal["last", "best"] = Field(
        description="the epoch of each trial whose value is compared, the same on all sides: best where every study "
        "optimises this metric with `at: best`, else last"
    )
    values: Literal["confirmed", "search"] = Field(
        description="confirmed: of the trials on fresh seeds, where the best of every study has such; search: of the "
        "trials by which the configurations were chosen, whose means are too good"
    )
    correction: Literal["Holm"] = Field("Holm", description="for making several comparisons at once")
    studies: list[ComparedStudy]
    differences: list[StudyDifference]


class Importance(_Answer):
    """How much of the objective's variance one parameter explains."""

    parameter: str
    importance: float = Field(description="between 0 and 1; together they are 1")


class Importances(_Answer):
    """Which parameters matter to the objective, the most important one first."""

    metric: str
    method: ImportanceMethod
    n: int = Field(description="how many complete configurations this was told from")
    importances: list[Importance]
    left_out: list[str] = Field(description="parameters of which this method says nothing: those not in every point")


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


class KeyList(_Answer):
    """API keys, the newest first."""

    keys: list[ApiKey]


class CreatedKey(ApiKey):
    """A key that has just been made."""

    token: str = Field(description="what its holder sends; shown this once")


class WebhookList(_Answer):
    """Webhooks in the order in which they were made."""

    webhooks: list[Webhook]


class WebhookDetail(Webhook):
    """A webhook and what was sent to it of late."""

    deliveries: list[Delivery] = Field(description="the newest first; ended ones are kept for 30 days")


class CreatedWebhook(Webhook):
    """A webhook that has just been made."""

    secret: str = Field(description="signs what is sent, as Standard Webhooks has it; shown this once")


class Status(_Answer):
    """Whether the service is well."""

    status: Literal["ok"] = "ok"


class ProblemField(_Answer):
    """One thing wrong with a request."""

    field: str = Field(description="its path, such as search_space.rho.low")
    message: str = Field(description="the rule that is broken")


class Problem(_Answer):
    """Why a request was not carried out (RFC 9457)."""

    type: str = Field(description="`urn:samstudy:problem:CODE`")
    title: str = Field(description="the same for every occurrence")
    status: int
    detail: str
    code: str = Field(description="stable, for programs")
    errors: list[ProblemField] = Field(description="every field that is wrong, where fields are")
    request_id: str | None = Field(None, description="finds this request in the service's log")
