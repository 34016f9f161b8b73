"""The metrics that a training run reports, by name, known from its configuration without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from trainers.catalog import DATASETS, SAMPLINGS, facts_of
from trainers.config import defaults

LANDSCAPE = (
    "sharpness_one_step",
    "sharpness_multi_step",
    "hessian_max_eigenvalue",
    "hessian_max_eigenvalue_error",
    "hessian_trace",
    "hessian_trace_standard_error",
    "loss_at_minus_2_rho",
    "loss_at_minus_rho",
    "loss_at_plus_rho",
    "loss_at_plus_2_rho",
)
"""Those of `trainers.landscape`."""

SAMPLING = ("effective_sample_size", "largest_weight", "variance_ratio", "importance_share")
"""Those of `trainers.sampling`."""

METRIC_FIELDS = ("dataset", "validation", "landscape", "lr", "sampling", "batch_size", "n_samples")
"""The fields of a configuration that decide which metrics its run reports."""


def is_accuracy(metric: str) -> bool:
    """Whether this is the name of an accuracy: a share in [0, 1], which people read in per cent."""
    return metric.endswith("_accuracy")


def has_bound(values: Mapping[str, Any]) -> bool:
    """Whether the theorems bound this run's mean suboptimality: its step sizes and its sampling are theirs.

    values: a complete configuration by wire name. No theorem is of steps that depend on each other, as those of
    `uniform` do through the epoch's permutation, unless a batch is the whole training split.
    """
    if values["lr"] != "theory":
        return False
    has_independent_steps = SAMPLINGS[values["sampling"]].has_independent_steps
    return has_independent_steps or values["batch_size"] == facts_of(values).train_size


@cache
def every_metric() -> frozenset[str]:
    """Names of all metrics that some run reports."""
    richest = {**defaults(), "landscape": "last", "lr": "theory", "sampling": "uniform_with_replacement"}
    return frozenset(name for dataset in DATASETS for name in reported_metrics({**richest, "dataset": dataset}))


def reported_metrics(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the metrics that a run reports, those of every epoch first, the once-at-the-end ones last.

    values: a complete configuration by wire name.
    """
    return (*epoch_metrics(values), *_last_metrics(values))


def epoch_metrics(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the metrics that every reported epoch has."""
    facts = DATASETS[values["dataset"]]
    names = ["train_loss"]
    if values["validation"] != "none":
        names += _of_split("val", classifies=facts.task != "regression")
    names += ["grad_norm", "perturbation_norm", "skipped_steps", "lr", "rho", "lambda", "samples_per_s", *SAMPLING]
    if facts.is_problem:
        names.append("suboptimality")
    if has_bound(values):
        names.append("bound")
    if values["landscape"] == "every_epoch":
        names += LANDSCAPE
    return tuple(names)


def _last_metrics(values: Mapping[str, Any]) -> tuple[str, ...]:
    at_the_end = LANDSCAPE if values["landscape"] == "last" else ()
    return (*at_the_end, *_of_split("test", classifies=DATASETS[values["dataset"]].task != "regression"))


def _of_split(prefix: str, *, classifies: bool) -> tuple[str, ...]:
    accuracy = (f"{prefix}_accuracy", f"{prefix}_calibration_error") if classifies else ()
    return (f"{prefix}_loss", *accuracy)
