"""What every dataset shares: the split, the normalisation, the move to a device."""

import pytest
import torch

from trainers.catalog import DATASETS
from trainers.datasets import LOADERS, Dataset, Split
from trainers.datasets.dataset import Normalisation, fixed_permutation, with_held_out
from trainers.objective import Objective


def random_split(size: int, seed: int, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (size, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(size))


def test_every_dataset_of_the_catalog_that_is_no_problem_has_a_loader() -> None:
    assert set(LOADERS) == {name for name, facts in DATASETS.items() if not facts.is_problem}


def test_a_tenth_of_the_published_training_set_is_held_out_in_an_order_that_never_changes() -> None:
    published, test = random_split(57, seed=0), random_split(10, seed=1)
    dataset = with_held_out(published, test)
    assert (len(dataset.train), len(dataset.validation)) == (52, 5)
    assert dataset.validation.targets.tolist() == [47, 10, 28, 18, 48]
    order = torch.cat([dataset.train.targets, dataset.validation.targets])
    assert torch.equal(order, fixed_permutation(57))
    assert torch.equal(torch.cat([dataset.train.inputs, dataset.validation.inputs]), published.inputs[order])
    assert dataset.test is test


@pytest.mark.parametrize(
    ("name", "published"),
    [
        *[(name, 60_000) for name in ("mnist", "fashion_mnist", "kmnist")],
        *[("cifar10", 50_000), ("cifar100", 50_000), ("svhn", 73_257)],
    ],
)
def test_the_catalog_knows_how_many_examples_are_left_for_training(name: str, published: int) -> None:
    facts = DATASETS[name]
    assert (facts.train_size, facts.validation_size) == (published - published // 10, published // 10)


def test_without_a_validation_split_all_that_is_published_is_learned_from_and_normalises() -> None:
    published, test = random_split(57, seed=0), random_split(10, seed=1)
    dataset = with_held_out(published, test).without_validation()
    assert (dataset.validation, dataset.test) == (None, test)
    assert sorted(dataset.train.targets.tolist()) == list(range(57))
    assert torch.equal(dataset.train.inputs[dataset.train.targets.argsort()], published.inputs)
    assert dataset.normalisation is not None
    torch.testing.assert_close(dataset.normalisation.mean, published.inputs.float().mean((0, 2, 3)))
    assert dataset.to(torch.device("cpu")).validation is None
    assert dataset.without_validation() is dataset


def test_images_are_normalised_by_channel_by_the_training_split_alone() -> None:
    dataset = with_held_out(random_split(100, seed=0), random_split(10, seed=1))
    prepared = dataset.prepare(dataset.train.inputs)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(prepared.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-6)
    train = dataset.train.inputs.double()
    by_hand = (dataset.test.inputs - train.mean((0, 2, 3), keepdim=True)) / train.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(dataset.prepare(dataset.test.inputs).double(), by_hand, rtol=1e-6, atol=1e-6)


def test_preparing_leaves_the_images_and_their_layout() -> None:
    dataset = with_held_out(random_split(30, seed=0), random_split(10, seed=1))
    images = dataset.test.inputs.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    prepared = dataset.prepare(images)
    assert torch.equal(images, before)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(prepared, dataset.prepare(dataset.test.inputs))


def test_the_statistics_of_large_sets_are_exact() -> None:
    """A float32 sum of as many pixels would be off in the fourth digit."""
    images = torch.full((5_000, 1, 64, 64), 200, dtype=torch.uint8)
    images[0] = 100
    share = 1 / 5_000
    variance = 100**2 * share * (1 - share) * images.numel() / (images.numel() - 1)
    found = Normalisation.of(images)
    assert float(found.mean) == pytest.approx(200 - 100 * share, rel=1e-7)
    assert float(found.std) == pytest.approx(variance**0.5, rel=1e-7)


def test_the_fill_is_the_mean_pixel_which_becomes_zero() -> None:
    dataset = with_held_out(random_split(100, seed=0), random_split(10, seed=1))
    assert dataset.fill.dtype == torch.uint8
    assert dataset.normalisation is not None
    hole = dataset.prepare(dataset.fill[None, :, None, None])
    assert bool((hole.flatten().abs() <= 0.5 / dataset.normalisation.std + 1e-6).all())


def test_inputs_without_normalisation_go_to_the_model_as_they_are() -> None:
    rows = Split(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
    dataset = Dataset(rows, rows, rows, Objective("regression", 0.5))
    assert dataset.prepare(rows.inputs) is rows.inputs
    with pytest.raises(ValueError, match="only images have a mean pixel"):
        _ = dataset.fill


def test_a_dataset_moves_with_all_its_tensors_and_keeps_those_that_are_there() -> None:
    dataset = with_held_out(random_split(30, seed=0), random_split(10, seed=1))
    moved = dataset.to(torch.device("meta"))
    assert moved.normalisation is not None
    tensors = [moved.normalisation.mean, moved.normalisation.std]
    for split in (moved.train, moved.validation, moved.test):
        tensors += [split.inputs, split.targets]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.objective is dataset.objective
    assert dataset.to(torch.device("cpu")).train.inputs is dataset.train.inputs
