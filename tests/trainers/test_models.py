"""The models: what they compute, how they begin, and that every name of the catalog can be trained."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from trainers.catalog import DATASETS, MODELS
from trainers.facts import DatasetFacts
from trainers.models import BUILDERS, build_model
from trainers.models.torchvision_classifier import torchvision_classifier

# One dataset of every form; wrn_28_10 has 36 million weights to draw, so one form must do.
FORMS = ("digits", "mnist", "cifar10", "cifar100", "ridge", "logistic")
FITTING = [
    (model, dataset)
    for model in BUILDERS
    for dataset in FORMS
    if DATASETS[dataset].task in MODELS[model].tasks
    and (DATASETS[dataset].is_image or not MODELS[model].needs_images)
    and (model != "wrn_28_10" or dataset == "cifar10")
]
FAMILIES = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
)
LARGE_FAMILIES = ("alexnet", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16", "vit_b_32", "wide_resnet50_2")
TORCHVISION = sorted(set(MODELS) - set(BUILDERS))


def images(side: int, *, channels: int = 3, classes: int = 10) -> DatasetFacts:
    return DatasetFacts("images", "", "classification", (channels, side, side), classes, 100)


def train_once(model: nn.Module, facts: DatasetFacts) -> None:
    """One forward and backward pass of four examples; every parameter must get a gradient."""
    outputs = model(torch.randn(4, *facts.shape))
    assert outputs.shape == (4, facts.classes)
    outputs.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_name_of_the_catalog_is_ours_or_torchvisions() -> None:
    from trainers.vision import models

    assert set(BUILDERS) <= set(MODELS)
    assert sorted(models.list_models(module=models)) == TORCHVISION


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no classifier named 'resnet19'"):
        build_model("resnet19", images(32), seed=0)


@pytest.mark.parametrize(("model", "dataset"), FITTING)
def test_a_model_maps_a_batch_to_one_output_per_class(model: str, dataset: str) -> None:
    facts = DATASETS[dataset]
    outputs = build_model(model, facts, seed=0)(torch.zeros(4, *facts.shape))
    assert outputs.shape == (4, facts.classes)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("preact_resnet18", 11_172_170),  # 11.17 M
        ("wrn_28_10", 36_479_194),  # 36.5 M
        ("wrn_16_4", 2_748_890),  # 2.7 M
        ("resnet18", 11_173_962),  # 11.17 M, as everywhere with the stem for CIFAR
    ],
)
def test_parameter_counts_on_cifar10_are_those_of_the_literature(model: str, count: int) -> None:
    assert sum(p.numel() for p in build_model(model, DATASETS["cifar10"], seed=0).parameters()) == count


@pytest.mark.parametrize("model", ["mlp", "wrn_16_4", "squeezenet1_1"])
def test_initialisation_depends_on_the_seed_alone_and_leaves_the_global_random_state(model: str) -> None:
    facts = images(8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(model, facts, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (build_model(model, facts, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].dim() > 1]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_the_mlp_for_digits_has_128_hidden_units() -> None:
    shapes = [tuple(param.shape) for param in build_model("mlp", DATASETS["digits"], seed=0).parameters()]
    assert shapes == [(128, 64), (128,), (10, 128), (10,)]


@pytest.mark.parametrize("problem", ["ridge", "logistic"])
def test_the_linear_models_of_the_paper_have_no_bias(problem: str) -> None:
    facts = DATASETS[problem]
    assert [tuple(p.shape) for p in build_model("linear", facts, seed=0).parameters()] == [(1, *facts.shape)]


@pytest.mark.parametrize("name", ["preact_resnet18", "wrn_16_4"])
def test_convolutions_begin_with_he_initialisation_and_norms_as_the_identity(name: str) -> None:
    model = build_model(name, images(32), seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert float(module.weight.detach().std()) * math.sqrt(fan_out / 2) == pytest.approx(1, abs=0.1)
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


@pytest.mark.parametrize(("name", "stages", "units"), [("preact_resnet18", 4, 2), ("wrn_16_4", 3, 2)])
def test_a_residual_network_computes_what_its_paper_says(name: str, stages: int, units: int) -> None:
    """Written down once more with plain functions: activation before convolution, the first activation shared."""
    model = build_model(name, images(8), seed=0).double()
    inputs = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = iter(list(model.parameters()))

    def activation(x: Tensor) -> Tensor:
        scale, shift = next(weights), next(weights)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return ((x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    x = F.conv2d(inputs, next(weights), padding=1)
    for stage in range(stages):
        for unit in range(units):
            stride = 2 if stage > 0 and unit == 0 else 1
            activated = activation(x)
            inner = activation(F.conv2d(activated, next(weights), stride=stride, padding=1))
            residual = F.conv2d(inner, next(weights), padding=1)
            if x.shape != residual.shape:
                x = F.conv2d(activated, next(weights), stride=stride)
            elif stage == 0 and unit == 0:
                x = activated
            x = x + residual
    expected = activation(x).mean((2, 3)) @ next(weights).T + next(weights)
    torch.testing.assert_close(model(inputs), expected)


@pytest.mark.parametrize("name", ["small_cnn", "preact_resnet18", "wrn_16_4", "resnet18", "shufflenet_v2_x0_5"])
def test_channels_last_changes_the_layout_and_not_the_result(name: str) -> None:
    facts = images(8)
    inputs = torch.randn(4, *facts.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = build_model(name, facts, seed=0).double().to(memory_format=layout)  # type: ignore[call-overload]
        outputs = model(inputs.to(memory_format=layout))
        gradients = torch.autograd.grad(outputs.square().sum(), list(model.parameters()))
        results.append((outputs, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_trains_on_the_smallest_images_of_the_catalog(name: str) -> None:
    facts = images(max(8, MODELS[name].min_image_size), channels=1)
    train_once(build_model(name, facts, seed=0), facts)


@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("name", LARGE_FAMILIES)
def test_the_shapes_of_large_families_fit_every_image_set(name: str, side: int) -> None:
    """On torch's device without memory; soak tests train them."""
    with torch.device("meta"):
        train_once(build_model(name, images(side), seed=0), images(side))


@pytest.mark.parametrize(("name", "first_stage"), [("resnet18", "layer1"), ("densenet121", "features.denseblock1")])
def test_the_stem_leaves_the_first_stage_every_pixel(name: str, first_stage: str) -> None:
    model = build_model(name, images(32), seed=0)
    seen: list[torch.Size] = []
    model.get_submodule(first_stage).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]


@pytest.mark.parametrize(
    ("name", "side", "patch"),
    [("vit_b_16", 32, 4), ("vit_b_16", 28, 4), ("vit_b_32", 32, 8), ("vit_b_32", 28, 7), ("vit_h_14", 32, 2)],
)
def test_a_vision_transformer_sees_patches_a_quarter_as_wide(name: str, side: int, patch: int) -> None:
    with torch.device("meta"):
        model = torchvision_classifier(name, images(side))
    assert model.get_parameter("conv_proj.weight").shape[2:] == (patch, patch)
    assert model.get_parameter("encoder.pos_embedding").shape[1] == (side // patch) ** 2 + 1


def test_images_without_a_common_window_are_too_small_for_maxvit() -> None:
    with pytest.raises(ValueError, match="maxvit_t cannot take 28 × 28 images"):
        build_model("maxvit_t", images(28), seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_classifier_of_torchvision_trains_on_its_smallest_images(name: str) -> None:
    facts = images(max(8, MODELS[name].min_image_size), channels=1)
    train_once(build_model(name, facts, seed=0), facts)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own import
@pytest.mark.parametrize("name", ["small_cnn", "wrn_16_4"])
def test_a_compiled_model_computes_the_same(name: str) -> None:
    facts = images(8)
    inputs = torch.randn(4, *facts.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for is_compiled in (False, True):
            model = build_model(name, facts, seed=0).to(memory_format=layout)  # type: ignore[call-overload]
            outputs = (torch.compile(model) if is_compiled else model)(inputs.to(memory_format=layout))
            results.append((outputs, *torch.autograd.grad(outputs.square().sum(), list(model.parameters()))))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-4)
