import math
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.catalog import DATASETS
from trainers.datasets import Split, load_dataset
from trainers.evaluation import calibration_gaps, evaluate, evaluation_mode
from trainers.models import build_model
from trainers.objective import Objective

CLASSIFICATION, BINARY = Objective("classification"), Objective("binary")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calibration_error(confidences: list[float], right: list[bool], bins: int = 15) -> float:
    """Σ_m (|B_m|/n)·|accuracy(B_m) − confidence(B_m)| as Guo et al. 2017 write it, one example at a time."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, confidence in enumerate(confidences) if (m - 1) / bins < confidence <= m / bins]
        if members:
            accuracy = sum(right[i] for i in members) / len(members)
            mean_confidence = sum(confidences[i] for i in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - mean_confidence)
    return total


def test_loss_and_accuracy_are_means_over_the_whole_split_whatever_its_size() -> None:
    logits = torch.randn(9001, 3, generator=seeded())
    targets = torch.randint(3, (9001,), generator=seeded(1))
    evaluation = evaluate(nn.Identity(), Split(logits, targets), CLASSIFICATION)
    assert evaluation.loss == pytest.approx(float(nn.functional.cross_entropy(logits, targets)), rel=1e-5)
    assert evaluation.accuracy == float((logits.argmax(1) == targets).double().mean())


@pytest.mark.parametrize("size", [1, 500, 9001])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0, 1000.0])
def test_the_calibration_error_is_that_of_a_slow_reference(size: int, sharpness: float) -> None:
    logits = sharpness * torch.randn(size, 4, generator=seeded(2))
    targets = torch.randint(4, (size,), generator=seeded(3))
    confidences, predicted = logits.double().softmax(1).max(1)
    expected = calibration_error(confidences.tolist(), (predicted == targets).tolist())
    evaluation = evaluate(nn.Identity(), Split(logits, targets), CLASSIFICATION)
    assert evaluation.calibration_error == pytest.approx(expected, rel=1e-12)


def test_the_calibration_error_of_a_case_by_hand() -> None:
    """Of 4 predictions at 0.9 half are right, and of 6 at 0.6 all: (4·|0.5 − 0.9| + 6·|1 − 0.6|) / 10."""
    confidences = torch.tensor(4 * [0.9] + 6 * [0.6], dtype=torch.float64)
    logits = torch.stack((confidences.log(), (1 - confidences).log()), 1)
    evaluation = evaluate(nn.Identity(), Split(logits, torch.tensor([0, 0, 1, 1, *6 * [0]])), CLASSIFICATION)
    assert evaluation.calibration_error == pytest.approx(0.4)
    assert evaluation.accuracy == 0.8


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    edges = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    gaps = calibration_gaps(edges, torch.ones(6, dtype=torch.bool), bins=5)
    assert gaps.tolist() == pytest.approx([1 + 0.8, 0.6, 0.4, 0.2, 0])


def test_the_gaps_of_batches_add_up_to_those_of_the_whole() -> None:
    confidence = torch.rand(1000, generator=seeded(), dtype=torch.float64)
    is_right = torch.rand(1000, generator=seeded(1)) < 0.5
    parts = [calibration_gaps(confidence[i : i + 77], is_right[i : i + 77]) for i in range(0, 1000, 77)]
    assert torch.allclose(torch.stack(parts).sum(0), calibration_gaps(confidence, is_right), rtol=1e-12)


def test_a_binary_target_is_predicted_by_the_sign_of_the_output() -> None:
    outputs = torch.tensor([[2.0], [-1.0], [0.5], [-3.0], [0.0]]).double()
    targets = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]).double()
    evaluation = evaluate(nn.Identity(), Split(outputs, targets), BINARY)
    z = outputs[:, 0].tolist()
    losses = [math.log1p(math.exp(-y * z)) for y, z in zip(targets.tolist(), z, strict=True)]
    assert evaluation.loss == pytest.approx(sum(losses) / 5, rel=1e-12)
    assert evaluation.accuracy == 3 / 5
    confidences = [1 / (1 + math.exp(-abs(value))) for value in z]
    expected = calibration_error(confidences, [True, False, False, True, True])
    assert evaluation.calibration_error == pytest.approx(expected, rel=1e-12)


def test_a_regression_has_neither_accuracy_nor_confidence_and_its_loss_has_the_regulariser() -> None:
    model = nn.Linear(3, 1).double()
    inputs, targets = torch.randn(2, 20, 3, generator=seeded()).double(), torch.randn(20, generator=seeded(1)).double()
    evaluation = evaluate(model, Split(inputs[0], targets), Objective("regression", regulariser=0.3))
    residuals = model(inputs[0])[:, 0] - targets
    squares = sum(param.square().sum() for param in model.parameters())
    expected = 0.5 * residuals.square().mean() + 0.15 * squares
    assert evaluation.loss == pytest.approx(expected.item(), rel=1e-14)
    assert (evaluation.accuracy, evaluation.calibration_error) == (None, None)


def test_raw_images_are_prepared_batch_by_batch() -> None:
    images = torch.randint(256, (50, 3, 64, 64), generator=seeded(), dtype=torch.uint8)
    targets = torch.randint(2, (50,), generator=seeded(1))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    sizes = []

    def prepare(raw: Tensor) -> Tensor:
        sizes.append(len(raw))
        return (raw.float() - 128) / 64

    evaluation = evaluate(model, Split(images.repeat(4, 1, 1, 1), targets.repeat(4)), CLASSIFICATION, prepare=prepare)
    expected = nn.functional.cross_entropy(model((images.float() - 128) / 64), targets)
    assert evaluation.loss == pytest.approx(expected.item(), rel=1e-5)
    assert sizes == [170, 30]


class Recording(nn.Linear):
    """Remembers in which mode, precision and layout it was called."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs.flatten(1))
        self.seen = self.training, outputs.dtype, inputs.is_contiguous(memory_format=torch.channels_last)
        return outputs


def test_precision_and_layout_are_those_asked_for_and_losses_are_taken_in_float32() -> None:
    def bfloat16() -> AbstractContextManager[object]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    model = Recording(48, 3)
    split = Split(torch.randn(8, 3, 4, 4, generator=seeded()), torch.randint(3, (8,), generator=seeded(1)))
    evaluation = evaluate(model, split, CLASSIFICATION, autocast=bfloat16, memory_format=torch.channels_last)
    assert model.seen == (False, torch.bfloat16, True)
    with bfloat16():
        outputs = model(split.inputs)
    losses = nn.functional.cross_entropy(outputs.float(), split.targets, reduction="none")
    assert evaluation.loss == pytest.approx(losses.double().mean().item(), rel=1e-12)
    evaluate(model, split, CLASSIFICATION)
    assert model.seen == (False, torch.float32, False)


def test_evaluation_moves_no_statistics_and_puts_every_mode_back() -> None:
    dataset = load_dataset("digits")
    model = build_model("small_cnn", DATASETS["digits"], seed=0)
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, dataset.validation, dataset.objective, prepare=dataset.prepare)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_are_put_back_also_where_evaluation_fails() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        evaluate(model, Split(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), CLASSIFICATION)
    assert [module.training for module in model] == [True, False]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())


def test_nothing_is_read_back_between_the_batches() -> None:
    read_back = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}:
                read_back.append(function)
            return function(*args, **(kwargs or {}))

    logits, targets = torch.randn(9000, 3, generator=seeded()), torch.randint(3, (9000,), generator=seeded(1))
    with Watching():
        evaluate(nn.Identity(), Split(logits, targets), CLASSIFICATION)
        assert read_back == []
        assert bool(logits.sum() > -math.inf)
    assert read_back


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("task", ["classification", "binary"])
def test_outputs_that_are_not_finite_make_numbers_that_are_not(task: str, bad: float) -> None:
    classes, targets = (3, torch.zeros(5, dtype=torch.int64)) if task == "classification" else (1, -torch.ones(5))
    outputs = torch.full((5, classes), bad)
    evaluation = evaluate(nn.Identity(), Split(outputs, targets), Objective(task))  # type: ignore[arg-type]
    assert not math.isfinite(evaluation.loss)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        evaluate(nn.Identity(), Split(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), CLASSIFICATION)
