"""Datasets that other packages load: what comes must be what they have announced, which is what was checked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainers.datasets.dataset import Dataset, DatasetUnavailableError, Split
from trainers.facts import DatasetFacts
from trainers.plugins import load_code


def load_announced(code: str, facts: DatasetFacts) -> Dataset:
    """The dataset that another package's code loads. Raises DatasetUnavailableError where it is not as announced."""
    dataset = load_code(code)()
    if not isinstance(dataset, Dataset):
        raise DatasetUnavailableError(f"{code} must return a trainers.datasets.Dataset, got {type(dataset)}")
    for problem in _problems(dataset, facts):
        raise DatasetUnavailableError(f"dataset {facts.name}, of {code}, is not as it is announced: {problem}")
    return dataset


def _problems(dataset: Dataset, facts: DatasetFacts) -> Iterator[str]:
    if dataset.objective.task != facts.task:
        yield f"its task must be {facts.task}, got {dataset.objective.task}"
    if dataset.validation is None:
        yield "it has no validation split"
        return
    for name, split, size in (
        ("training", dataset.train, facts.train_size),
        ("validation", dataset.validation, facts.validation_size),
        ("test", dataset.test, None),
    ):
        yield from (f"its {name} split {problem}" for problem in _split_problems(split, facts, size))
    if facts.is_image != (dataset.normalisation is not None):
        yield "images, and nothing else, have a normalisation"


def _split_problems(split: Split, facts: DatasetFacts, size: int | None) -> Iterator[str]:
    inputs, targets = split.inputs, split.targets
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
        yield f"must have inputs and targets that are tensors, got {type(inputs)} and {type(targets)}"
        return
    if len(inputs) != len(targets) or len(targets) != (size or len(targets)) or not len(targets):
        yield f"must have {size or 'one or more'} examples, got {len(inputs)} inputs and {len(targets)} targets"
        return
    if inputs.shape[1:] != facts.shape:
        yield f"must have inputs of shape {facts.shape}, got {tuple(inputs.shape[1:])}"
    wanted = torch.uint8 if facts.is_image else torch.float32
    if inputs.dtype != wanted:
        yield f"must have inputs of {wanted}, got {inputs.dtype}"
    if inputs.requires_grad or not bool(torch.isfinite(inputs).all()):
        yield "must have finite inputs that require no gradient"
    if targets.dtype != torch.int64 or targets.dim() != 1:
        yield f"must have targets (n,) of torch.int64, got {targets.dim()} dimensions of {targets.dtype}"
    elif not 0 <= int(targets.min()) <= int(targets.max()) < facts.classes:
        yield f"must have targets from 0 to {facts.classes - 1}, got {int(targets.min())} to {int(targets.max())}"
