"""The rules between the sections of a study spec: what a search space, an objective and a budget mean for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from search_spaces import GridNeedsStepError, Parameter, Scalar, SearchSpace
from search_spaces.checking import near_miss, shown
from search_spaces.parameters import CategoricalParameter, FloatParameter, IntParameter
from service.errors import FieldProblem
from service.spec_sections import (
    MAX_CONFIRMING_TRIALS,
    Algorithm,
    Budget,
    Confirm,
    EarlyStopping,
    HyperbandScheduler,
    NoScheduler,
    Objective,
    Replicates,
    Resources,
)
from trainers.catalog import DATASETS
from trainers.config import ConfigProblem, Knob, defaults, knobs
from trainers.metrics import METRIC_FIELDS, epoch_metrics, is_accuracy, reported_metrics
from trainers.rules import RULES

MAX_WHOLE_GRID_TRIALS = 10_000
"""A larger grid needs a max_trials: nobody means to start so many trials unseen."""

MAX_COMBINATIONS = 20_000
"""Of the values of the fields that one rule reads."""

MAX_CHECKS = 50_000
"""Of all rules together, so that nobody can keep the service busy with a spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The sections that are sound by themselves; None stands for one that is not, and was reported already.

    train, parameters: their single entries can be None in the same sense. space: None unless every parameter is sound.
    """

    train: Mapping[str, Scalar | None] | None
    parameters: Mapping[str, Parameter | None] | None
    space: SearchSpace | None
    space_is_named: bool
    objective: Objective | None
    algorithm: Algorithm | None
    scheduler: NoScheduler | EarlyStopping | None
    replicates: Replicates | None
    confirm: Confirm | None
    budget: Budget | None
    resources_per_trial: Resources | None
    allow_test_objective: bool | None


def spec_problems(parts: Parts, *, is_new: bool) -> list[FieldProblem]:
    """Every broken rule that can be judged from the sound sections, in the order of the spec, each once.

    is_new: nobody has accepted the spec before. What has been accepted can be run, also where it does not do what its
    writer may have meant.
    """
    checks = (
        _train_problems,
        _parameter_problems,
        _combination_problems,
        _device_problems,
        _objective_problems,
        _grid_problems,
        _scheduler_problems,
        _confirm_problems,
        _budget_problems,
        *((_target_problems, _grid_log_problems, _confirming_number_problems) if is_new else ()),
    )
    return list(dict.fromkeys(problem for check in checks for problem in check(parts)))


def _train_problems(parts: Parts) -> Iterator[FieldProblem]:
    for key, value in (parts.train or {}).items():
        field, knob = f"train.{key}", knobs().get(key)
        if key == "seed":
            yield FieldProblem(field, "seeds belong in replicates.seeds")
        elif knob is None:
            yield FieldProblem(field, _unknown_field(key))
        elif value is not None:
            message = knob.problem_with(key, value)
            if message:
                yield FieldProblem(field, message)


def _parameter_problems(parts: Parts) -> Iterator[FieldProblem]:
    for key, parameter in (parts.parameters or {}).items():
        field, knob = f"search_space.{key}", knobs().get(key)
        if key == "seed":
            yield FieldProblem(field, "seeds are not searched: they belong in replicates.seeds")
            continue
        if knob is None:
            yield FieldProblem(field, _unknown_field(key))
            continue
        if parts.train is not None and key in parts.train:
            yield FieldProblem(field, f"{key} is fixed in train too: keep it in one of the two")
        if parameter is not None:
            yield from _value_problems(field, key, parameter, knob)


def _value_problems(field: str, key: str, parameter: Parameter, knob: Knob) -> Iterator[FieldProblem]:
    """The values at a parameter's ends that the field of TrainConfig does not accept."""
    if isinstance(parameter, CategoricalParameter):
        ends = [(f"choices[{index}]", choice) for index, choice in enumerate(parameter.choices)]
    elif knob.kind == "str":
        yield FieldProblem(f"{field}.type", f"{key} takes text: its type must be categorical")
        return
    elif knob.kind == "int" and isinstance(parameter, FloatParameter):
        yield FieldProblem(f"{field}.type", f"{key} takes integers: its type must be int or categorical")
        return
    else:
        ends = [("low", parameter.low), ("high", parameter.high)]
    for name, value in ends:
        message = knob.problem_with(key, value)
        if message:
            yield FieldProblem(f"{field}.{name}", message)


def _combination_problems(parts: Parts) -> Iterator[FieldProblem]:
    """Values that are fine one by one and do not go together, over every combination that the space allows."""
    if parts.train is None or parts.parameters is None:
        return
    unsound = _unsound_values(parts)
    left = MAX_CHECKS
    for rule in RULES:
        searched = [key for key in rule.fields if key in parts.parameters]
        combinations = _combinations(parts, rule.fields, at_most=min(left, MAX_COMBINATIONS))
        left -= combinations.looked_at
        for values in combinations.values:
            if not any(repr(values[key]) in unsound[key] for key in rule.fields):
                for problem in rule.problems(values):
                    yield _problem_together(problem, parts, searched)
        if not combinations.complete:
            message = f"the combinations of {', '.join(searched)} are too many to check"
            yield FieldProblem("search_space", f"{message}: more than {combinations.looked_at:,}")
            return


def _problem_together(problem: ConfigProblem, parts: Parts, searched: Sequence[str]) -> FieldProblem:
    if problem.field in searched or (searched and problem.field not in (parts.train or {})):
        key = problem.field if problem.field in searched else searched[0]
        return FieldProblem(f"search_space.{key}", problem.message)
    default = "" if problem.field in (parts.train or {}) else f" ({defaults()[problem.field]} is the default)"
    return FieldProblem(f"train.{problem.field}", problem.message + default)


@dataclass(frozen=True, slots=True)
class _Combinations:
    """values: complete values, each combination once. looked_at: points of the space that they were taken from."""

    values: list[dict[str, Any]]
    looked_at: int = 0
    complete: bool = True


def _combinations(parts: Parts, fields: Sequence[str], *, at_most: int = MAX_COMBINATIONS) -> _Combinations:
    """What the trials can have of these fields; nothing where a broken section decides one of them.

    at_most: points to look at; beyond it the combinations are not complete.
    """
    if parts.train is None or parts.parameters is None:
        return _Combinations([])
    fixed = {key: value for key, value in parts.train.items() if key in fields}
    searched = [key for key in fields if key in parts.parameters]
    if None in fixed.values() or (searched and parts.space is None):
        return _Combinations([])
    if not searched or parts.space is None:
        return _Combinations([{**defaults(), **fixed}])
    corners = parts.space.corners(searched)
    looked_at = list(islice(corners, at_most))
    chosen = ({key: value for key, value in corner.items() if key in fields} for corner in looked_at)
    once = {repr(values): values for values in chosen}
    complete = next(corners, None) is None
    return _Combinations([{**defaults(), **fixed, **values} for values in once.values()], len(looked_at), complete)


def _unsound_values(parts: Parts) -> dict[str, set[str]]:
    """For each field, the values in play that it does not accept by itself; they were reported already."""
    fields = {key for rule in RULES for key in rule.fields}
    in_play = {key: {repr(value): value for value in _values_in_play(parts, key)} for key in fields}
    return {
        key: {shown for shown, value in values.items() if knobs()[key].problem_with(key, value)}
        for key, values in in_play.items()
    }


def _device_problems(parts: Parts) -> Iterator[FieldProblem]:
    if parts.resources_per_trial is None or parts.resources_per_trial.gpu > 0:
        return
    if "cuda" in _values_in_play(parts, "device"):
        yield FieldProblem("resources_per_trial.gpu", "device cuda needs a gpu above 0, got 0")


def _objective_problems(parts: Parts) -> Iterator[FieldProblem]:
    objective, field = parts.objective, "objective.metric"
    if objective is None:
        return
    sound = [_with_defaults_for_unsound(values) for values in _combinations(parts, METRIC_FIELDS).values]
    sound = [values for values in sound if values["dataset"] in DATASETS]
    reported = list(dict.fromkeys(reported_metrics(values) for values in sound))
    everywhere = [metric for metric in reported[0] if all(metric in names for names in reported)] if reported else []
    if reported and objective.metric not in everywhere:
        datasets = list(dict.fromkeys(values["dataset"] for values in sound))
        message = f"trials on {' and '.join(datasets)} do not report {shown(objective.metric)}"
        hint = near_miss(objective.metric, everywhere)
        yield FieldProblem(field, f"{message}{hint}; the metrics are {', '.join(everywhere)}")
    at_the_end = {metric for values in sound for metric in set(reported_metrics(values)) - set(epoch_metrics(values))}
    if objective.metric in at_the_end:
        if objective.at == "best":
            message = f"{objective.metric} is measured once, at a trial's end: at must be last, got 'best'"
            yield FieldProblem("objective.at", message)
        if isinstance(parts.scheduler, EarlyStopping):
            compares = f"{parts.scheduler.name} compares trials while they train"
            yield FieldProblem(field, f"{compares}, and {objective.metric} is measured once, at the end")
    if not objective.metric.startswith("test_"):
        return
    if parts.allow_test_objective is False:
        message = f"to optimise {objective.metric} is to search on the test split"
        yield FieldProblem(field, f"{message}: say allow_test_objective: true, or take a validation metric")


def _with_defaults_for_unsound(values: Mapping[str, Any]) -> dict[str, Any]:
    """So that one wrong field does not hide that a metric is not reported; the dataset is left as it is."""
    sound = {key: value for key, value in values.items() if not knobs()[key].problem_with(key, value)}
    return {**defaults(), **sound, "dataset": values["dataset"]}


def _target_problems(parts: Parts) -> Iterator[FieldProblem]:
    objective = parts.objective
    if objective is None or objective.target is None or not is_accuracy(objective.metric):
        return
    if not 0 <= objective.target <= 1:
        message = f"must be between 0 and 1, as an accuracy is (90 % is 0.9), got {shown(objective.target)}"
        yield FieldProblem("objective.target", message)


def _grid_log_problems(parts: Parts) -> Iterator[FieldProblem]:
    if parts.algorithm is None or parts.algorithm.name != "grid":
        return
    for name, parameter in (parts.parameters or {}).items():
        if isinstance(parameter, IntParameter) and parameter.log:
            message = (
                f"a grid has every step of {name}, with log too: leave it out, or give {name} as categorical choices"
            )
            yield FieldProblem(f"search_space.{name}.log", message)


def _grid_problems(parts: Parts) -> Iterator[FieldProblem]:
    if parts.space is None or parts.algorithm is None or parts.algorithm.name != "grid":
        return
    try:
        size = parts.space.grid_size()
    except GridNeedsStepError as error:
        for name in error.names:
            field = "search_space" if parts.space_is_named else f"search_space.{name}.step"
            message = f"a grid needs a step for {name}, or {name} as categorical choices"
            yield FieldProblem(field, f"{message}; algorithms random, qmc and tpe take it as it is")
        return
    if parts.replicates is None or parts.budget is None or parts.budget.max_trials is not None:
        return
    trials = size * len(parts.replicates.seeds)
    if trials > MAX_WHOLE_GRID_TRIALS:
        got = f"{trials:,}" if trials < 10**15 else "more than 10^15"
        message = f"the whole grid must be at most {MAX_WHOLE_GRID_TRIALS:,} trials, got {got}"
        yield FieldProblem("budget.max_trials", f"{message}: give max_trials to run the first ones")


def _scheduler_problems(parts: Parts) -> Iterator[FieldProblem]:
    if not isinstance(parts.scheduler, EarlyStopping) or parts.parameters is None:
        return
    searched = [key for key in ("epochs", "report_every_epochs") if key in parts.parameters]
    for key in searched:
        compares = f"{parts.scheduler.name} compares trials at the same epoch of the same run length"
        yield FieldProblem(f"search_space.{key}", f"{compares}: fix {key} in train")
    if searched:
        return
    for every in _values_in_play(parts, "report_every_epochs"):
        if isinstance(every, int) and every > parts.scheduler.grace_period:
            message = f"grace_period must be at least the {every} epochs between two results of a trial"
            yield FieldProblem("scheduler.grace_period", f"{message}, got {parts.scheduler.grace_period}")
    for epochs in _values_in_play(parts, "epochs"):
        grace = parts.scheduler.grace_period
        if isinstance(epochs, int) and grace > epochs:
            message = f"grace_period must be at most the {epochs} epochs of a trial, got {grace}"
            yield FieldProblem("scheduler.grace_period", message)
        elif isinstance(epochs, int) and isinstance(parts.scheduler, HyperbandScheduler):
            factor, brackets = parts.scheduler.reduction_factor, parts.scheduler.brackets
            first = grace * factor ** (brackets - 1)
            if first > epochs:
                rule = f"the last bracket must stop trials within their {epochs} epochs"
                message = f"{rule}, and with {brackets} brackets it begins to at {grace} · {factor}^{brackets - 1}"
                yield FieldProblem("scheduler.brackets", f"{message} = {first}")


def _confirm_problems(parts: Parts) -> Iterator[FieldProblem]:
    if parts.confirm is None or parts.replicates is None:
        return
    for index, seed in enumerate(parts.confirm.seeds):
        if seed in parts.replicates.seeds:
            message = f"must be a seed that the search does not use, and {seed} is in replicates.seeds"
            yield FieldProblem(f"confirm.seeds[{index}]", message)


def _confirming_number_problems(parts: Parts) -> Iterator[FieldProblem]:
    if parts.confirm is not None and (problem := confirming_number_problem(parts.confirm)):
        yield problem


def confirming_number_problem(confirm: Confirm) -> FieldProblem | None:
    """What is wrong where more trials would confirm the best than a study may have of such."""
    top_k, seeds = confirm.top_k, len(confirm.seeds)
    if top_k * seeds <= MAX_CONFIRMING_TRIALS:
        return None
    message = f"must be at most {MAX_CONFIRMING_TRIALS // seeds:,} with {seeds:,} seeds, as a study has at most"
    return FieldProblem(
        "confirm.top_k", f"{message} {MAX_CONFIRMING_TRIALS:,} trials that confirm its best, got {top_k:,}"
    )


def _budget_problems(parts: Parts) -> Iterator[FieldProblem]:
    if parts.budget is None:
        return
    resources = parts.resources_per_trial
    if parts.budget.max_gpu_hours is not None and resources is not None and resources.gpu == 0:
        message = "would never be reached: resources_per_trial.gpu is 0"
        yield FieldProblem("budget.max_gpu_hours", f"{message}, got {parts.budget.max_gpu_hours:g}")
    max_trials, field = parts.budget.max_trials, "budget.max_trials"
    if max_trials is None:
        if parts.algorithm is not None and parts.algorithm.name != "grid":
            yield FieldProblem(field, f"algorithm {parts.algorithm.name} needs a number of trials, got null")
    elif parts.replicates is not None:
        seeds = len(parts.replicates.seeds)
        if max_trials % seeds:
            message = f"must be a multiple of {seeds}, the number of seeds, got {max_trials}"
            yield FieldProblem(field, f"{message} (remainder {max_trials % seeds})")


def _values_in_play(parts: Parts, key: str) -> tuple[Scalar, ...]:
    """The values that the field has in some trial (the ends of a range); () where a broken section decides it."""
    if parts.train is None or parts.parameters is None:
        return ()
    if key in parts.parameters:
        parameter = parts.parameters[key]
        if parameter is None:
            return ()
        fallback = (defaults()[key],) if parameter.when else ()
        return tuple(dict.fromkeys((*parameter.ends(), *fallback)))
    value = parts.train.get(key, defaults()[key])
    return () if value is None else (value,)


def _unknown_field(key: str) -> str:
    names = [name for name in knobs() if name != "seed"]
    return f"unknown field {shown(key)}{near_miss(key, names) or '; the fields are ' + ', '.join(names)}"
