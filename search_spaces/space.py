"""SearchSpace: the points that a study may try."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Self

from pydantic import ConfigDict, Field, RootModel, model_validator

from search_spaces.checking import RuleProblem, near_miss, rules_error, shown
from search_spaces.parameters import FloatParameter, Parameter, Point, Scalar, point_key, scalar_key

MAX_PARAMETERS = 64
MAX_CONDITION_STATES = 4_096

MAX_COUNTING_WORK = 1_000_000
"""Of counting a space's points: classes of values times what is remembered beside each; about 0.6 s on one core."""

State = tuple[tuple[str, str | None], ...]
"""What counting remembers: for each parent that later conditions ask about, its class of values; None: inactive."""


class GridNeedsStepError(ValueError):
    """A grid over a continuum; `names` are the float parameters without a step."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(f"a grid needs a step for every float parameter; there is none for {', '.join(names)}")
        self.names = names


class SearchSpace(RootModel[Annotated[dict[str, Parameter], Field(min_length=1)]]):
    """Parameters by name, in order. One with conditions is part of a point only where its conditions hold."""

    model_config = ConfigDict(frozen=True)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters in the order of declaration."""
        return self.root

    def ordered(self) -> tuple[str, ...]:
        """The names in the order of declaration, except that parents come before those that depend on them."""
        return _parents_first(self.root)

    def active(self, point: Mapping[str, Scalar]) -> tuple[str, ...]:
        """The names that belong to a point with these values, parents first."""
        active: list[str] = []
        present: Point = {}
        for name in self.ordered():
            if self.root[name].holds(present):
                active.append(name)
                if name in point:
                    present[name] = point[name]
        return tuple(active)

    def contains(self, point: Mapping[str, Scalar]) -> bool:
        """Whether the point has exactly the parameters that are active in it, each with a value that it can take."""
        return set(self.active(point)) == set(point) and all(
            self.root[name].takes(value) for name, value in point.items()
        )

    def snapped(self, point: Mapping[str, Scalar]) -> Point:
        """A point of the space with each value as its parameter lists it, which is how the grid has it."""
        return {name: self.root[name].snapped(value) for name, value in point.items()}

    def is_exact(self, point: Mapping[str, Scalar]) -> bool:
        """Whether it is a point of the space itself, not merely one within rounding of it."""
        return self.contains(point) and point_key(self.snapped(point)) == point_key(point)

    def point_problems(self, point: Mapping[str, object]) -> list[RuleProblem]:
        """Why these values are no point of the space: names it lacks, values it never takes, parameters left out."""
        known: Point = {name: value for name, value in point.items() if isinstance(value, bool | int | float | str)}
        active = self.active(known)
        problems = []
        for name, value in point.items():
            if name not in self.root:
                problems.append(RuleProblem((name,), f"the space has no such parameter{near_miss(name, self.root)}"))
            elif not self.root[name].takes(value):
                problems.append(RuleProblem((name,), f"{name} {self.root[name].rule}, got {shown(value)}"))
            elif name not in active:
                problems.append(RuleProblem((name,), f"{name} is no part of this point: its condition does not hold"))
        missing = [name for name in active if name not in point]
        return [*problems, *(RuleProblem((name,), "is required at this point") for name in missing)]

    def size(self) -> int | None:
        """How many points there are, counted without listing them; None where they are a continuum."""
        return None if _without_step(self.root) else _count(self.root)

    def grid_size(self) -> int:
        """How many points the grid has, counted without listing them. Raises GridNeedsStepError."""
        _require_steps(self.root)
        return _count(self.root)

    def grid(self) -> Iterator[Point]:
        """Every point once, in the order of `ordered()`, the first parameter slowest. Raises GridNeedsStepError."""
        _require_steps(self.root)
        return _points(self.root, self.ordered(), lambda name: self.root[name].values())

    def corners(self, names: Collection[str] | None = None) -> Iterator[Point]:
        """The points made of the parameters' ends (every choice of a categorical), conditions respected.

        names: only these parameters and those that their conditions depend on. The corners may be very many: they
        come one at a time, so that the caller can stop.
        """
        wanted = set(_parents_first(self.root, self.root if names is None else names))
        mentioned = _mentioned(self.root)

        def ends(name: str) -> Iterable[Scalar]:
            by_key = {scalar_key(value): value for value in self.root[name].ends()}
            return (by_key | mentioned.get(name, {})).values()

        return _points(self.root, tuple(name for name in self.ordered() if name in wanted), cache(ends))

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = structure_problems(self.root)
        if problems:
            raise rules_error(problems)
        return self


def structure_problems(parameters: Mapping[str, Parameter], *, unreadable: Collection[str] = ()) -> list[RuleProblem]:
    """What is wrong between parameters that are sound one by one: names, numbers, conditions.

    unreadable: names that are there too, about which nothing can be said.
    """
    problems = []
    if len(parameters) + len(unreadable) > MAX_PARAMETERS:
        count = len(parameters) + len(unreadable)
        return [RuleProblem((), f"a space has at most {MAX_PARAMETERS} parameters, got {count}")]
    for name, parameter in parameters.items():
        if not name.isidentifier() or len(name) > 64:
            message = f"a parameter's name is letters, digits and underscores, at most 64, got {shown(name)}"
            problems.append(RuleProblem((name,), message))
        for parent, values in parameter.when.items():
            if parent not in unreadable:
                problems += _condition_problems(name, parent, values, parameters)
    if problems or unreadable:
        return problems
    cycle = _cycle(parameters)
    if cycle:
        return [RuleProblem((cycle[0], "when"), f"conditions must not go in a circle: {' → '.join(cycle)}")]
    if not _without_step(parameters):
        try:
            _count(parameters)
        except _TooEntangledError as error:
            return [RuleProblem((), str(error))]
    return []


class _TooEntangledError(ValueError):
    def __init__(self) -> None:
        super().__init__(
            "the conditions are too entangled: too many parents must be remembered at once; declare each parameter "
            "right after those that it depends on, or use fewer parents"
        )


def _condition_problems(
    name: str, parent: str, values: Iterable[Scalar], parameters: Mapping[str, Parameter]
) -> list[RuleProblem]:
    path = (name, "when", parent)
    if parent == name:
        return [RuleProblem(path, f"{name} cannot depend on itself")]
    if parent not in parameters:
        hint = near_miss(parent, parameters)
        return [RuleProblem(path, f"{shown(parent)} is no parameter of this space{hint}")]
    if isinstance(parameters[parent], FloatParameter):
        message = f"a condition needs a categorical or int parameter, and {parent} is a float"
        return [RuleProblem(path, message)]
    return [
        RuleProblem((*path, index), f"{parent} never has the value {shown(value)}")
        for index, value in enumerate(values)
        if not parameters[parent].takes(value)
    ]


def _cycle(parameters: Mapping[str, Parameter]) -> list[str]:
    """Names that depend on each other in a circle, the first one again at the end; [] where there are none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for parent in parameters[name].when:
                circle = walk(parent, [*path, name])
                if circle:
                    return circle
            done.add(name)
        return []

    return next((circle for name in parameters if (circle := walk(name, []))), [])


def _parents_first(parameters: Mapping[str, Parameter], names: Iterable[str] | None = None) -> tuple[str, ...]:
    placed: dict[str, None] = {}

    def place(name: str) -> None:
        if name not in placed:
            for parent in parameters[name].when:
                place(parent)
            placed[name] = None

    for name in parameters if names is None else names:
        place(name)
    return tuple(placed)


def _points(
    parameters: Mapping[str, Parameter], order: tuple[str, ...], values: Callable[[str], Iterable[Scalar]]
) -> Iterator[Point]:
    """Depth first over the order: a parameter whose conditions do not hold is left out."""

    def extend(index: int, point: Point) -> Iterator[Point]:
        if index == len(order):
            yield dict(point)
        elif parameters[order[index]].holds(point):
            for value in values(order[index]):
                yield from extend(index + 1, {**point, order[index]: value})
        else:
            yield from extend(index + 1, point)

    return extend(0, {})


def _without_step(parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    return tuple(name for name, parameter in parameters.items() if parameter.size is None)


def _require_steps(parameters: Mapping[str, Parameter]) -> None:
    names = _without_step(parameters)
    if names:
        raise GridNeedsStepError(names)


def _mentioned(parameters: Mapping[str, Parameter]) -> dict[str, dict[str, Scalar]]:
    """For every parent, the values that some condition asks about, by key."""
    mentioned: dict[str, dict[str, Scalar]] = {}
    for parameter in parameters.values():
        for parent, values in parameter.when.items():
            mentioned.setdefault(parent, {}).update({scalar_key(value): value for value in values})
    return mentioned


def _told_apart(parameters: Mapping[str, Parameter]) -> dict[str, dict[str, int]]:
    """For every parent, the values that conditions ask about, those together that the same conditions hold for.

    Each class by the key of one of its values, with the number of its values.
    """
    holding: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, parameter in parameters.items():
        for parent, keys in parameter.condition_keys.items():
            for key in keys:
                holding[parent][key].append(name)
    classes: dict[str, dict[str, int]] = {}
    for parent, of_values in holding.items():
        first: dict[tuple[str, ...], str] = {}
        classes[parent] = Counter(first.setdefault(tuple(names), key) for key, names in of_values.items())
    return classes


def _count(parameters: Mapping[str, Parameter]) -> int:
    """The number of points of a finite space. Raises _TooEntangledError where that takes too much time or memory.

    Values of a parent that no condition tells apart are counted together, and a parent is forgotten after the last
    parameter that asks about it, so that the work does not grow with the number of points.
    """
    order = _parents_first(parameters)
    last_use = {parent: name for name in order for parent in parameters[name].when}
    told_apart = _told_apart(parameters)
    counts: Counter[State] = Counter({(): 1})
    factor, work = 1, 0
    for name in order:
        if name not in last_use and not parameters[name].when:
            factor *= parameters[name].size or 0
            continue
        after: Counter[State] = Counter()
        for state, count in counts.items():
            classes = _classes(parameters[name], told_apart.get(name, {}), dict(state))
            work += len(classes) * (1 + len(state))
            if work > MAX_COUNTING_WORK:
                raise _TooEntangledError
            for value_class, members in classes:
                remembered = (*state, (name, value_class)) if name in last_use else state
                kept = tuple(item for item in remembered if last_use[item[0]] != name)
                after[kept] += count * members
            if len(after) > MAX_CONDITION_STATES:
                raise _TooEntangledError
        counts = after
    return factor * counts.total()


def _classes(
    parameter: Parameter, told_apart: Mapping[str, int], known: Mapping[str, str | None]
) -> list[tuple[str | None, int]]:
    """The classes of values that conditions tell apart, with the number of values in each."""
    if not all(known[parent] in keys for parent, keys in parameter.condition_keys.items()):
        return [(None, 1)]
    rest = (parameter.size or 0) - sum(told_apart.values())
    return [*told_apart.items(), ("", rest)] if rest else [*told_apart.items()]
