"""TrainConfig: every knob of one training run, declared once.

The declaration serves the training loop, the command line, the study spec, the check of a search space, MLflow's
parameters and the documentation. It imports no torch, so that none of them has to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from trainers.catalog import DATASETS, MODELS, SAMPLINGS

LAMBDA_SCHEDULES = ("1/t", "1-1/t")
"""λ_t as a function of the step t = 1, 2, … (arXiv 2503.02225): from SAM to USAM, and from USAM to SAM."""

LARGEST_FLOAT = 1e30
"""Bound of every number of kind "float": single precision ends at 3.4e38, and Adam divides the rate by 1 − β."""

Scalar = float | int | str
"""A value that one knob can take on the wire."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a value: the field by its wire name, and the rule with the value."""

    field: str
    message: str


class InvalidTrainConfigError(ValueError):
    """A training configuration that breaks at least one rule; `problems` has all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Knob:
    """What one field of TrainConfig accepts.

    kind: the type on the wire. low, high: the inclusive range of a number, `low_open` makes low exclusive.
    choices: the only strings accepted (for kind "int" or "float": strings accepted beside numbers).
    Any number of kind "float" is finite and at most `LARGEST_FLOAT` too.
    """

    kind: Literal["int", "float", "str"]
    description: str
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    wire_name: str | None = None

    def problem_with(self, name: str, value: object) -> str | None:
        """The rule that `value` breaks, with the value; None where it breaks none."""
        if isinstance(value, str):
            if value in self.choices:
                return None
            if self.kind == "str" or self.choices:
                return f"{name} must be {self.rule}, got {_shown(value)}"
        number = isinstance(value, int if self.kind == "int" else (int, float))
        if self.kind == "str" or not number or isinstance(value, bool):
            return f"{name} must be {self.rule}, got {_shown(value)}"
        assert isinstance(value, (int, float))  # noqa: S101 (narrows the type for mypy)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} must be finite, got {value!r}"
        below = self.low is not None and (value <= self.low if self.low_open else value < self.low)
        if below or (self.high is not None and value > self.high):
            return f"{name} must be {self.rule}, got {_shown(value)}"
        if self.kind == "float" and value > LARGEST_FLOAT:
            return f"{name} must be at most {LARGEST_FLOAT:g}, what single precision can hold, got {_shown(value)}"
        return None

    @property
    def rule(self) -> str:
        """What the knob accepts, in words: "one of …", "a number in [0, 1]"."""
        strings = ", ".join(repr(choice) for choice in self.choices)
        if self.kind == "str":
            return f"one of {strings}"
        noun = "an integer" if self.kind == "int" else "a number"
        if self.low is not None and self.high is not None:
            opening = "(" if self.low_open else "["
            rule = f"{noun} in {opening}{_plain(self.low)}, {_plain(self.high)}]"
        elif self.low is not None:
            rule = f"{noun} {'above' if self.low_open else 'of at least'} {_plain(self.low)}"
        else:
            rule = noun
        return f"{rule} or one of {strings}" if strings else rule


def _shown(value: object) -> str:
    """The value as a message has it; an integer beyond 64 bits by its size, as Python does not write very long ones."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"{'a negative' if value < 0 else 'an'} integer of {value.bit_length()} bits"
    return repr(value)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def _knob(default: Any, kind: Literal["int", "float", "str"], description: str, **limits: Any) -> Any:
    return field(default=default, metadata={"knob": Knob(kind, description, **limits)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run. λ is `lam` here and `lambda` on every wire; see `from_mapping` and `to_mapping`.

    Raises InvalidTrainConfigError, with every problem at once, for values out of range and for fields that do not go
    together.
    """

    dataset: str = _knob("digits", "str", "what is learned", choices=tuple(DATASETS))
    model: str = _knob("mlp", "str", "what learns it", choices=tuple(MODELS))
    epochs: int = _knob(20, "int", "passes over the training split", low=1, high=100_000)
    batch_size: int = _knob(64, "int", "examples in a step; the last, smaller batch of an epoch is used too", low=1)
    optimizer: str = _knob("sgd", "str", "the base optimizer", choices=("sgd", "adam", "adamw"))
    lr: float = _knob(0.1, "float", "learning rate γ", low=0, low_open=True)
    momentum: float = _knob(0.9, "float", "momentum of sgd; adam and adamw do not read it", low=0, high=1)
    weight_decay: float = _knob(0.0, "float", "of the base optimizer; it does not enter the ascent step", low=0)
    lr_schedule: str = _knob(
        "constant", "str", "how lr falls over the epochs, stepped per batch", choices=("constant", "cosine")
    )
    lam: float | str = _knob(
        1.0,
        "float",
        "λ: 1 is SAM, 0 is USAM; a schedule counts steps",
        low=0,
        high=1,
        choices=LAMBDA_SCHEDULES,
        wire_name="lambda",
    )
    rho: float = _knob(0.05, "float", "radius ρ of the ascent step; 0 is the base optimizer", low=0)
    sampling: str = _knob("uniform", "str", "how mini-batches are drawn, always unbiased", choices=tuple(SAMPLINGS))
    presample_factor: int = _knob(
        3,
        "int",
        "gradient_norm only: candidates scored for one drawn (B = factor × batch_size)",
        low=2,
        high=64,
    )
    seed: int = _knob(0, "int", "of initialisation and sampling", low=0, high=2**32 - 1)
    device: str = _knob("auto", "str", "auto takes CUDA where there is one", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        problems = _problems({name: getattr(self, name) for name in _FIELD_NAMES})
        if problems:
            raise InvalidTrainConfigError(problems)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> TrainConfig:
        """The configuration with these wire names and values, defaults for the rest.

        Raises InvalidTrainConfigError, with every problem at once, also for unknown names.
        """
        problems = problems_with(values)
        if problems:
            raise InvalidTrainConfigError(problems)
        return cls(**{_FIELD_BY_WIRE[wire]: value for wire, value in values.items()})  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, Scalar]:
        """Every field by its wire name, defaults included; `from_mapping` reads it back."""
        return {wire: getattr(self, name) for wire, name in _FIELD_BY_WIRE.items()}


def knobs() -> dict[str, Knob]:
    """What each field accepts, by wire name, in the order of declaration."""
    return {item.metadata["knob"].wire_name or item.name: item.metadata["knob"] for item in fields(TrainConfig)}


def defaults() -> dict[str, Scalar]:
    """Each field's default by wire name."""
    return TrainConfig().to_mapping()


def problems_with(values: Mapping[str, object]) -> list[Problem]:
    """Everything that is wrong with these values, by wire name, before anything is built from them."""
    unknown = [
        Problem(name, f"unknown field; the fields are {', '.join(_FIELD_BY_WIRE)}")
        for name in values
        if name not in _FIELD_BY_WIRE
    ]
    known = {_FIELD_BY_WIRE[wire]: value for wire, value in values.items() if wire in _FIELD_BY_WIRE}
    complete = {name: known.get(name, _DEFAULTS[name]) for name in _FIELD_NAMES}
    return unknown + _problems(complete)


def reported_metrics(dataset: str) -> tuple[str, ...]:
    """Names of the metrics that a training run on this dataset reports, the once-at-the-end test metrics last."""
    classification = DATASETS[dataset].task == "classification"
    every_epoch = ["train_loss", "val_loss", *(["val_accuracy"] if classification else [])]
    every_epoch += ["grad_norm", "perturbation_norm", "lr", "rho", "lambda", "samples_per_s"]
    every_epoch += ["effective_sample_size"]
    return (*every_epoch, "test_loss", *(["test_accuracy"] if classification else []))


def _problems(values: Mapping[str, object]) -> list[Problem]:
    """Problems of a complete set of values by field name: each field alone, then fields that do not go together."""
    problems = []
    for wire, knob in _KNOBS.items():
        message = knob.problem_with(wire, values[_FIELD_BY_WIRE[wire]])
        if message:
            problems.append(Problem(wire, message))
    dataset = DATASETS.get(_text(values["dataset"]))
    model = MODELS.get(_text(values["model"]))
    sampling = SAMPLINGS.get(_text(values["sampling"]))
    if dataset and model:
        if model.needs_images and not dataset.is_image:
            problems.append(Problem("model", f"{model.name} needs images, and {dataset.name} has none"))
        if dataset.task not in model.tasks:
            problems.append(Problem("model", f"{model.name} does not do {dataset.task}, the task of {dataset.name}"))
    if dataset and sampling and dataset.task not in sampling.tasks:
        problems.append(
            Problem("sampling", f"{sampling.name} does not score {dataset.task}, the task of {dataset.name}")
        )
    batch_size = values["batch_size"]
    if dataset and isinstance(batch_size, int) and batch_size > dataset.train_size:
        problems.append(
            Problem(
                "batch_size",
                f"batch_size must be at most {dataset.train_size}, the training examples of {dataset.name}, "
                f"got {_shown(batch_size)}",
            )
        )
    return problems


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


_FIELD_NAMES = tuple(item.name for item in fields(TrainConfig))
_DEFAULTS: dict[str, object] = {item.name: item.default for item in fields(TrainConfig)}
_KNOBS = knobs()
_FIELD_BY_WIRE = dict(zip(_KNOBS, _FIELD_NAMES, strict=True))
