"""What can be trained: the facts about every dataset, model, base optimizer and sampling, without importing torch.

The loaders live in `trainers.datasets`, the synthetic problems in `trainers.problems`, the networks in
`trainers.models`, the samplers in `trainers.sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from trainers.facts import DatasetFacts, ModelFacts, OptimizerFacts, SamplingFacts
from trainers.plugins import announced
from trainers.problem_settings import SIZES

_DATASETS: dict[str, DatasetFacts] = {
    facts.name: facts
    for facts in (
        DatasetFacts(
            "digits", "8 × 8 handwritten digits that scikit-learn ships", "classification", (1, 8, 8), 10, 1149, 288
        ),
        DatasetFacts("mnist", "28 × 28 handwritten digits", "classification", (1, 28, 28), 10, 54_000, 6_000),
        DatasetFacts("fashion_mnist", "28 × 28 articles of clothing", "classification", (1, 28, 28), 10, 54_000, 6_000),
        DatasetFacts("kmnist", "28 × 28 cursive Japanese characters", "classification", (1, 28, 28), 10, 54_000, 6_000),
        DatasetFacts("cifar10", "32 × 32 photographs of 10 classes", "classification", (3, 32, 32), 10, 45_000, 5_000),
        DatasetFacts(
            "cifar100", "32 × 32 photographs of 100 classes", "classification", (3, 32, 32), 100, 45_000, 5_000
        ),
        DatasetFacts("svhn", "32 × 32 street view house numbers", "classification", (3, 32, 32), 10, 65_932, 7_325),
        DatasetFacts(
            "ridge",
            "synthetic ridge regression with known constants (arXiv 2503.02225)",
            "regression",
            (SIZES["ridge"][1],),
            1,
            SIZES["ridge"][0],
            is_problem=True,
        ),
        DatasetFacts(
            "logistic",
            "synthetic regularised logistic regression with known constants (arXiv 2503.02225)",
            "binary",
            (SIZES["logistic"][1],),
            1,
            SIZES["logistic"][0],
            is_problem=True,
        ),
    )
}

DATASETS = {**_DATASETS, **announced("samstudy.datasets", DatasetFacts, taken=_DATASETS)}
"""By name: samstudy's own, then those of other packages."""

_TORCHVISION_MODELS = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b
    swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16
    vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
    """.split()  # noqa: SIM905 (eighty lines otherwise)
)
"""torchvision's classifiers by their names there."""

_SMALLEST_IMAGE = {"inception_v3": 28, "maxvit_t": 32}
"""Of the versions for small images; 8 × 8 pixels for all the others."""


def _normalises_no_batches(name: str) -> bool:
    families = ("alexnet", "convnext", "squeezenet", "swin", "vit")
    return name.startswith(families) or (name.startswith("vgg") and not name.endswith("_bn"))


_MODELS: dict[str, ModelFacts] = {
    facts.name: facts
    for facts in (
        ModelFacts("linear", "one linear layer", ("classification", "binary", "regression"), needs_images=False),
        ModelFacts("mlp", "one hidden ReLU layer of 128 units", ("classification",), needs_images=False),
        ModelFacts(
            "small_cnn",
            "two convolutions with batch normalisation and a linear layer",
            ("classification",),
            min_image_size=4,
        ),
        ModelFacts(
            "preact_resnet18",
            "pre-activation ResNet-18 for small images (He et al. 2016)",
            ("classification",),
            single_example_image_size=28,
        ),
        ModelFacts("wrn_16_4", "wide ResNet 16-4 (Zagoruyko and Komodakis 2016)", ("classification",)),
        ModelFacts("wrn_28_10", "wide ResNet 28-10 (Zagoruyko and Komodakis 2016)", ("classification",)),
        *(
            ModelFacts(
                name,
                f"torchvision's {name}, its stem fit for small images",
                ("classification",),
                min_image_size=_SMALLEST_IMAGE.get(name, 8),
                single_example_image_size=1 if _normalises_no_batches(name) else 28,
            )
            for name in _TORCHVISION_MODELS
        ),
    )
}

MODELS = {**_MODELS, **announced("samstudy.models", ModelFacts, taken=_MODELS)}
"""By name: samstudy's own and torchvision's, then those of other packages."""

OPTIMIZERS: dict[str, OptimizerFacts] = {
    facts.name: facts
    for facts in (
        OptimizerFacts("sgd", "SGD", has_momentum=True, has_fused=True),
        OptimizerFacts("adam", "Adam", has_fused=True),
        OptimizerFacts("adamw", "AdamW", has_fused=True),
        OptimizerFacts("nadam", "NAdam"),
        OptimizerFacts("radam", "RAdam"),
        OptimizerFacts("adamax", "Adamax"),
        OptimizerFacts("adagrad", "Adagrad"),
        OptimizerFacts("adadelta", "Adadelta"),
        OptimizerFacts("rmsprop", "RMSprop", has_momentum=True),
        OptimizerFacts("asgd", "ASGD"),
        OptimizerFacts("rprop", "Rprop", has_weight_decay=False),
        OptimizerFacts("adafactor", "Adafactor"),
    )
}

VALIDATIONS = ("held_out", "none")

AUGMENTATIONS = ("none", "crop", "crop_flip", "crop_flip_cutout")

SAMPLINGS: dict[str, SamplingFacts] = {
    facts.name: facts
    for facts in (
        SamplingFacts(
            "uniform", "a fresh permutation every epoch, weights 1", is_static=True, has_independent_steps=False
        ),
        SamplingFacts(
            "uniform_with_replacement",
            "every example drawn independently, weights 1",
            is_static=True,
            has_independent_steps=True,
        ),
        SamplingFacts(
            "nice",
            "τ-nice: each batch without replacement, independently of the others, weights 1",
            is_static=True,
            has_independent_steps=True,
        ),
        SamplingFacts(
            "lipschitz",
            "p_i proportional to L_i (exact for linear models, the squared input norm elsewhere), weights 1/(n p_i)",
            is_static=True,
            has_independent_steps=True,
            is_importance=True,
        ),
        SamplingFacts(
            "gradient_norm",
            "presamples, then draws by an upper bound of each gradient's norm, with unbiased weights "
            "(Katharopoulos and Fleuret 2018)",
            is_static=False,
            has_independent_steps=False,
            is_importance=True,
            uniform_share=0.1,
        ),
        SamplingFacts(
            "loss",
            "p_i proportional to the last seen loss, mixed with the uniform distribution, weights 1/(n p_i)",
            is_static=False,
            has_independent_steps=False,
            is_importance=True,
            uniform_share=0.5,
        ),
    )
}
"""No weight of a mixture exceeds 1/α, hence 2 of loss, however stale it is, and 10 of gradient_norm.

Without it single weights of hundreds threw small networks back to chance (see docs/architecture.md)."""

SMALLEST_PROBABILITY = 1e-12
"""What the 53 bits of a draw resolve to one part in 9,000; an example less probable counts as never drawn."""


def facts_of(values: Mapping[str, object]) -> DatasetFacts:
    """The facts of the dataset that a complete configuration, by wire name, trains on: its own shape and size.

    They differ from `DATASETS[name]` where the configuration chooses the size of a problem, learns from the validation
    split too or takes only so many training examples.
    """
    facts = DATASETS[str(values["dataset"])]
    if facts.is_problem:
        return _sized(facts, values["n_samples"], values["n_features"])
    return _cut(facts, values["validation"] == "none", values["train_examples"])


@lru_cache(maxsize=4096, typed=True)  # a check of a search space asks for many combinations, again and again
def _sized(facts: DatasetFacts, size: object, features: object) -> DatasetFacts:
    return replace(
        facts,
        train_size=size if isinstance(size, int) else facts.train_size,
        shape=(features,) if isinstance(features, int) else facts.shape,
    )


@lru_cache(maxsize=4096, typed=True)
def _cut(facts: DatasetFacts, with_validation: bool, examples: object) -> DatasetFacts:
    if with_validation:
        facts = replace(facts, train_size=facts.train_size + facts.validation_size, validation_size=0)
    return replace(facts, train_size=examples) if isinstance(examples, int) else facts
