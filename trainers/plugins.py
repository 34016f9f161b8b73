"""Models and datasets of other packages, which announce theirs by entry points:

    [project.entry-points."samstudy.models"]
    my_net = "my_lab.studies:MY_NET"        # a trainers.facts.ModelFacts of this name, with its `code`

    [project.entry-points."samstudy.datasets"]
    my_data = "my_lab.studies:MY_DATA"      # a trainers.facts.DatasetFacts

Whatever takes or trains a study has such a package installed. What is announced is read by all of them, also by those
that never train: its module imports no torch. The code that it names is imported where a trial trains.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_args

from trainers.facts import DatasetFacts, ModelFacts, Task

LEFT_OUT: list[str] = []
"""Which of them are left out, and why: a package that is broken takes nothing else with it."""

PACKAGES: dict[str, str] = {}
"""The packages that the others are of, with their versions, by the `code` of what they announce."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")

_log = logging.getLogger(__name__)

FactsType = TypeVar("FactsType", DatasetFacts, ModelFacts)


def announced(group: str, kind: type[FactsType], *, taken: Collection[str]) -> dict[str, FactsType]:
    """What the packages of this machine announce in this group, by name; what is not sound is in LEFT_OUT.

    taken: names that are samstudy's own.
    """
    found: dict[str, FactsType] = {}
    for entry_point in sorted(entry_points(group=group), key=lambda entry_point: (entry_point.name, entry_point.value)):
        try:
            facts = entry_point.load()
        except Exception as error:  # noqa: BLE001 (the code is another package's)
            problem: str | None = f"{type(error).__name__}: {error}"
        else:
            problem = _problem_with(facts, kind, entry_point.name, {*taken, *found})
        if problem is None:
            found[entry_point.name] = facts
            PACKAGES[str(facts.code)] = _package(entry_point)
        else:
            LEFT_OUT.append(f"{entry_point.name} ({group}, {entry_point.value} of {_package(entry_point)}): {problem}")
            _log.warning("left out: %s", LEFT_OUT[-1])
    return found


def load_code(code: str) -> Any:
    """The function that `code`, "module:function", names. Raises ImportError or AttributeError where there is none."""
    return EntryPoint(name="", value=code, group="").load()


def _package(entry_point: EntryPoint) -> str:
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "no package"


def _problem_with(
    facts: object, kind: type[DatasetFacts | ModelFacts], name: str, taken: Collection[str]
) -> str | None:
    if not isinstance(facts, kind):
        return f"it must be a trainers.facts.{kind.__name__}, got {facts!r}"
    if facts.name != name:
        return f"its name must be that of its entry point, got {facts.name!r}"
    if not _NAME.fullmatch(name):
        return "a name is a letter and then letters, digits, '_', '.' and '-', 100 at most"
    if name in taken:
        return "the name is taken"
    if not isinstance(facts.code, str) or EntryPoint.pattern.fullmatch(facts.code) is None or ":" not in facts.code:
        return f"its code must be 'module:function', got {facts.code!r}"
    problems = _dataset_problems(facts) if isinstance(facts, DatasetFacts) else _model_problems(facts)
    return next(problems, None)


def _dataset_problems(facts: DatasetFacts) -> Iterator[str]:
    if facts.is_problem or facts.task != "classification":
        yield f"its task must be 'classification', and it no problem, got {facts.task!r} and {facts.is_problem!r}"
    if not isinstance(facts.shape, tuple) or len(facts.shape) not in (1, 3) or not all(map(_is_count, facts.shape)):
        yield f"its shape must be (channels, height, width) or (features,), got {facts.shape!r}"
    for field, least in (("classes", 2), ("train_size", 1), ("validation_size", 1)):
        value = getattr(facts, field)
        if not _is_count(value) or value < least:
            yield f"its {field} must be an integer of at least {least}, got {value!r}"


def _model_problems(facts: ModelFacts) -> Iterator[str]:
    if not isinstance(facts.tasks, tuple) or not facts.tasks or not set(facts.tasks) <= set(get_args(Task)):
        yield f"its tasks must be some of {get_args(Task)}, in a tuple, got {facts.tasks!r}"
    for field in ("min_image_size", "single_example_image_size"):
        if not _is_count(getattr(facts, field)):
            yield f"its {field} must be an integer of at least 1, got {getattr(facts, field)!r}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
