"""TrainConfig: every knob of one training run, declared once.

The declaration serves the training loop, the command line, the study spec, the check of a search space, MLflow's
parameters and the documentation. It imports no torch, so that none of them has to. The rules between fields are in
`trainers.rules`, the metrics that a run reports in `trainers.metrics`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from trainers import rules
from trainers.catalog import AUGMENTATIONS, DATASETS, MODELS, OPTIMIZERS, SAMPLINGS, VALIDATIONS
from trainers.knob import LARGEST_FLOAT, ConfigProblem, Knob, Scalar, plain
from trainers.problem_settings import MAX_CONDITION_NUMBER, SPECTRA, TARGETS
from trainers.schedules import KINDS, LEARNING_RATE_SCHEDULES

__all__ = [
    "LAMBDA_SCHEDULES",
    "LARGEST_FLOAT",
    "ConfigProblem",
    "InvalidTrainConfigError",
    "Knob",
    "Scalar",
    "TrainConfig",
    "defaults",
    "knobs",
    "problems_with",
]

LAMBDA_SCHEDULES = ("1/t", "1-1/t")
"""λ_t as a function of t = 1, 2, … (arXiv 2503.02225): from SAM to USAM, and from USAM to SAM."""

_UNIFORM_SHARES = ", ".join(
    f"{facts.uniform_share:g} for {facts.name}" for facts in SAMPLINGS.values() if facts.uniform_share
)


class InvalidTrainConfigError(ValueError):
    """A training configuration that breaks at least one rule; `problems` has all of them."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


def _knob(default: Any, kind: Literal["int", "float", "str"], description: str, **limits: Any) -> Any:
    return field(default=default, metadata={"knob": Knob(kind, description, **limits)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run. λ is `lam` here and `lambda` on every wire; see `from_mapping` and `to_mapping`.

    Numbers may be of any kind, such as NumPy's; the fields hold Python's own, which checkpoints and JSON carry.
    Raises InvalidTrainConfigError, with every problem at once, for values out of range and for fields that do not go
    together.
    """

    # What is learned, by what, for how long.
    dataset: str = _knob("digits", "str", "what is learned", choices=tuple(DATASETS))
    model: str = _knob("mlp", "str", "what learns it; torchvision's classifiers by their names", choices=tuple(MODELS))
    epochs: int = _knob(20, "int", "passes over the training split", low=1, high=100_000)
    batch_size: int = _knob(64, "int", "examples in a step; the last, smaller batch of an epoch is used too", low=1)
    train_examples: int | str = _knob(
        "all", "int", "of a dataset's training split only so many, always the same ones", low=1, choices=("all",)
    )
    validation: str = _knob(
        "held_out",
        "str",
        "a dataset's validation split: held out of the published training set, or none, to learn from all of that",
        choices=VALIDATIONS,
    )
    augmentation: str = _knob(
        "none",
        "str",
        "of training images, drawn anew for each: random crop after reflect-padding, horizontal flip, cutout",
        choices=AUGMENTATIONS,
    )

    # The synthetic problems, which datasets that are loaded do not read.
    n_samples: int | str = _knob(
        "auto", "int", "ridge, logistic: rows n; auto is 100 and 200", low=2, high=4096, choices=("auto",)
    )
    n_features: int | str = _knob(
        "auto", "int", "ridge, logistic: columns d; auto is 100 and 10", low=1, high=4096, choices=("auto",)
    )
    condition_number: float = _knob(
        10.0,
        "float",
        "ridge, logistic: largest over smallest singular value of the rows' matrix",
        low=1,
        high=MAX_CONDITION_NUMBER,
    )
    spectrum: str = _knob(
        "outlier",
        "str",
        "ridge, logistic: singular values 1, condition_number and the rest from U[1, 2], or spread geometrically",
        choices=SPECTRA,
    )
    targets: str = _knob(
        "independent",
        "str",
        "ridge, logistic: drawn independently of the rows, or consistent with one solution (interpolation)",
        choices=TARGETS,
    )
    regulariser: float | str = _knob(
        "auto", "float", "ridge, logistic: r in (r/2)‖x‖²; auto is 3/n and 1/n", low=0, high=1e6, choices=("auto",)
    )

    # The base optimizer and its learning rate.
    optimizer: str = _knob("sgd", "str", "the base optimizer, torch's of that name", choices=tuple(OPTIMIZERS))
    lr: float | str = _knob(
        0.1,
        "float",
        "learning rate γ; theory is γ* of Theorem 3.2 (ridge, logistic)",
        low=0,
        low_open=True,
        choices=("theory",),
    )
    momentum: float = _knob(0.9, "float", "momentum of sgd and rmsprop; others do not read it", low=0, high=1)
    weight_decay: float = _knob(0.0, "float", "of the base optimizer; it does not enter the ascent step", low=0)
    lr_schedule: str = _knob(
        "constant",
        "str",
        "how lr falls, batch by batch; step is ×0.1 at 75 % and 90 %, decreasing is Theorem 3.5 (ridge, logistic)",
        choices=LEARNING_RATE_SCHEDULES,
    )
    lr_warmup_epochs: int = _knob(0, "int", "epochs over which lr rises linearly to its schedule", low=0, high=100_000)
    gradient_clip: float | str = _knob(
        "none", "float", "largest norm of the gradient that is descended along", low=0, low_open=True, choices=("none",)
    )

    # Unified SAM.
    lam: float | str = _knob(
        1.0,
        "float",
        "λ: 1 is SAM, 0 is USAM; 1/t and 1-1/t are the paper's schedules",
        low=0,
        high=1,
        choices=LAMBDA_SCHEDULES,
        wire_name="lambda",
    )
    lambda_schedule: str = _knob(
        "constant", "str", "how a number λ moves to lambda_end over the run", choices=("constant", "linear", "cosine")
    )
    lambda_end: float = _knob(0.0, "float", "λ at the end of a linear or cosine lambda_schedule", low=0, high=1)
    lambda_warmup_epochs: int = _knob(0, "int", "epochs over which λ rises linearly from 0", low=0, high=100_000)
    t_counts: str = _knob("steps", "str", "what t is in 1/t and 1-1/t", choices=("steps", "epochs"))
    rho: float | str = _knob(
        0.05,
        "float",
        "radius ρ of the ascent step; 0 is the base optimizer, theory is ρ*/2 of Theorem 3.2 (ridge, logistic)",
        low=0,
        choices=("theory",),
    )
    rho_schedule: str = _knob(
        "constant",
        "str",
        "how ρ moves: to rho_end over the run, as ρ/t or ρ·(1-1/t), or as min(ρ, 1/(2t+1)) of Theorem 3.5 (decreasing)",
        choices=KINDS,
    )
    rho_end: float = _knob(0.0, "float", "ρ at the end of a linear or cosine rho_schedule", low=0)
    rho_warmup_epochs: int = _knob(0, "int", "epochs over which ρ rises linearly from 0", low=0, high=100_000)
    perturbation: str = _knob(
        "l2", "str", "shape of the ascent: a ball, or scaled by each weight's size (ASAM)", choices=("l2", "adaptive")
    )
    max_perturbation: float | str = _knob(
        "none", "float", "largest norm of the ascent, for λ < 1", low=0, low_open=True, choices=("none",)
    )
    micro_batch_size: int | str = _knob(
        "none",
        "int",
        "m of m-sharpness: every so many examples of a batch ascend by their own gradient",
        low=1,
        choices=("none",),
    )

    # How mini-batches are drawn.
    sampling: str = _knob("uniform", "str", "how mini-batches are drawn, always unbiased", choices=tuple(SAMPLINGS))
    uniform_share: float | str = _knob(
        "auto",
        "float",
        f"importance samplings: α of the mixture (1 − α)·p + α/n; auto is {_UNIFORM_SHARES}",
        low=0,
        high=1,
        choices=("auto",),
    )
    presample_factor: int = _knob(
        3,
        "int",
        "gradient_norm only: candidates scored for one drawn (B = factor × batch_size)",
        low=2,
        high=64,
    )

    # What is measured.
    landscape: str = _knob(
        "last",
        "str",
        "when sharpness, Hessian and the loss along the gradient are measured",
        choices=("none", "last", "every_epoch"),
    )
    landscape_rho: float = _knob(
        0.05, "float", "radius within which sharpness is measured", low=0, low_open=True, high=100
    )
    landscape_examples: int = _knob(
        128, "int", "training examples over which the landscape is measured, as many as there are", low=1, high=100_000
    )
    report_every_epochs: int = _knob(
        1, "int", "epochs from one result to the next; the last epoch always has one", low=1, high=100_000
    )

    # On what, and how fast.
    precision: str = _knob(
        "float32",
        "str",
        "of the passes; the lower ones by autocast, float16 with loss scaling; ridge and logistic take float64",
        choices=("float32", "bfloat16", "float16"),
    )
    memory_format: str = _knob(
        "contiguous", "str", "of images and their convolutions", choices=("contiguous", "channels_last")
    )
    compile: str = _knob(
        "none",
        "str",
        "mode of torch.compile for the model",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
    )
    seed: int = _knob(0, "int", "of initialisation, sampling and augmentation", low=0, high=2**32 - 1)
    device: str = _knob("auto", "str", "auto takes CUDA where there is one", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        problems = problems_with(self.to_mapping())
        if problems:
            raise InvalidTrainConfigError(problems)
        for item in fields(self):
            object.__setattr__(self, item.name, plain(getattr(self, item.name)))

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
    return dict(_KNOBS)


def defaults() -> dict[str, Scalar]:
    """Each field's default by wire name."""
    return dict(_DEFAULTS)


def problems_with(values: Mapping[str, object]) -> list[ConfigProblem]:
    """Everything that is wrong with these values, by wire name, before anything is built from them.

    Fields that are wrong by themselves are left out of the rules between fields.
    """
    problems = [ConfigProblem(name, f"unknown field{_meant(name)}") for name in values if name not in _KNOBS]
    complete: dict[str, Any] = {name: values.get(name, default) for name, default in _DEFAULTS.items()}
    for name, knob in _KNOBS.items():
        message = knob.problem_with(name, complete[name])
        if message:
            problems.append(ConfigProblem(name, message))
        else:
            complete[name] = plain(complete[name])
    unsound = {problem.field for problem in problems}
    for rule in rules.RULES:
        if unsound.isdisjoint(rule.fields):
            problems += rule.problems(complete)
    return list(dict.fromkeys(problems))


def _meant(name: str) -> str:
    """The field that is spelt nearly so, or all of them."""
    close = difflib.get_close_matches(name, _KNOBS, n=1) if len(name) <= 64 else []
    return f"; did you mean {close[0]!r}?" if close else f"; the fields are {', '.join(_KNOBS)}"


_KNOBS: dict[str, Knob] = {
    item.metadata["knob"].wire_name or item.name: item.metadata["knob"] for item in fields(TrainConfig)
}
_FIELD_BY_WIRE = dict(zip(_KNOBS, (item.name for item in fields(TrainConfig)), strict=True))
_DEFAULTS: dict[str, Scalar] = dict(
    zip(_KNOBS, (cast(Scalar, item.default) for item in fields(TrainConfig)), strict=True)
)
