"""What the checks, the API and MLflow know of a dataset, a model, a base optimizer and a sampling, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "binary", "regression"]
"""binary: one output, targets −1 and 1."""


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A dataset as the checks need it.

    shape: of one example, without the batch; (channels, height, width) for images, (features,) for vectors.
    classes: number of classes, hence of a model's outputs; 1 for a regression and for a binary target.
    train_size: examples in the training split, after the validation split was held out.
    validation_size: examples that are held out of the published training set for validation.
    is_problem: a synthetic problem with known constants, whose size is chosen (see `trainers.catalog.facts_of`).
    code: "module:function" of another package that loads it (see `trainers.plugins`); None for samstudy's own.
    """

    name: str
    description: str
    task: Task
    shape: tuple[int, ...]
    classes: int
    train_size: int
    validation_size: int = 0
    is_problem: bool = False
    code: str | None = None

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as the checks need it: what it takes as input and which tasks it can be trained for.

    min_image_size: height and width, in pixels, of the smallest images that it can be trained on.
    single_example_image_size: those of the smallest images of which one can be a batch; a smaller one leaves its batch
    normalisation a single pixel. 1 where there is none, or it always has more.
    needs_two_examples: whether no batch may be one example, on inputs of any size, as where each example has one value
    of what is normalised over the batch.
    code: "module:function" of another package that builds it (see `trainers.plugins`); None for samstudy's own.
    """

    name: str
    description: str
    tasks: tuple[Task, ...]
    needs_images: bool = True
    min_image_size: int = 1
    single_example_image_size: int = 1
    needs_two_examples: bool = False
    code: str | None = None


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """A base optimizer: its class in torch.optim, which of our settings it takes, and whether it has fused kernels on
    every device. Adagrad has them on CUDA since torch 2.13 only, where UnifiedSAM takes them by itself."""

    name: str
    torch_name: str
    has_momentum: bool = False
    has_weight_decay: bool = True
    has_fused: bool = False


@dataclass(frozen=True, slots=True)
class SamplingFacts:
    """A way of drawing mini-batches.

    is_static: its probabilities do not depend on the weights of the model.
    has_independent_steps: no batch depends on the ones before, as the theorems' bounds ask for.
    uniform_share: α where the configuration leaves it open.
    """

    name: str
    description: str
    is_static: bool
    has_independent_steps: bool
    is_importance: bool = False
    uniform_share: float = 0.0
