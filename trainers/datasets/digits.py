"""8 × 8 handwritten digits, which scikit-learn ships: no download, a trial takes a fraction of a second."""

from __future__ import annotations

import torch

from trainers.datasets.dataset import Dataset, Split, fixed_permutation, standardised
from trainers.objective import Objective

_VALIDATION_SIZE, _TEST_SIZE = 288, 360


def load_digits() -> Dataset:
    """1149 training, 288 validation and 360 test images, (1, 8, 8), standardised by the training pixels."""
    from sklearn.datasets import load_digits as load_bunch  # half a second that other datasets need not wait

    bunch = load_bunch()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)
    classes = torch.from_numpy(bunch.target).long()
    order = fixed_permutation(len(classes))
    parts = torch.split(order, [len(order) - _VALIDATION_SIZE - _TEST_SIZE, _VALIDATION_SIZE, _TEST_SIZE])
    train_images = images[parts[0]]
    train, validation, test = (Split(standardised(images[part], by=train_images), classes[part]) for part in parts)
    return Dataset(train, validation, test, Objective("classification"))
