import math

import pytest
import torch
from torch import Tensor, nn

from trainers.facts import Task
from trainers.sampling import output_gradient_norms, output_gradient_norms_from_losses, smoothness_of_chunks
from trainers.sampling.scores import smoothness_constants

TASKS: tuple[Task, ...] = ("classification", "binary", "regression")


def a_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def losses_of(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """(b,), written out anew."""
    if task == "classification":
        return nn.functional.cross_entropy(outputs, targets, reduction="none")
    margins = outputs.squeeze(1)
    if task == "binary":
        return torch.logaddexp(torch.zeros_like(margins), -targets * margins)
    return 0.5 * (margins - targets) ** 2


def an_example_of(task: Task, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Outputs of six examples, one of them far off, and their targets."""
    columns = classes if task == "classification" else 1
    outputs = 3 * torch.randn(6, columns, generator=a_generator(), dtype=torch.float64)
    outputs[5] *= 10
    if task == "classification":
        return outputs, torch.arange(6) % classes
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    return outputs, signs if task == "binary" else signs * 0.7


@pytest.mark.parametrize("task", TASKS)
def test_output_gradient_norms_are_those_of_autograd(task: Task) -> None:
    outputs, targets = an_example_of(task)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(losses_of(task, outputs, targets).sum(), outputs)
    found = output_gradient_norms(task, outputs.detach(), targets)
    torch.testing.assert_close(found, gradient.norm(dim=1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("task", TASKS)
def test_for_a_linear_model_the_inputs_norm_turns_them_into_the_gradients_norms(task: Task) -> None:
    inputs = torch.randn(6, 3, generator=a_generator(1), dtype=torch.float64)
    outputs, targets = an_example_of(task)
    weights = torch.linalg.lstsq(inputs, outputs).solution.requires_grad_()
    outputs = inputs @ weights
    scores = output_gradient_norms(task, outputs.detach(), targets)
    for row, loss in enumerate(losses_of(task, outputs, targets)):
        (gradient,) = torch.autograd.grad(loss, weights, retain_graph=True)
        assert float(gradient.norm()) == pytest.approx(float(scores[row] * inputs[row].norm()), rel=1e-12)


def test_the_score_of_a_sure_example_does_not_round_to_zero() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    exact = math.sqrt(6) * math.exp(-30)
    assert float(output_gradient_norms("classification", logits, torch.tensor([0]))) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_of_low_precision_are_scored_in_single_precision(dtype: torch.dtype) -> None:
    for task in TASKS:
        outputs, targets = an_example_of(task)
        scores = output_gradient_norms(task, outputs.to(dtype), targets)
        expected = output_gradient_norms(task, outputs.to(dtype).double(), targets)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_the_loss_alone_tells_the_gradient_at_the_output(task: Task) -> None:
    outputs, targets = an_example_of(task)
    found = output_gradient_norms_from_losses(task, losses_of(task, outputs, targets))
    torch.testing.assert_close(found, output_gradient_norms(task, outputs, targets), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_classifications_loss_tells_it_up_to_a_nearly_constant_factor(classes: int) -> None:
    outputs = 4 * torch.randn(500, classes, generator=a_generator(2), dtype=torch.float64)
    targets = torch.arange(500) % classes
    found = output_gradient_norms_from_losses("classification", losses_of("classification", outputs, targets))
    factors = output_gradient_norms("classification", outputs, targets) / found
    assert float(factors.min()) >= math.sqrt(classes / (classes - 1)) - 1e-6
    assert float(factors.max()) <= math.sqrt(2) + 1e-6


def largest_curvature(loss_of: object, x: Tensor) -> float:
    hessian = torch.autograd.functional.hessian(loss_of, x)  # type: ignore[arg-type]
    return float(torch.linalg.eigvalsh(hessian)[-1])


def rows_with_bias(inputs: Tensor, has_bias: bool) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), int(has_bias), dtype=inputs.dtype)], dim=1)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_constants_are_the_largest_curvature_of_each_loss(task: Task, has_bias: bool) -> None:
    """The logistic loss curves most at margin 0, least squares alike everywhere."""
    inputs = torch.randn(4, 6, generator=a_generator(), dtype=torch.float64)
    constants = smoothness_constants(inputs, task, regulariser=0.03, has_bias=has_bias)
    for row, constant in zip(rows_with_bias(inputs, has_bias), constants, strict=True):

        def f_i(x: Tensor, a: Tensor = row) -> Tensor:
            return losses_of(task, (a @ x).view(1, 1), torch.ones(1).double())[0] + 0.015 * (x @ x)

        assert largest_curvature(f_i, torch.zeros(len(row)).double()) == pytest.approx(float(constant), rel=1e-9)
        elsewhere = torch.randn(len(row), generator=a_generator(3)).double()
        assert largest_curvature(f_i, elsewhere) <= float(constant) * (1 + 1e-9)


@pytest.mark.parametrize("has_bias", [False, True])
def test_softmax_constants_bound_every_hessian_and_are_attained(has_bias: bool) -> None:
    inputs = torch.randn(4, 3, generator=a_generator(), dtype=torch.float64)
    constants = smoothness_constants(inputs, "classification", has_bias=has_bias)
    for row, constant in zip(rows_with_bias(inputs, has_bias), constants, strict=True):

        def loss(x: Tensor, a: Tensor = row) -> Tensor:
            return nn.functional.cross_entropy(x.view(4, -1) @ a, torch.tensor(0))

        for seed in range(10):
            somewhere = torch.randn(4 * len(row), generator=a_generator(seed)).double()
            assert largest_curvature(loss, somewhere) <= float(constant)
        # Two classes share the probability, the others have none: the worst case.
        worst = torch.outer(torch.tensor([1.0, 1.0, -1.0, -1.0]).double(), row) * 20 / (row @ row)
        assert largest_curvature(loss, worst.flatten()) == pytest.approx(float(constant), rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_constants_of_chunks_are_those_of_the_whole(task: Task) -> None:
    images = torch.randn(2500, 1, 3, 3, generator=a_generator())
    whole = smoothness_constants(images, task, regulariser=0.1, has_bias=True)
    assert whole.dtype == torch.float64
    assert whole.shape == (2500,)
    chunks = (chunk for chunk in images.split(700))
    assert torch.equal(smoothness_of_chunks(chunks, task, regulariser=0.1, has_bias=True), whole)
