"""Samples per second of the data path, beside a plain torchvision DataLoader with the same augmentation.

    python benchmarks/data_path.py [--device cuda] [--threads 2]

Both take the same 50,000 random CIFAR-shaped images to normalised float32 mini-batches of 128, each epoch in a fresh
order, each sample with a random crop of the reflected image and a flip. Ours is what the training loop does: it picks,
augments and prepares whole batches on the device. The DataLoader makes PIL images and applies torchvision's transforms,
in this process or in two workers; moving its batches to the device counts, starting its workers does not. Ours has one
thread, unless told otherwise. All take turns in one run. Takes about half a minute on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import trainers.vision  # noqa: F401 (before torchvision, see there)
from trainers.augmentation import augment
from trainers.datasets import Dataset, Split, classification_dataset

# isort: split
from torchvision import transforms

_SIZE, _BATCH_SIZE = 50_000, 128
_WARM_UP = 10
"""Batches before each timing: more than the workers have ready beforehand."""


class PlainImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10 does it: an array in memory, and transforms of one PIL image at a time."""

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.normalisation is not None
        mean, std = ((part / 255).tolist() for part in (dataset.normalisation.mean, dataset.normalisation.std))
        self.data = dataset.train.inputs.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = dataset.train.targets.tolist()
        self.transform: Callable[[Image.Image], Tensor] = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def main() -> None:
    """Prints each one's median rate, then the ratio to the faster DataLoader."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--batches", type=int, default=100, help="timed in each round")
    arguments.add_argument("--threads", type=int, default=1, help="of torch in this process")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dataset = _random_dataset()
    plain = PlainImages(dataset)
    contestants: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": partial(_our_batches, dataset.to(device)),
        "DataLoader, no workers": partial(_plain_batches, plain, 0, device),
        "DataLoader, 2 workers": partial(_plain_batches, plain, 2, device),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, batches in contestants.items():
            rates[name].append(_samples_per_s(batches(), options.batches, device))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"{device.type} ({name}), torch {torch.__version__}, threads: {torch.get_num_threads()}")
    for name, median in medians.items():
        print(f"{name}: {median:,.0f} samples/s (from {min(rates[name]):,.0f} to {max(rates[name]):,.0f})")
    ours = medians.pop("ours")
    print(f"ratio ours/faster DataLoader: {ours / max(medians.values()):.1f}")


def _random_dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (_SIZE, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (_SIZE,), generator=generator))
    return classification_dataset(split, split, split)


def _our_batches(dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    inputs, targets, fill = dataset.train.inputs, dataset.train.targets, dataset.fill
    generator = torch.Generator(inputs.device).manual_seed(0)
    while True:
        order = torch.randperm(_SIZE, generator=generator, device=inputs.device)
        for indices in torch.split(order, _BATCH_SIZE):
            images = augment(inputs.index_select(0, indices), "crop_flip", generator, fill=fill)
            yield dataset.prepare(images), targets.index_select(0, indices)


def _plain_batches(images: PlainImages, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        images, _BATCH_SIZE, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda", drop_last=True
    )
    while True:
        for inputs, targets in loader:
            yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _samples_per_s(batches: Iterator[tuple[Tensor, Tensor]], count: int, device: torch.device) -> float:
    """The rate over `count` batches, after a warm-up; the iterator and its workers end with it."""
    for _ in itertools.islice(batches, _WARM_UP):
        _wait_for(device)
    started = time.perf_counter()
    samples = sum(len(targets) for _, targets in itertools.islice(batches, count))
    _wait_for(device)
    return samples / (time.perf_counter() - started)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
