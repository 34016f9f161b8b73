import pytest
import torch
from torch import nn

from trainers.batchnorm import frozen_running_statistics


def test_frozen_statistics_normalise_by_the_batch_and_do_not_move() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    twin = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    inputs = 5 + 3 * torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen_running_statistics(model):
        outputs = model(inputs)
    assert torch.equal(outputs, twin(inputs))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(inputs)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert int(model.state_dict()["0.num_batches_tracked"]) == 1


def test_an_exception_thaws_them() -> None:
    model = nn.BatchNorm1d(3)
    with pytest.raises(MemoryError), frozen_running_statistics(model):
        raise MemoryError
    assert model.track_running_stats
