"""8 × 8 handwritten digits, which scikit-learn ships: no download, a trial takes a fraction of a second."""

from __future__ import annotations

import torch

from trainers.datasets.dataset import Dataset, Split, classification_dataset, fixed_permutation

_VALIDATION_SIZE, _TEST_SIZE = 288, 360


def load_digits() -> Dataset:
    """1149 training, 288 validation and 360 test images, (1, 8, 8), with pixels from 0 to 16."""
    from sklearn.datasets import load_digits as load_bunch  # half a second that other datasets need not wait

    bunch = load_bunch()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    classes = torch.from_numpy(bunch.target).long()
    order = fixed_permutation(len(classes))
    parts = torch.split(order, [len(order) - _VALIDATION_SIZE - _TEST_SIZE, _VALIDATION_SIZE, _TEST_SIZE])
    train, validation, test = (Split(images[part], classes[part]) for part in parts)
    return classification_dataset(train, validation, test)
