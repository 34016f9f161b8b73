"""What can be trained: the facts about every dataset, model and sampling, known without importing torch.

The loaders live in `trainers.datasets`, the networks in `trainers.models`, the samplers in `trainers.sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression"]


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A dataset as the checks need it.

    shape: of one example, without the batch; (channels, height, width) for images, (features,) for vectors.
    classes: number of classes; 1 for a regression.
    train_size: examples in the training split, after the validation split was held out.
    """

    name: str
    description: str
    task: Task
    shape: tuple[int, ...]
    classes: int
    train_size: int

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as the checks need it: what it takes as input and which tasks it can be trained for."""

    name: str
    description: str
    needs_images: bool
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class SamplingFacts:
    """A way of drawing mini-batches; `tasks` are those whose losses it can score."""

    name: str
    description: str
    tasks: tuple[Task, ...]


DATASETS: dict[str, DatasetFacts] = {
    facts.name: facts
    for facts in (
        DatasetFacts(
            "digits", "8 × 8 handwritten digits that scikit-learn ships", "classification", (1, 8, 8), 10, 1149
        ),
        DatasetFacts("fashion_mnist", "28 × 28 articles of clothing", "classification", (1, 28, 28), 10, 54_000),
        DatasetFacts(
            "ridge",
            "synthetic ridge regression with known smoothness constants (arXiv 2503.02225)",
            "regression",
            (100,),
            1,
            100,
        ),
    )
}

MODELS: dict[str, ModelFacts] = {
    facts.name: facts
    for facts in (
        ModelFacts("linear", "one linear layer", False, ("classification", "regression")),
        ModelFacts("mlp", "one hidden ReLU layer of 128 units", False, ("classification",)),
        ModelFacts(
            "small_cnn", "two convolutions with batch normalisation and a linear layer", True, ("classification",)
        ),
    )
}

SAMPLINGS: dict[str, SamplingFacts] = {
    facts.name: facts
    for facts in (
        SamplingFacts("uniform", "a fresh permutation every epoch, weights 1", ("classification", "regression")),
        SamplingFacts(
            "lipschitz",
            "p_i proportional to L_i (exact for linear models, the squared input norm elsewhere), weights 1/(n p_i)",
            ("classification", "regression"),
        ),
        SamplingFacts(
            "gradient_norm",
            "presamples, then draws by an upper bound of each gradient's norm, with unbiased weights "
            "(Katharopoulos and Fleuret 2018)",
            ("classification",),
        ),
    )
}
