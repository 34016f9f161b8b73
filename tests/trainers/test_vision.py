import torch

from trainers import vision


def test_torchvision_works_whether_or_not_its_compiled_operators_load() -> None:
    model = vision.models.resnet18(weights=None, num_classes=10)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert vision.transforms.CenterCrop(4)(torch.zeros(1, 8, 8)).shape == (1, 4, 4)
    assert "train-images-idx3-ubyte.gz" in dict(vision.datasets.FashionMNIST.resources)
