import pytest
import torch
from torch import nn

from trainers.catalog import DATASETS
from trainers.datasets import Split, load_dataset
from trainers.datasets.ridge import ridge_problem
from trainers.evaluation import evaluate
from trainers.models import build_model
from trainers.objective import Objective


def test_loss_and_accuracy_are_means_over_the_whole_split_whatever_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9001, 3, generator=generator)
    targets = torch.randint(3, (9001,), generator=generator)
    evaluation = evaluate(nn.Identity(), Split(logits, targets), Objective("classification"))
    assert evaluation.loss == pytest.approx(float(nn.functional.cross_entropy(logits, targets)), rel=1e-5)
    assert evaluation.accuracy == float((logits.argmax(1) == targets).double().mean())


def test_evaluation_moves_no_statistics_and_puts_the_mode_back() -> None:
    dataset = load_dataset("digits")
    model = build_model("small_cnn", DATASETS["digits"], seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, dataset.validation, dataset.objective)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_regression_has_no_accuracy_and_its_loss_has_the_regulariser() -> None:
    dataset = load_dataset("ridge")
    model = build_model("linear", DATASETS["ridge"], seed=0)
    evaluation = evaluate(model, dataset.validation, dataset.objective)
    (weight,) = model.parameters()
    expected = ridge_problem().value(weight.detach().flatten().double())
    assert evaluation.accuracy is None
    assert evaluation.loss == pytest.approx(float(expected), rel=1e-5)
