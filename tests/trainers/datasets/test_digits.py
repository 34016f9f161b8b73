import subprocess
import sys

import pytest
import torch

from trainers.catalog import DATASETS
from trainers.datasets import load_dataset


def test_the_splits_are_those_of_the_catalog_and_share_no_image() -> None:
    dataset = load_dataset("digits")
    facts = DATASETS["digits"]
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [facts.train_size, 288, 360]
    for split in splits:
        assert split.inputs.shape == (len(split), *facts.shape)
        assert split.inputs.dtype == torch.float32
        assert sorted(split.targets.unique().tolist()) == list(range(facts.classes))
    images = torch.cat([split.inputs.flatten(1) for split in splits])
    assert len(images.unique(dim=0)) == 1797


def test_training_pixels_are_standardised() -> None:
    inputs = load_dataset("digits").train.inputs
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-4)


def test_a_dataset_is_loaded_once_per_process() -> None:
    assert load_dataset("digits") is load_dataset("digits")


def test_a_digits_run_imports_no_torchvision() -> None:
    program = (
        "import sys; from trainers.config import TrainConfig; from trainers.loop import train; "
        "list(train(TrainConfig(epochs=1), threads=1)); print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
