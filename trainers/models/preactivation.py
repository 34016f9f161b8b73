"""Residual networks of pre-activation units: PreActResNet-18 and wide residual networks, for small images.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, arXiv 1603.05027.
Zagoruyko, Komodakis: Wide Residual Networks, arXiv 1605.07146.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from trainers.facts import DatasetFacts


def preact_resnet18(dataset: DatasetFacts) -> nn.Module:
    """Four stages of two units with 64, 128, 256 and 512 channels; 11.17 million parameters on CIFAR-10."""
    return _residual_network(dataset, stem=64, widths=(64, 128, 256, 512), units=2)


def wrn_28_10(dataset: DatasetFacts) -> nn.Module:
    """WRN-28-10 without dropout: 28 convolutions, ten times wide; 36.5 million parameters on CIFAR-10."""
    return _wide_residual_network(dataset, depth=28, width=10)


def wrn_16_4(dataset: DatasetFacts) -> nn.Module:
    """WRN-16-4 without dropout, for small machines; 2.7 million parameters on CIFAR-10."""
    return _wide_residual_network(dataset, depth=16, width=4)


class PreActivationUnit(nn.Module):
    """y = shortcut + conv(relu(bn(conv(relu(bn(x)))))), two 3 × 3 convolutions, the first with the stride.

    The shortcut is x itself. Where the unit changes the shape of x it is a 1 × 1 convolution of the first activation;
    the first unit after the stem takes that activation for its shortcut in any case (arXiv 1603.05027, appendix).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, is_first: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = nn.Identity() if is_first else None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def _wide_residual_network(dataset: DatasetFacts, *, depth: int, width: int) -> nn.Module:
    """Three stages of (depth − 4)/6 units with 16, 32 and 64 times `width` channels."""
    return _residual_network(
        dataset, stem=16, widths=tuple(width * channels for channels in (16, 32, 64)), units=(depth - 4) // 6
    )


def _residual_network(dataset: DatasetFacts, *, stem: int, widths: Sequence[int], units: int) -> nn.Module:
    """A 3 × 3 convolution, stages of `units` units, of which all but the first halve the side, and a linear layer on
    the mean over pixels. Convolutions have He's initialisation (fan-out), as in both papers' code."""
    layers: list[nn.Module] = [nn.Conv2d(dataset.shape[0], stem, 3, padding=1, bias=False)]
    channels = stem
    for stage, width in enumerate(widths):
        for unit in range(units):
            stride = 2 if stage > 0 and unit == 0 else 1
            layers.append(PreActivationUnit(channels, width, stride, is_first=len(layers) == 1))
            channels = width
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(channels, dataset.classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return network
