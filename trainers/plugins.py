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
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from trainers.facts import DatasetFacts, ModelFacts

LEFT_OUT: list[str] = []
"""Which of them are left out, and why: a package that is broken takes nothing else with it."""

PACKAGES: dict[str, str] = {}
"""Of those that are not: the package and its version, by the `code` of what it announces."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_CODE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")

_log = logging.getLogger(__name__)

FactsType = TypeVar("FactsType", DatasetFacts, ModelFacts)


def announced(group: str, kind: type[FactsType], *, taken: Collection[str]) -> dict[str, FactsType]:
    """What the packages of this machine announce in this group, by name; what is not sound is in LEFT_OUT.

    taken: names that are samstudy's own.
    """
    found: dict[str, FactsType] = {}
    for entry_point in sorted(entry_points(group=group), key=lambda entry_point: (entry_point.name, entry_point.value)):
        problem: str | None
        try:
            facts = _loaded(entry_point)
            problem = _problem_with(facts, kind, entry_point.name, {*taken, *found})
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the code is another package's)
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            found[entry_point.name] = facts
            PACKAGES[facts.code] = _package(entry_point)
        else:
            LEFT_OUT.append(f"{entry_point.name} ({group}, {entry_point.value} of {_package(entry_point)}): {problem}")
            _log.warning("left out: %s", LEFT_OUT[-1])
    return found


def load_code(code: str) -> Callable[..., object]:
    """The function that `code`, "module:function", names. Raises ImportError or AttributeError where there is none."""
    function: Callable[..., object] = EntryPoint(name="", value=code, group="").load()
    return function


def _loaded(entry_point: EntryPoint) -> Any:
    """What is announced. What its module prints is none of the output of whoever imports this."""
    knew_torch = "torch" in sys.modules
    with redirect_stdout(sys.stderr):
        facts = entry_point.load()
    if not knew_torch and "torch" in sys.modules:
        _log.warning("%s imports torch, for which everything waits that reads it", entry_point.value)
    return facts


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
    if not isinstance(facts.code, str) or not _CODE.fullmatch(facts.code):
        return f"its code must be 'module:function', got {facts.code!r}"
    if not isinstance(facts.description, str):
        return f"its description must be text, got {facts.description!r}"
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
    if facts.tasks != ("classification",):
        yield f"its tasks must be ('classification',), got {facts.tasks!r}"
    for field in ("needs_images", "needs_two_examples"):
        if not isinstance(getattr(facts, field), bool):
            yield f"its {field} must be True or False, got {getattr(facts, field)!r}"
    for field in ("min_image_size", "single_example_image_size"):
        if not _is_count(getattr(facts, field)):
            yield f"its {field} must be an integer of at least 1, got {getattr(facts, field)!r}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
