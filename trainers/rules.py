"""The rules between the fields of a TrainConfig: what does not go together, in which field, and why.

Each rule names the fields that it reads, so that a search space is checked against it over just those. Values come by
wire name, complete and each sound by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainers.catalog import DATASETS, MODELS, OPTIMIZERS, SAMPLINGS, SMALLEST_PROBABILITY, facts_of
from trainers.knob import ConfigProblem, shown
from trainers.problem_settings import MIN_LOGISTIC_REGULARISER

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """fields: those that `problems` reads, by wire name. problems: what is wrong with a complete set of values."""

    fields: tuple[str, ...]
    problems: Callable[[Values], Iterator[ConfigProblem]]


def _model_fits_dataset(values: Values) -> Iterator[ConfigProblem]:
    dataset, model = facts_of(values), MODELS[values["model"]]
    if model.needs_images and not dataset.is_image:
        yield ConfigProblem("model", f"{model.name} needs images, and {dataset.name} has none")
    elif model.needs_images and min(dataset.shape[1:]) < model.min_image_size:
        height, width = dataset.shape[1:]
        yield ConfigProblem(
            "model",
            f"{model.name} needs images of at least {model.min_image_size} × {model.min_image_size}, "
            f"and those of {dataset.name} are {height} × {width}",
        )
    elif dataset.task not in model.tasks:
        yield ConfigProblem("model", f"{model.name} does not do {dataset.task}, the task of {dataset.name}")


def _images_only(values: Values) -> Iterator[ConfigProblem]:
    if DATASETS[values["dataset"]].is_image:
        return
    for field, neutral in (("augmentation", "none"), ("memory_format", "contiguous")):
        if values[field] != neutral:
            yield ConfigProblem(
                field, f"{field} {values[field]} is for images, and {values['dataset']} has none: leave it {neutral}"
            )


def _problems_validate_on_themselves(values: Values) -> Iterator[ConfigProblem]:
    if values["validation"] == "none" and DATASETS[values["dataset"]].is_problem:
        yield ConfigProblem(
            "validation", f"validation none is for datasets that are loaded: {values['dataset']} holds nothing out"
        )


def _sizes(values: Values) -> Iterator[ConfigProblem]:
    facts, examples = facts_of(values), values["train_examples"]
    whole = facts_of({**values, "train_examples": "all"})
    if isinstance(examples, int) and facts.is_problem:
        yield ConfigProblem(
            "train_examples", f"train_examples is for datasets that are loaded: {facts.name} has n_samples"
        )
    elif isinstance(examples, int) and examples > whole.train_size:
        yield ConfigProblem(
            "train_examples",
            f"train_examples must be at most {whole.train_size}, the training examples of {facts.name}, "
            f"got {shown(examples)}",
        )
    elif values["batch_size"] > facts.train_size:
        yield ConfigProblem(
            "batch_size",
            f"batch_size must be at most {facts.train_size}, the training examples of {facts.name}, "
            f"got {shown(values['batch_size'])}",
        )


def _micro_batches(values: Values) -> Iterator[ConfigProblem]:
    size, batch_size = values["micro_batch_size"], values["batch_size"]
    if isinstance(size, int) and size > batch_size:
        yield ConfigProblem(
            "micro_batch_size", f"micro_batch_size must be at most the batch_size of {batch_size}, got {shown(size)}"
        )


def _loss_needs_a_uniform_share(values: Values) -> Iterator[ConfigProblem]:
    share, size = values["uniform_share"], facts_of(values).train_size
    if values["sampling"] == "loss" and share != "auto" and share < size * SMALLEST_PROBABILITY:
        yield ConfigProblem(
            "uniform_share",
            f"uniform_share must be at least {size * SMALLEST_PROBABILITY:g} for sampling loss of {size} examples, got "
            f"{shown(share)}: one whose loss was 0 would never be drawn",
        )


def _lambda_moves_from_a_number(values: Values) -> Iterator[ConfigProblem]:
    if values["lambda_schedule"] != "constant" and isinstance(values["lambda"], str):
        yield ConfigProblem(
            "lambda_schedule",
            f"lambda_schedule {values['lambda_schedule']} moves a number, and lambda {values['lambda']} moves already",
        )


_WARMUPS = ("lr_warmup_epochs", "lambda_warmup_epochs", "rho_warmup_epochs")


def _warmup(field: str) -> Callable[[Values], Iterator[ConfigProblem]]:
    """The rule that the warm-up of this field fits into the run."""

    def problems(values: Values) -> Iterator[ConfigProblem]:
        if values[field] > values["epochs"]:
            yield ConfigProblem(field, f"{field} must be at most the {values['epochs']} epochs, got {values[field]}")

    return problems


def _problem_is_posed(values: Values) -> Iterator[ConfigProblem]:
    facts, regulariser = facts_of(values), values["regulariser"]
    if facts.name == "logistic" and not isinstance(regulariser, str) and regulariser < MIN_LOGISTIC_REGULARISER:
        yield ConfigProblem(
            "regulariser",
            f"regulariser must be at least {MIN_LOGISTIC_REGULARISER:g} for logistic, got {shown(regulariser)}: "
            "without it there is no minimum",
        )
    if facts.is_problem and facts.shape == (1,) and values["condition_number"] != 1:
        yield ConfigProblem(
            "condition_number",
            f"condition_number must be 1 where n_features is 1, got {shown(values['condition_number'])}",
        )


def _precision_of_problems(values: Values) -> Iterator[ConfigProblem]:
    if DATASETS[values["dataset"]].is_problem and values["precision"] != "float32":
        yield ConfigProblem(
            "precision",
            f"precision {values['precision']} is not for {values['dataset']}, which is computed in float64: "
            "leave it float32",
        )


def _weight_decay_is_taken(values: Values) -> Iterator[ConfigProblem]:
    if values["weight_decay"] and not OPTIMIZERS[values["optimizer"]].has_weight_decay:
        yield ConfigProblem(
            "weight_decay", f"{values['optimizer']} takes no weight decay: it must be 0, got {values['weight_decay']}"
        )


THEORY_FIXES: dict[str, tuple[object, ...]] = {
    "optimizer": ("sgd",),
    "momentum": (0,),
    "weight_decay": (0,),
    "lr_schedule": ("constant", "decreasing"),
    "lr_warmup_epochs": (0,),
    "gradient_clip": ("none",),
    "lambda_schedule": ("constant",),
    "lambda_warmup_epochs": (0,),
    "rho_schedule": ("constant", "decreasing"),
    "rho_warmup_epochs": (0,),
    "perturbation": ("l2",),
    "max_perturbation": ("none",),
    "micro_batch_size": ("none",),
    "sampling": tuple(facts.name for facts in SAMPLINGS.values() if facts.is_static),
}
"""What the theorems assume of every other field."""

_THEORY_FIELDS = ("rho", "lr", "lr_schedule")


def asks_for_theory(values: Values) -> bool:
    """Whether ρ or the learning rate comes from the theorems."""
    return any(values[field] in ("theory", "decreasing") for field in _THEORY_FIELDS)


def _asked(values: Values) -> str:
    return next(f"{field} {values[field]}" for field in _THEORY_FIELDS if values[field] in ("theory", "decreasing"))


def _theory_has_constants(values: Values) -> Iterator[ConfigProblem]:
    facts = DATASETS[values["dataset"]]
    if asks_for_theory(values) and not facts.is_problem:
        names = " and ".join(name for name, other in DATASETS.items() if other.is_problem)
        yield ConfigProblem(
            "dataset", f"{_asked(values)} needs the constants of {names}, which {facts.name} does not have"
        )


def _theory_fixes(field: str, allowed: tuple[object, ...]) -> Callable[[Values], Iterator[ConfigProblem]]:
    """The rule that theory needs one of the allowed values in this field."""

    def problems(values: Values) -> Iterator[ConfigProblem]:
        if asks_for_theory(values) and values[field] not in allowed:
            rule = " or ".join(str(value) for value in allowed)
            yield ConfigProblem(field, f"{field} must be {rule} with {_asked(values)}, got {values[field]!r}")

    return problems


def _theory_has_one_lambda(values: Values) -> Iterator[ConfigProblem]:
    if asks_for_theory(values) and isinstance(values["lambda"], str):
        yield ConfigProblem("lambda", f"lambda must be a number with {_asked(values)}, got {values['lambda']!r}")


def _theory_has_equal_batches(values: Values) -> Iterator[ConfigProblem]:
    facts, batch_size = facts_of(values), values["batch_size"]
    if asks_for_theory(values) and facts.is_problem and facts.train_size % batch_size:
        yield ConfigProblem(
            "batch_size",
            f"batch_size must divide the {facts.train_size} examples with {_asked(values)}, got {batch_size}",
        )


def _batches_can_be_normalised(values: Values) -> Iterator[ConfigProblem]:
    """Batch normalisation of one example with one pixel has nothing to normalise by; torch refuses it."""
    facts, model = facts_of(values), MODELS[values["model"]]
    is_small = facts.is_image and min(facts.shape[1:]) < model.single_example_image_size
    if not (is_small or model.needs_two_examples):
        return
    whole, batch_size = facts.train_size, values["batch_size"]
    batches = {min(batch_size, whole), whole % batch_size or batch_size}
    here = "" if model.needs_two_examples else "on images this small "
    why = f"{model.name} normalises batches, and {here}cannot be trained on a single example"
    if 1 in batches:
        yield ConfigProblem(
            "batch_size", f"batch_size must not leave a batch of one of {whole} examples, got {batch_size}: {why}"
        )
        return
    size = values["micro_batch_size"]
    if isinstance(size, int) and 1 in {remainder for batch in batches for remainder in (size, batch % size)}:
        yield ConfigProblem("micro_batch_size", f"micro_batch_size must not leave a batch of one, got {size}: {why}")


_DATASET_FIELDS = ("dataset", "n_samples", "n_features", "validation", "train_examples")

RULES = (
    Rule((*_DATASET_FIELDS, "model"), _model_fits_dataset),
    Rule(("dataset", "augmentation", "memory_format"), _images_only),
    Rule(("dataset", "validation"), _problems_validate_on_themselves),
    Rule((*_DATASET_FIELDS, "batch_size"), _sizes),
    Rule(("micro_batch_size", "batch_size"), _micro_batches),
    Rule((*_DATASET_FIELDS, "sampling", "uniform_share"), _loss_needs_a_uniform_share),
    Rule(("lambda", "lambda_schedule"), _lambda_moves_from_a_number),
    *(Rule(("epochs", field), _warmup(field)) for field in _WARMUPS),
    Rule((*_DATASET_FIELDS, "regulariser", "condition_number"), _problem_is_posed),
    Rule(("dataset", "precision"), _precision_of_problems),
    Rule(("optimizer", "weight_decay"), _weight_decay_is_taken),
    Rule((*_DATASET_FIELDS, "model", "batch_size", "micro_batch_size"), _batches_can_be_normalised),
    Rule(("dataset", *_THEORY_FIELDS), _theory_has_constants),
    *(
        Rule(tuple(dict.fromkeys((*_THEORY_FIELDS, field))), _theory_fixes(field, allowed))
        for field, allowed in THEORY_FIXES.items()
    ),
    Rule((*_THEORY_FIELDS, "lambda"), _theory_has_one_lambda),
    Rule((*_DATASET_FIELDS, *_THEORY_FIELDS, "batch_size"), _theory_has_equal_batches),
)
