import torch
from sklearn.datasets import load_digits as load_bunch

from trainers.catalog import DATASETS
from trainers.datasets import load_dataset


def test_the_splits_are_those_of_the_catalog_and_share_no_image() -> None:
    dataset = load_dataset("digits")
    facts = DATASETS["digits"]
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [facts.train_size, 288, 360]
    for split in splits:
        assert split.inputs.shape == (len(split), *facts.shape)
        assert split.inputs.dtype == torch.uint8
        assert sorted(split.targets.unique().tolist()) == list(range(facts.classes))
    images = torch.cat([split.inputs.flatten(1) for split in splits])
    assert len(images.unique(dim=0)) == 1797


def test_no_grey_level_is_lost_and_training_pixels_are_standardised() -> None:
    """The published pixels are whole numbers from 0 to 16, in floating point."""
    dataset = load_dataset("digits")
    published = torch.from_numpy(load_bunch().images).flatten(1)
    found = torch.cat([split.inputs for split in (dataset.train, dataset.validation, dataset.test)]).flatten(1)
    assert torch.equal(found.double().unique(dim=0), published.unique(dim=0))
    pixels = dataset.train.inputs.double()
    expected = (pixels - pixels.mean()) / pixels.std()
    torch.testing.assert_close(dataset.prepare(dataset.train.inputs).double(), expected, rtol=1e-6, atol=1e-6)


def test_a_dataset_is_loaded_once_per_process() -> None:
    assert load_dataset("digits") is load_dataset("digits")
