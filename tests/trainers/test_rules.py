import itertools
import re

import pytest

from trainers.catalog import DATASETS, facts_of
from trainers.config import TrainConfig, defaults, knobs, problems_with
from trainers.metrics import METRIC_FIELDS, epoch_metrics, every_metric, has_bound, reported_metrics
from trainers.rules import RULES

THEORY = {
    "dataset": "ridge",
    "model": "linear",
    "batch_size": 1,
    "momentum": 0,
    "lambda": 0.5,
    "rho": "theory",
    "lr": "theory",
}


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"dataset": "ridge", "model": "small_cnn"}, "model", "needs images, and ridge has none"),
        ({"dataset": "ridge", "model": "mlp"}, "model", "does not do regression"),
        ({"dataset": "logistic", "model": "mlp"}, "model", "does not do binary"),
        ({"dataset": "ridge", "model": "linear", "augmentation": "crop"}, "augmentation", "is for images"),
        ({"dataset": "ridge", "model": "linear", "memory_format": "channels_last"}, "memory_format", "is for images"),
        ({"batch_size": 1150}, "batch_size", "at most 1149"),
        ({"batch_size": 65, "train_examples": 64}, "batch_size", "at most 64"),
        ({"dataset": "ridge", "model": "linear", "batch_size": 31, "n_samples": 30}, "batch_size", "at most 30"),
        ({"train_examples": 1150}, "train_examples", "at most 1149"),
        ({"train_examples": 1438, "validation": "none"}, "train_examples", "at most 1437"),
        ({"batch_size": 1438, "validation": "none"}, "batch_size", "at most 1437"),
        ({"dataset": "ridge", "model": "linear", "validation": "none"}, "validation", "ridge holds nothing out"),
        ({"dataset": "ridge", "model": "linear", "train_examples": 64}, "train_examples", "has n_samples"),
        ({"batch_size": 8, "micro_batch_size": 9}, "micro_batch_size", "at most the batch_size of 8, got 9"),
        ({"sampling": "loss", "uniform_share": 0}, "uniform_share", "at least 1.149e-09 for sampling loss"),
        ({"sampling": "loss", "uniform_share": 1e-17}, "uniform_share", "got 1e-17"),
        ({"lambda": "1/t", "lambda_schedule": "linear"}, "lambda_schedule", "moves a number"),
        ({"epochs": 3, "lr_warmup_epochs": 4}, "lr_warmup_epochs", "at most the 3 epochs, got 4"),
        ({"epochs": 3, "rho_warmup_epochs": 4}, "rho_warmup_epochs", "at most the 3 epochs, got 4"),
        ({"dataset": "logistic", "model": "linear", "regulariser": 0}, "regulariser", "there is no minimum"),
        ({"dataset": "ridge", "model": "linear", "n_features": 1}, "condition_number", "must be 1 where"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "weight_decay", "rprop takes no weight decay"),
        ({"dataset": "ridge", "model": "linear", "precision": "bfloat16"}, "precision", "computed in float64"),
        ({"model": "preact_resnet18", "batch_size": 1148}, "batch_size", "must not leave a batch of one"),
        ({"model": "preact_resnet18", "batch_size": 1}, "batch_size", "must not leave a batch of one"),
        ({"model": "preact_resnet18", "micro_batch_size": 1}, "micro_batch_size", "must not leave a batch of one"),
        ({"model": "preact_resnet18", "batch_size": 13, "micro_batch_size": 6}, "micro_batch_size", "a batch of one"),
        ({"rho": "theory"}, "dataset", "rho theory needs the constants of ridge and logistic"),
        ({"lr": "theory"}, "dataset", "lr theory needs"),
        ({"lr_schedule": "decreasing"}, "dataset", "lr_schedule decreasing needs"),
        ({**THEORY, "momentum": 0.9}, "momentum", "momentum must be 0 with rho theory, got 0.9"),
        ({**THEORY, "weight_decay": 1e-4}, "weight_decay", "must be 0"),
        ({**THEORY, "optimizer": "adam"}, "optimizer", "must be sgd"),
        ({**THEORY, "lr_schedule": "cosine"}, "lr_schedule", "constant or decreasing"),
        ({**THEORY, "rho_schedule": "linear"}, "rho_schedule", "constant or decreasing"),
        ({**THEORY, "lambda": "1/t"}, "lambda", "must be a number"),
        ({**THEORY, "sampling": "loss"}, "sampling", "uniform or uniform_with_replacement or nice or lipschitz"),
        ({**THEORY, "perturbation": "adaptive"}, "perturbation", "must be l2"),
        ({**THEORY, "gradient_clip": 1.0}, "gradient_clip", "must be none"),
        ({**THEORY, "micro_batch_size": 1}, "micro_batch_size", "must be none"),
        ({**THEORY, "batch_size": 3}, "batch_size", "must divide the 100 examples"),
    ],
)
def test_fields_that_do_not_go_together_are_named(values: dict[str, object], field: str, words: str) -> None:
    (problem,) = [found for found in problems_with(values) if found.field == field]
    assert words in problem.message


@pytest.mark.parametrize(
    "values",
    [
        THEORY,
        {**THEORY, "sampling": "lipschitz", "uniform_share": 0.5, "batch_size": 10},
        {**THEORY, "dataset": "logistic", "lr_schedule": "decreasing", "rho_schedule": "decreasing"},
        {"sampling": "loss"},
        {"model": "small_cnn", "batch_size": 1148},
        {"model": "preact_resnet18", "dataset": "mnist", "batch_size": 1},
        {"lambda": 0.3, "lambda_schedule": "cosine"},
        {"model": "small_cnn", "augmentation": "crop_flip_cutout", "memory_format": "channels_last"},
    ],
)
def test_what_goes_together_is_accepted(values: dict[str, object]) -> None:
    assert problems_with(values) == []


def test_a_field_that_is_wrong_by_itself_is_left_out_of_the_rules_between_fields() -> None:
    (problem,) = problems_with({"dataset": "rigde", "model": "small_cnn"})
    assert problem.field == "dataset"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.problems.__name__)
def test_a_rule_reads_no_field_that_it_does_not_name(rule: object) -> None:
    class Watched(dict[str, object]):
        def __getitem__(self, name: str) -> object:
            assert name in rule.fields  # type: ignore[attr-defined]
            return super().__getitem__(name)

    for values in ({}, THEORY, {"dataset": "logistic", "model": "linear"}, {"dataset": "cifar10", "model": "wrn_16_4"}):
        list(rule.problems(Watched({**defaults(), **values})))  # type: ignore[attr-defined]
    assert set(rule.fields) <= set(knobs())  # type: ignore[attr-defined]


def test_the_size_of_a_run_is_the_datasets_unless_the_configuration_chooses_it() -> None:
    assert facts_of(defaults()) == DATASETS["digits"]
    assert facts_of({**defaults(), "train_examples": 100}).train_size == 100
    assert facts_of({**defaults(), "validation": "none"}).train_size == 1437
    assert facts_of({**defaults(), "validation": "none", "train_examples": 1300}).train_size == 1300
    ridge = facts_of({**defaults(), "dataset": "ridge", "n_samples": 30, "n_features": 7})
    assert (ridge.train_size, ridge.shape) == (30, (7,))


def test_metrics_follow_the_configuration() -> None:
    digits = reported_metrics(defaults())
    assert {"val_accuracy", "val_calibration_error", "test_accuracy", "hessian_trace"} <= set(digits)
    assert "hessian_trace" not in epoch_metrics(defaults())
    unvalidated = reported_metrics({**defaults(), "validation": "none"})
    assert set(digits) - set(unvalidated) == {"val_loss", "val_accuracy", "val_calibration_error"}
    assert "hessian_trace" not in reported_metrics({**defaults(), "landscape": "none"})
    assert "hessian_trace" in epoch_metrics({**defaults(), "landscape": "every_epoch"})
    ridge = TrainConfig.from_mapping({**THEORY, "sampling": "nice"}).to_mapping()
    assert {"suboptimality", "bound"} <= set(epoch_metrics(ridge))
    assert "val_accuracy" not in reported_metrics(ridge)
    assert not has_bound({**ridge, "lr": 0.1})
    assert has_bound({**ridge, "lr_schedule": "decreasing"})
    assert {field for field in METRIC_FIELDS if field not in knobs()} == set()
    assert all(re.fullmatch(r"\w+", name) for name in (*digits, *reported_metrics(ridge)))


@pytest.mark.parametrize(
    ("sampling", "batch_size", "expected"),
    [
        ("uniform", 1, False),
        ("uniform", 25, False),
        ("uniform", 50, True),
        ("uniform_with_replacement", 1, True),
        ("nice", 10, True),
        ("lipschitz", 10, True),
    ],
)
def test_permutations_have_no_bound_unless_a_batch_is_the_whole_split(
    sampling: str, batch_size: int, expected: bool
) -> None:
    choice = {**THEORY, "sampling": sampling, "batch_size": batch_size, "n_samples": 50}
    values = TrainConfig.from_mapping(choice).to_mapping()
    assert has_bound(values) is expected
    assert ("bound" in epoch_metrics(values)) is expected


def test_every_metric_that_some_run_reports_is_known() -> None:
    """What refuses a misspelt metric before it knows the run."""
    choices = [(defaults()[field], *knobs()[field].choices) for field in METRIC_FIELDS]
    for chosen in itertools.product(*choices):
        values = {**defaults(), **dict(zip(METRIC_FIELDS, chosen, strict=True))}
        assert every_metric().issuperset(epoch_metrics(values)), values
        assert every_metric().issuperset(reported_metrics(values)), values


def test_the_metrics_depend_on_no_field_but_those_that_are_named() -> None:
    """What a search space is checked by."""

    class Watched(dict[str, object]):
        def __getitem__(self, name: str) -> object:
            assert name in (*METRIC_FIELDS, "n_features", "train_examples")  # facts_of reads these two for nothing here
            return super().__getitem__(name)

    for values in ({}, THEORY, {**THEORY, "sampling": "nice", "landscape": "every_epoch"}):
        reported_metrics(Watched({**defaults(), **values}))
