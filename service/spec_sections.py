"""The sections of a study spec, each sound by itself. The rules between sections are in spec_checks.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from search_spaces.checking import RuleProblem, StrictModel, rules_error, shown
from search_spaces.parameters import Integer, Number
from service.text_rules import checked_name, checked_text, line_problem, refusal, word_problem

MAX_SEED = 2**32 - 1
MAX_CONFIRMING_TRIALS = 10_000
"""The most that confirm the best of one study."""

MAX_TRIALS = 100_000
"""The most trials of one study, whatever its algorithm."""

ACCEPTED = "accepted"
"""As the context of a validation: the spec was accepted before, perhaps under other rules for text."""

_ENCODED = re.compile("%(2e|2f|5c)", re.IGNORECASE)  # a dot, a slash, a backslash

T = TypeVar("T")


def _not_yet(noun: str, planned: tuple[str, ...], available: tuple[str, ...]) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, str) and value in planned:
            raise refusal(f"{noun} {value!r} is not there yet; those that are: {', '.join(available)}")
        return value

    return check


def _where_new(check: Callable[[T], T]) -> AfterValidator:
    """The check, which text that was accepted before is spared: a study goes on although the rules have changed."""

    def validator(value: T, info: ValidationInfo) -> T:
        return value if info.context == ACCEPTED else check(value)

    return AfterValidator(validator)


def _checked_name(name: str) -> str:
    if "/" in name or "\\" in name:
        raise refusal(f"must not contain a slash: it names an MLflow experiment and files, got {shown(name)}")
    if not name.strip("."):
        raise refusal(f"must not be made of dots only, which name folders, got {shown(name)}")
    if encoded := _ENCODED.search(name):
        raise refusal(f"must not contain {encoded[0]}, which in an address is a dot or a slash, got {shown(name)}")
    return checked_name(name)


def _checked_labels(labels: dict[str, str]) -> dict[str, str]:
    problems = []
    for key, value in labels.items():
        if not 1 <= len(key) <= 63:
            problems.append(RuleProblem((key,), f"a label's key has 1 to 63 characters, got {shown(key)}"))
        elif problem := word_problem(key):
            problems.append(RuleProblem((key,), f"a label's key {problem}"))
        elif key != key.strip():
            problems.append(RuleProblem((key,), f"a label's key must not begin or end with a blank, got {shown(key)}"))
        elif ":" in key:
            message = f"a label's key must not contain ':', which ends it where studies are filtered, got {shown(key)}"
            problems.append(RuleProblem((key,), message))
        if len(value) > 255:
            message = f"a label's value has at most 255 characters, got {len(value):,}: {shown(value)}"
            problems.append(RuleProblem((key,), message))
        elif problem := line_problem(value):
            problems.append(RuleProblem((key,), f"a label's value {problem}"))
    if problems:
        raise rules_error(problems)
    return labels


Text = Annotated[str, Field(strict=True)]
Name = Annotated[Text, Field(min_length=1, max_length=100), _where_new(_checked_name)]
Description = Annotated[Text, Field(max_length=2_000), _where_new(checked_text)]
Labels = Annotated[dict[str, Text], Field(max_length=32), _where_new(_checked_labels)]
Seed = Annotated[Integer, Field(ge=0, le=MAX_SEED)]
Seconds = Annotated[Number, Field(gt=0, le=1e9)]
AlgorithmName = Literal["grid", "random", "qmc", "tpe"]
Mode = Literal["max", "min"]
"""Which end of an objective is better."""

Keep = Literal["latest", "best", "latest_and_best", "none"]
"""What stays of the checkpoints of a trial that ended: of its last epoch, of its best one by the objective, or both."""
WhichCheckpoint = Literal["latest", "best"]


class Objective(StrictModel):
    """What makes one configuration better than another."""

    metric: Text = Field(description="a metric that every trial reports", examples=["val_accuracy"])
    mode: Mode = Field(description="which direction is better")
    at: Literal["last", "best"] = Field("last", description="the metric of a trial's last epoch, or of its best one")
    target: Number | None = Field(
        None, description="the study ends once a configuration's mean is this good; null: it does not"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_several(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            raise refusal("several objectives are not supported yet: give one mapping with metric and mode")
        return value


class Algorithm(StrictModel):
    """How configurations are chosen."""

    name: Annotated[
        AlgorithmName,
        BeforeValidator(_not_yet("algorithm", ("gp", "cmaes", "nsga2"), get_args(AlgorithmName))),
    ] = Field(
        "grid", description="grid: every point in order; random: independent draws; qmc: a Sobol' sequence; tpe: learns"
    )
    seed: Seed = Field(0, description="of the choice of configurations")


class NoScheduler(StrictModel):
    """Every trial trains to its last epoch."""

    name: Literal["none"] = "none"


class AshaScheduler(StrictModel):
    """Stops trials that are behind, at epochs grace_period · reduction_factor^k (ASHA, arXiv 1810.05934)."""

    name: Literal["asha"] = "asha"
    grace_period: Annotated[Integer, Field(ge=1)] = Field(1, description="epochs before any trial is stopped")
    reduction_factor: Annotated[Integer, Field(ge=2, le=100)] = Field(
        4, description="of the trials that reach a rung, one in this many goes on"
    )


class HyperbandScheduler(StrictModel):
    """Asynchronous Hyperband (arXiv 1810.05934, section 3.1): ASHA in several brackets, for metrics that mislead early.

    In bracket s = 0, 1, … no trial is stopped before epoch grace_period · reduction_factor^s. A trial stays in one,
    and is compared with those in it alone; a bracket whose first rung is later has fewer of them.
    """

    name: Literal["hyperband"] = "hyperband"
    grace_period: Annotated[Integer, Field(ge=1)] = Field(
        1, description="epochs before any trial of the first bracket is stopped"
    )
    reduction_factor: Annotated[Integer, Field(ge=2, le=100)] = Field(
        3, description="of the trials that reach a rung, one in this many goes on"
    )
    brackets: Annotated[Integer, Field(ge=1, le=10)] = Field(3, description="how many there are")


class MedianScheduler(StrictModel):
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.1).

    A trial is stopped after an epoch where its best value so far is worse than the median of the other trials' means up
    to that epoch.
    """

    name: Literal["median"] = "median"
    grace_period: Annotated[Integer, Field(ge=1)] = Field(
        1, description="the epoch from which on trials are stopped, and over which means are taken"
    )
    min_trials: Annotated[Integer, Field(ge=1, le=10_000)] = Field(
        3, description="other trials that have come as far, before one is stopped"
    )


EarlyStopping = AshaScheduler | HyperbandScheduler | MedianScheduler
"""The schedulers that compare trials while they train."""


def _refuse_planned_scheduler(value: object) -> object:
    name = value.get("name") if isinstance(value, Mapping) else None
    if name == "pbt":
        message = f"scheduler {name!r} is not there yet; those that are: none, asha, hyperband, median"
        raise rules_error([RuleProblem(("name",), message)])
    return value


Scheduler = Annotated[
    NoScheduler | AshaScheduler | HyperbandScheduler | MedianScheduler,
    Field(discriminator="name"),
    BeforeValidator(_refuse_planned_scheduler),
]


def _checked_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    problems = [
        RuleProblem((index,), f"every seed must be there once, and {seed} is there before")
        for index, seed in enumerate(seeds)
        if seed in seeds[:index]
    ]
    if problems:
        raise rules_error(problems)
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1_000), AfterValidator(_checked_seeds)]


class Replicates(StrictModel):
    """The seeds that every configuration is trained with."""

    seeds: Seeds = Field((0,), description="one trial of every configuration for each", examples=[[0, 1, 2]])


class Confirm(StrictModel):
    """After the search its best configurations run again on seeds that the search never saw.

    The best of many means is too good, because luck took part in the choice; the mean over fresh seeds is honest.
    These trials come on top of budget.max_trials, train to their last epoch, and teach the search nothing.
    """

    top_k: Annotated[Integer, Field(ge=1, le=1_000)] = Field(1, description="how many of the best configurations")
    seeds: Seeds = Field(description="other ones than replicates.seeds", examples=[[100, 101, 102]])


class Budget(StrictModel):
    """Where a study ends at the latest. Trials are counted, not configurations; null is no limit."""

    max_trials: Annotated[Integer, Field(ge=1, le=MAX_TRIALS)] | None = Field(
        None, description="a multiple of the number of seeds; null is the whole grid"
    )
    max_concurrent_trials: Annotated[Integer, Field(ge=1, le=10_000)] | None = Field(
        None, description="trials that train at the same time; null: as many as the resources hold"
    )
    max_failed_trials: Annotated[Integer, Field(ge=0)] | None = Field(
        5,
        description="the study fails once more trials than this have failed; to diverge is no failure",
    )
    max_wallclock_s: Seconds | None = Field(
        None, description="seconds that the study may run, pauses left out; then it ends with what it has"
    )
    max_gpu_hours: Annotated[Number, Field(gt=0, le=1e9)] | None = Field(
        None, description="GPUs of a trial times the hours that trials have held them; then the study ends"
    )
    max_trial_s: Seconds | None = Field(
        None, description="seconds that one trial may train, over all of its attempts; then it has failed"
    )


_SMALLEST_AMOUNT = 0.00009999
"""Of a CPU or a GPU, within rounding: Ray counts in units of 0.0001, and knows no trial that takes less."""


class Resources(StrictModel):
    """What one trial occupies while it trains."""

    cpu: Annotated[Number, Field(gt=0, le=1_024)] = Field(1.0, description="CPU cores; fractions are shares")
    gpu: Annotated[Number, Field(ge=0, le=64)] = Field(
        0.0, description="GPUs; below 1 they are shares, above it whole numbers"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            RuleProblem((name,), f"must be a multiple of 0.0001, got {amount}")
            for name, amount in (("cpu", self.cpu), ("gpu", self.gpu))
            if abs(amount * 10_000 - round(amount * 10_000)) > 1e-6 or (amount and amount < _SMALLEST_AMOUNT)
        ]
        if self.gpu > 1 and not self.gpu.is_integer():
            problems = [RuleProblem(("gpu",), f"above 1, gpu must be a whole number, got {self.gpu}"), *problems]
        if problems:
            raise rules_error(problems)
        return self


class Failure(StrictModel):
    """What happens to a trial whose worker or node goes away; an error of the training itself is final."""

    max_retries: Annotated[Integer, Field(ge=0, le=100)] = Field(
        3, description="new attempts, each from the last checkpoint, before the trial counts as failed"
    )


class Checkpoint(StrictModel):
    """When a trial saves its state, and what stays of it."""

    every_epochs: Annotated[Integer, Field(ge=0)] = Field(
        1, description="epochs between checkpoints; 0: none at all, whatever `keep` says, and a new attempt starts over"
    )
    keep: Keep = Field(
        "latest",
        description="what stays of a trial that ended: the checkpoint of its last epoch, that of the epoch whose "
        "objective.metric was best, both, or none; for the best one it saves whenever the metric is better than "
        "before. A failed trial that is retried goes on from what stays of it",
    )
