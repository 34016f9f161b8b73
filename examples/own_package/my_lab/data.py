"""The data: three splits, the same in every process, as whole tensors."""

import torch

from trainers.datasets import Dataset, Split, classification_dataset

_SIZES = (600, 150, 150)


def stripes() -> Dataset:
    """uint8 images (n, 1, 8, 8) and int64 classes."""
    generator = torch.Generator().manual_seed(0)
    return classification_dataset(*(_split(size, generator) for size in _SIZES))


def _split(size: int, generator: torch.Generator) -> Split:
    classes = torch.randint(3, (size,), generator=generator)
    shifts = torch.randint(4, (size, 1, 1), generator=generator)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    along = torch.stack((rows, columns, rows + columns))[classes]
    stripes = 200.0 * ((along + shifts) % 4 < 2)
    noise = 120 * torch.randn(size, 8, 8, generator=generator)
    return Split((stripes + noise).clamp(0, 255).to(torch.uint8).unsqueeze(1), classes)
