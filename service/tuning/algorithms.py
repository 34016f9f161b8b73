"""Search algorithms: each proposes points of a search space and learns from what they were worth."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Sequence
from typing import Literal, Protocol, assert_never, cast

import optuna
from optuna.trial import TrialState as OptunaState

from search_spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Point,
    Scalar,
    point_key,
)
from search_spaces.space import SearchSpace
from service.analysis.importances import distribution, in_optuna
from service.spec import StudySpec
from service.spec_sections import Mode

Outcome = Literal["complete", "pruned", "failed"]

_MOST_DUPLICATES = 200
"""So many known points in a row mean that the sampler will find no other: a finite space then goes by its grid."""


_BLOCK = 64
"""How many points of a Sobol' sequence are made at once: a power of two."""


class Algorithm(Protocol):
    """What the driver asks for points.

    Points that a study has already are told with `known`, and with `learn` where they have been evaluated, in the order
    in which they were proposed, before the first call of `propose`.
    """

    def propose(self) -> Point | None:
        """A point that was neither proposed nor known before; None when there is no other."""

    def known(self, point: Point) -> None:
        """The study has this point already."""

    def learn(self, point: Point, outcome: Outcome, value: float | None) -> None:
        """A proposed or known point has been evaluated; `value` is the mean over its seeds.

        complete: all of them were trained to the end. pruned: not all were; None for one that diverged, which is worse
        than any that did not. failed: nothing is known of the point.
        """


class GridAlgorithm:
    """Every point of the space, once, in the grid's order."""

    def __init__(self, space: SearchSpace) -> None:
        self._points: Iterator[Point] = space.grid()
        self._seen: set[str] = set()

    def propose(self) -> Point | None:
        for point in self._points:
            key = point_key(point)
            if key not in self._seen:
                self._seen.add(key)
                return point
        return None

    def known(self, point: Point) -> None:
        self._seen.add(point_key(point))

    def learn(self, point: Point, outcome: Outcome, value: float | None) -> None:
        """A grid learns nothing."""


class QuasiRandomAlgorithm:
    """A scrambled Sobol' sequence over all parameters of the space, which fills it more evenly than independent draws.

    A point is one coordinate for each parameter, of which inactive ones are left out. Which points come, and in which
    order, depends on the seed and on nothing else: a driver that takes over passes over those that the study has, and
    goes on where the one before was. (Owen 1998, J. Complexity 14; scipy.stats.qmc. Optuna's own sampler of this kind
    draws its first point at random, and knows no conditions.)
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        self._names = list(space.ordered())
        self._numbers = _sobol_numbers(len(self._names), seed)
        self._passed: set[str] = set()  # of the sequence, up to here
        self._known: set[str] = set()

    def propose(self) -> Point | None:
        size = self._space.size()
        if size is not None and len(self._known) >= size:
            return None
        repeated = 0
        while repeated < _MOST_DUPLICATES:
            point = self._point(next(self._numbers))
            key = point_key(point)
            repeated = repeated + 1 if key in self._passed else 0
            self._passed.add(key)
            if key not in self._known:
                self._known.add(key)
                return point
        left = None if size is None else _first_unknown(self._space, self._known)
        if left is not None:
            self._known.add(point_key(left))
        return left

    def known(self, point: Point) -> None:
        if self._space.is_exact(point):  # a copy within rounding, from an older version, takes no point's place
            self._known.add(point_key(point))

    def learn(self, point: Point, outcome: Outcome, value: float | None) -> None:
        """The sequence does not depend on what its points are worth."""

    def _point(self, numbers: Sequence[float]) -> Point:
        point: Point = {}
        for name, number in zip(self._names, numbers, strict=True):
            if name in self._space.active(point):
                point[name] = _at_quantile(self._space.parameters[name], number)
        return point


class OptunaAlgorithm:
    """An Optuna sampler behind ask and tell; conditional parameters are suggested only where they are active."""

    def __init__(self, space: SearchSpace, sampler: optuna.samplers.BaseSampler, *, mode: Mode) -> None:
        self._space = space
        direction: Literal["maximize", "minimize"] = "maximize" if mode == "max" else "minimize"
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._asked: dict[str, optuna.Trial] = {}
        self._values: dict[str, float | None] = {}
        self._under_way: dict[str, Point] = {}  # what others have proposed, and the sampler does not know of yet

    def propose(self) -> Point | None:
        self._tell_of_what_is_under_way()
        size = self._space.size()
        if size is not None and len(self._values) >= size:
            return None
        for _ in range(_MOST_DUPLICATES):
            trial = self._study.ask()
            point = self._suggested(trial)
            key = point_key(point)
            if key not in self._values:
                self._asked[key] = trial
                self._values[key] = None
                return point
            self._tell(trial, "complete", self._values[key])
        left = None if size is None else _first_unknown(self._space, self._values)
        if left is not None:
            self._values[point_key(left)] = None  # `learn` adds it as a past trial
        return left

    def known(self, point: Point) -> None:
        if self._space.is_exact(point):  # a copy within rounding, from an older version, takes no point's place
            key = point_key(point)
            if key not in self._values:
                self._values[key] = None
                self._under_way[key] = point

    def learn(self, point: Point, outcome: Outcome, value: float | None) -> None:
        key = point_key(point)
        if key not in self._values:
            return
        self._values[key] = value if outcome == "complete" else None
        self._under_way.pop(key, None)
        trial = self._asked.pop(key, None)
        if trial is not None:
            self._tell(trial, outcome, value)
        else:
            self._study.add_trial(self._past_trial(point, outcome, value))

    def _tell_of_what_is_under_way(self) -> None:
        """Points of an earlier driver and of users run in the sampler's eyes too, so that it looks elsewhere."""
        for key, point in self._under_way.items():
            self._study.enqueue_trial(self._in_optuna(point))
            trial = self._study.ask()
            self._suggested(trial)
            self._asked[key] = trial
        self._under_way.clear()

    def _suggested(self, trial: optuna.Trial) -> Point:
        """The point that the trial has or draws: conditional parameters only where they are active."""
        point: Point = {}
        for name in self._space.ordered():
            if name in self._space.active(point):
                point[name] = _suggest(trial, name, self._space.parameters[name])
        return point

    def _tell(self, trial: optuna.Trial, outcome: Outcome, value: float | None) -> None:
        if outcome == "pruned":
            if value is not None:
                trial.report(value, step=1)
            self._study.tell(trial, state=OptunaState.PRUNED)
        elif value is None or outcome == "failed":
            self._study.tell(trial, state=OptunaState.FAIL)
        else:
            self._study.tell(trial, value)

    def _past_trial(self, point: Point, outcome: Outcome, value: float | None) -> optuna.trial.FrozenTrial:
        distributions = {name: distribution(self._space.parameters[name]) for name in point}
        point = self._in_optuna(point)
        if outcome == "pruned":
            return optuna.create_trial(
                state=OptunaState.PRUNED,
                params=point,
                distributions=distributions,
                value=value,
                intermediate_values={} if value is None else {1: value},
            )
        if value is None or outcome == "failed":
            return optuna.create_trial(state=OptunaState.FAIL, params=point, distributions=distributions)
        return optuna.create_trial(value=value, params=point, distributions=distributions)

    def _in_optuna(self, point: Point) -> Point:
        return {name: in_optuna(self._space.parameters[name], value) for name, value in point.items()}


def algorithm_for(spec: StudySpec, *, leg: int) -> Algorithm:
    """The algorithm that the spec names.

    leg: how many points the study had when this driver began. The seed of a sampler of Optuna's depends on it, because
    the same seed would propose the first points of the study once more.
    """
    seed = int.from_bytes(hashlib.sha256(f"{spec.algorithm.seed}/{leg}".encode()).digest()[:4])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    match spec.algorithm.name:
        case "grid":
            return GridAlgorithm(spec.space)
        case "qmc":
            return QuasiRandomAlgorithm(spec.space, spec.algorithm.seed)
        case "random":
            sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed)
        case unknown:
            assert_never(unknown)
    return OptunaAlgorithm(spec.space, sampler, mode=spec.objective.mode)


def _first_unknown(space: SearchSpace, known: Container[str]) -> Point | None:
    """The first point of a finite space whose key is not known; None where there is no other."""
    return next((point for point in space.grid() if point_key(point) not in known), None)


def _sobol_numbers(dimensions: int, seed: int) -> Iterator[Sequence[float]]:
    """The points of a scrambled Sobol' sequence in [0, 1)^dimensions, without an end that any study comes to."""
    from scipy.stats import qmc  # takes most of a second, which no other driver needs to wait

    engine = qmc.Sobol(dimensions, scramble=True, rng=seed)
    while True:
        yield from engine.random(_BLOCK).tolist()


def _at_quantile(parameter: Parameter, number: float) -> Scalar:
    """The value of a parameter that a uniform number in [0, 1) stands for: all of them are as probable as by `random`.

    The logarithm of an integer is that of the interval from it to the next one.
    """
    match parameter:
        case FloatParameter(step=float(), size=int(size)):
            return parameter.at(int(number * size))
        case FloatParameter(low=low, high=high, log=True):
            return min(max(math.exp(math.log(low) * (1 - number) + math.log(high) * number), low), high)
        case FloatParameter(low=low, high=high):
            return min(low * (1 - number) + high * number, high)
        case IntParameter(low=low, high=high, log=True):
            return min(math.floor(low * math.pow((high + 1) / low, number)), high)
        case IntParameter(low=low, step=step, size=size):
            return low + step * min(int(number * size), size - 1)
        case CategoricalParameter(choices=choices):
            return choices[int(number * len(choices))]


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Scalar:
    match parameter:
        case FloatParameter(step=float(), size=int(size)):
            return parameter.at(trial.suggest_int(name, 0, size - 1))
        case FloatParameter(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)
        case IntParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalParameter(choices=choices):
            return cast(Scalar, trial.suggest_categorical(name, choices))
