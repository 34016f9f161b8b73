"""Augmentation of a whole batch of images on its device: random crops of the reflected image, flips and cutout.

Every example has its own draws, from the generator alone. A batch costs a handful of kernels and no host
synchronisation: each row of a crop is copied in one piece, out of the padded rows of the batch.

Sizes follow the usual ones for 32 × 32 pixels, in proportion: crops shift by up to an eighth of the side, rounded
(4 pixels for 32 and 28, 1 for 8), and cutout takes a square half as wide as the image (16, 14, 4).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from trainers.catalog import AUGMENTATIONS


def augment(images: Tensor, kind: str, generator: Generator, *, fill: Tensor) -> Tensor:
    """(b, C, H, W), of the dtype of `images`: each image augmented by its own draws; `images` itself stays as it is.

    images: (b, C, H, W), on the generator's device. kind: one of AUGMENTATIONS. fill: (C,), what cutout puts into the
    hole; the mean of each channel, which becomes zero when the batch is normalised.
    Raises ValueError for another kind.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"kind must be one of {', '.join(AUGMENTATIONS)}, got {kind!r}")
    if kind == "none":
        return images
    size, _, height, width = images.shape
    shifts = [_draw(2 * padding_of(side) + 1, size, generator) for side in (height, width)]
    flips = None if kind == "crop" else _draw(2, size, generator)
    augmented = crop(images, shifts[0], shifts[1], flips)
    if kind == "crop_flip_cutout":
        augmented = cut_out(augmented, *(_draw(side, size, generator) for side in (height, width)), fill=fill)
    return augmented


def padding_of(side: int) -> int:
    """Pixels of reflection on each side of an image of this height or width."""
    return (side + 4) // 8


def crop(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor | None = None) -> Tensor:
    """(b, C, H, W): each image padded by reflection, mirrored left to right where asked, and cropped.

    rows, columns: (b,), the upper left corner of each crop in its padded image, from 0 to twice the padding.
    flips: (b,), 1 where the padded image is mirrored, else 0; None mirrors none.
    """
    size, channels, height, width = images.shape
    padded = _padded_left_and_right(images, padding_of(width))
    padded_width = padded.shape[3]
    first = torch.arange(size * channels, device=images.device).view(size, channels) * (height * padded_width)
    if flips is not None:
        first = first + flips[:, None] * padded.numel()
        padded = torch.cat([padded, padded.flip(3)])
    # Upwards and downwards nothing need be padded: a reflected row is a row of the image.
    source_rows = _reflected(
        torch.arange(height, device=images.device) + rows[:, None] - padding_of(height), side=height
    )
    starts = first[:, :, None] + (source_rows * padded_width + columns[:, None])[:, None, :]
    pieces = padded.as_strided((padded.numel() - width + 1, width), (1, 1))  # every `width` pixels in succession
    return pieces.index_select(0, starts.flatten()).view(images.shape)


def cut_out(images: Tensor, rows: Tensor, columns: Tensor, *, fill: Tensor) -> Tensor:
    """(b, C, H, W): images with a square of `fill`, half as wide as the image and clipped at its borders.

    Terrance DeVries, Graham W. Taylor: Improved Regularization of Convolutional Neural Networks with Cutout,
    arXiv 1708.04552. rows, columns: (b,), the square's centre: it begins half its width before. fill: (C,).
    """
    inside_rows, inside_columns = (
        _is_in_square(side, centres) for side, centres in zip(images.shape[2:], (rows, columns), strict=True)
    )
    hole = (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.dtype)
    return (images * (1 - hole)).add_(hole * fill.to(images.dtype)[:, None, None])


def _draw(count: int, size: int, generator: Generator) -> Tensor:
    """(size,): uniform on 0 … count − 1."""
    return torch.randint(count, (size,), generator=generator, device=generator.device)


def _padded_left_and_right(images: Tensor, padding: int) -> Tensor:
    """(b, C, H, W + 2·padding), contiguous. By hand, as torch's reflection has no kernel for bytes on every device."""
    left, right = images[..., 1 : padding + 1].flip(3), images[..., -padding - 1 : -1].flip(3)
    return torch.cat([left, images, right], 3).contiguous()


def _reflected(positions: Tensor, *, side: int) -> Tensor:
    """Positions outside 0 … side − 1, mirrored at the first and the last pixel."""
    positions = positions.abs()
    return torch.minimum(positions, 2 * (side - 1) - positions)


def _is_in_square(side: int, centres: Tensor) -> Tensor:
    """(b, side): whether each row (or column) of an image lies in its square."""
    width = side // 2
    distance = torch.arange(side, device=centres.device) - centres[:, None] + width // 2
    return (distance >= 0) & (distance < width)
