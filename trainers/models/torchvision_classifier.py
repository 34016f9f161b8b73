"""Any image classifier of torchvision by name, with a stem for small images and without pretrained weights.

torchvision's networks are made for 224 × 224: their stems reduce an image four times or more before the first stage,
which leaves little of 32 × 32 pixels. Here the first convolution, where it is strided, becomes a 3 × 3 convolution of
stride 1, and the max-pool after it goes, as is usual for CIFAR since He et al. (2015). In every one of torchvision's
networks that convolution is the first module of its kind, and so is the max-pool that belongs to the stem. This is the
one rule for all families, with three exceptions:

- VGG has no strided convolution and keeps its five max-pools. They round up, so that sides that are no multiple of 32
  pass too, and the classifier reads the features that are left at 32 × 32, one pixel, instead of 49 copies of it.
- ViT keeps patches, a quarter as wide as published: of the divisors of the side, the largest up to 16/4, 32/4 or 14/4.
- MaxViT attends within windows that fit every stage: their width is the greatest common divisor of the stages' sides.

Auxiliary heads are off. A new convolution is initialised as He et al. (2015), fan-out.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from trainers.facts import DatasetFacts

_VIT_PATCHES = {"vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14}
_WITHOUT_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _WITHOUT_AUXILIARY_HEADS, "inception_v3": _WITHOUT_AUXILIARY_HEADS}


def torchvision_classifier(name: str, dataset: DatasetFacts) -> nn.Module:
    """torchvision's classifier of this name for square images of `dataset.shape`, with random weights.

    Raises ValueError where torchvision has no classifier of this name, or this one cannot take images so small.
    """
    from trainers.vision import models  # torchvision takes more than a second to import

    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no classifier named {name!r}")
    channels, side, _ = dataset.shape
    model: nn.Module
    if name in _VIT_PATCHES:
        model = _vision_transformer(name, channels, side, dataset.classes)
    elif name == "maxvit_t":
        model = _maxvit(side, dataset.classes)
    else:
        model = models.get_model(name, weights=None, num_classes=dataset.classes, **_OPTIONS.get(name, {}))
    if name.startswith("vgg"):
        _end_in_one_pixel(model)
    if name not in _VIT_PATCHES:
        _use_small_stem(model, channels)
    return model


def _use_small_stem(model: nn.Module, channels: int) -> None:
    """Replaces the first convolution and drops the stem's max-pool, in place."""
    name, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    is_strided = first.stride != (1, 1)
    if is_strided or first.in_channels != channels:
        stem = nn.Conv2d(channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        if stem.bias is not None:
            nn.init.zeros_(stem.bias)
        model.set_submodule(name, stem)
    pools = [name for name, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    if is_strided and pools:
        model.set_submodule(pools[0], nn.Identity())


def _end_in_one_pixel(vgg: Any) -> None:
    """Has a VGG's pools round up, and its classifier read one pixel, in place."""
    for module in vgg.features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    vgg.avgpool = nn.AdaptiveAvgPool2d(1)
    first = nn.Linear(512, vgg.classifier[0].out_features)
    nn.init.normal_(first.weight, 0, 0.01)  # as torchvision does
    nn.init.zeros_(first.bias)
    vgg.classifier[0] = first


def _vision_transformer(name: str, channels: int, side: int, classes: int) -> Any:
    from trainers.vision import models

    published = _VIT_PATCHES[name]
    patch = max(width for width in range(1, published // 4 + 1) if side % width == 0)
    # torchvision fixes the patch by the name; an image of as many published patches has the positions that are needed.
    model = models.get_model(name, weights=None, image_size=side // patch * published, num_classes=classes)
    model.image_size, model.patch_size = side, patch
    model.conv_proj = nn.Conv2d(channels, model.hidden_dim, patch, patch)
    nn.init.trunc_normal_(model.conv_proj.weight, std=math.sqrt(1 / (channels * patch**2)))  # as torchvision does
    nn.init.zeros_(model.conv_proj.bias)
    return model


def _maxvit(side: int, classes: int) -> Any:
    """maxvit_t, whose builder fixes the windows at 7 × 7, for a stem of stride 1."""
    from trainers.vision import models

    sides = [math.ceil(side / 2**stage) for stage in (1, 2, 3, 4)]
    window = math.gcd(*sides)
    if window == 1:
        raise ValueError(f"maxvit_t cannot take {side} × {side} images: only 1 divides the sides {sides} of its stages")
    return models.maxvit.MaxVit(
        input_size=(2 * side, 2 * side),  # it reckons with a stem of stride 2
        stem_channels=64,
        partition_size=window,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        num_classes=classes,
    )
