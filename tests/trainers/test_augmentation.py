"""Augmentation: pixel by pixel against loops over single images, and how its draws are distributed."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from trainers.augmentation import augment, crop, cut_out, padding_of
from trainers.catalog import AUGMENTATIONS

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 12, 20)]
FILL = torch.tensor([120, 7, 255], dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(size: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(256, (size, *shape), dtype=torch.uint8, generator=seeded(9))


def draws(count: int, size: int, seed: int) -> Tensor:
    return torch.randint(count, (size,), generator=seeded(seed))


def slow_crop(image: Tensor, row: int, column: int, flip: bool) -> Tensor:
    """One image, by torch's own reflection and slices."""
    _, height, width = image.shape
    across, down = padding_of(width), padding_of(height)
    padded = F.pad(image[None].double(), (across, across, down, down), mode="reflect")[0]
    if flip:
        padded = padded.flip(2)
    return padded[:, row : row + height, column : column + width].to(image.dtype)


def slow_cut_out(image: Tensor, row: int, column: int, fill: Tensor) -> Tensor:
    """One image, by DeVries and Taylor's code: a square around the centre, clipped at the borders."""
    _, height, width = image.shape
    top, left = max(row - height // 4, 0), max(column - width // 4, 0)
    bottom, right = min(row + height // 4, height), min(column + width // 4, width)
    image = image.clone()
    for channel, value in enumerate(fill.tolist()):
        image[channel, top:bottom, left:right] = value
    return image


def test_padding_and_cutout_are_in_proportion_to_the_side() -> None:
    assert [padding_of(side) for side in (8, 28, 32)] == [1, 4, 4]
    for side, width in ((8, 4), (28, 14), (32, 16)):
        centre = torch.tensor([side // 2])
        hole = cut_out(torch.zeros(1, 1, side, side), centre, centre, fill=torch.ones(1))
        assert float(hole.sum()) == width**2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_are_those_of_single_images(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = random_images(40, shape).to(dtype)
    rows = draws(2 * padding_of(shape[1]) + 1, 40, seed=1)
    columns, flips = draws(2 * padding_of(shape[2]) + 1, 40, seed=2), draws(2, 40, seed=3)
    for mirrored in (None, flips):
        found = crop(images, rows, columns, mirrored)
        wanted = [
            slow_crop(image, int(row), int(column), mirrored is not None and bool(flip))
            for image, row, column, flip in zip(images, rows, columns, flips, strict=True)
        ]
        assert found.dtype == dtype
        assert torch.equal(found, torch.stack(wanted))


def test_a_crop_does_not_depend_on_the_layout_of_the_images() -> None:
    images = random_images(10, (3, 32, 32))
    rows, columns, flips = draws(9, 10, seed=1), draws(9, 10, seed=2), draws(2, 10, seed=3)
    for other in (images.contiguous(memory_format=torch.channels_last), images.mT.contiguous().mT):
        assert torch.equal(crop(other, rows, columns, flips), crop(images, rows, columns, flips))


@pytest.mark.parametrize("shape", SHAPES)
def test_cutouts_are_those_of_single_images(shape: tuple[int, ...]) -> None:
    images, fill = random_images(40, shape), FILL[: shape[0]]
    rows, columns = draws(shape[1], 40, seed=1), draws(shape[2], 40, seed=2)
    wanted = [
        slow_cut_out(image, int(row), int(column), fill)
        for image, row, column in zip(images, rows, columns, strict=True)
    ]
    assert torch.equal(cut_out(images, rows, columns, fill=fill), torch.stack(wanted))


def test_every_kind_does_what_its_name_says() -> None:
    """Recognised from the pixels: each image is compared with all that its kind may make of it."""
    shape = (1, 8, 8)
    images = random_images(30, shape)
    crops = {(row, column, flip) for row in range(3) for column in range(3) for flip in (False, True)}
    for kind in ("crop", "crop_flip"):
        for image, found in zip(images, augment(images, kind, seeded(), fill=FILL[:1]), strict=True):
            fitting = [c for c in crops if torch.equal(slow_crop(image, *c), found)]
            assert fitting
            assert kind == "crop_flip" or not all(flip for _, _, flip in fitting)
    cut = augment(images, "crop_flip_cutout", seeded(), fill=FILL[:1])
    whole = augment(images, "crop_flip", seeded(), fill=FILL[:1])
    changed = (cut != whole).flatten(1).sum(1)
    assert bool(((changed > 0) & (changed <= 16)).all())
    assert bool((cut[cut != whole] == FILL[0]).all())
    assert augment(images, "none", seeded(), fill=FILL[:1]) is images


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_depends_on_its_generator_alone_and_leaves_the_images(kind: str) -> None:
    images = random_images(20, (3, 32, 32))
    before = images.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(images, kind, seeded(5), fill=FILL)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert torch.equal(first, augment(images, kind, seeded(5), fill=FILL))
    assert kind == "none" or not torch.equal(first, augment(images, kind, seeded(6), fill=FILL))


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    """Every pixel of a gradient image tells its row, its column and whether it was mirrored."""
    size, side, padding = 20_000, 32, 4
    coordinates = torch.arange(side, dtype=torch.uint8)
    image = torch.stack([coordinates[:, None].expand(side, side), coordinates.expand(side, side)])
    found = augment(image.expand(size, 2, side, side), "crop_flip", seeded(), fill=FILL[:2]).long()
    middle = side // 2
    flips = (found[:, 1, 0, middle] > found[:, 1, 0, middle + 1]).long()
    rows = found[:, 0, middle, 0] - middle + padding
    across = found[:, 1, 0, middle]
    columns = torch.where(flips == 1, side - 1 - across, across) - middle + padding
    cells = (flips * 9 + rows) * 9 + columns
    counts = cells.bincount(minlength=162).double()
    expected = size / 162
    chi_squared = float(((counts - expected).square() / expected).sum())
    assert len(counts) == 162
    assert chi_squared < 161 + 4 * (2 * 161) ** 0.5  # four standard deviations above the mean


def test_the_centres_of_cutouts_are_uniform() -> None:
    """A pixel far from the border lies in the square half the time along each axis, hence a quarter of the times."""
    images = torch.zeros(20_000, 1, 32, 32, dtype=torch.uint8)
    found = augment(images, "crop_flip_cutout", seeded(), fill=FILL[:1]) == FILL[0]
    shares = found.double().mean((0, 1))
    inside = shares[7:24, 7:24]
    assert float((inside - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    assert float(shares[0, 0]) == pytest.approx((9 / 32) ** 2, abs=0.01)


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of none, crop, crop_flip, crop_flip_cutout, got 'mixup'"):
        augment(random_images(1, (1, 8, 8)), "mixup", seeded(), fill=FILL[:1])
