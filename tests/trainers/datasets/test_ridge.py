import pytest
import torch

from trainers.catalog import DATASETS
from trainers.datasets import load_dataset
from trainers.datasets.ridge import ridge_problem
from trainers.models import build_model
from trainers.sampling import smoothness_constants


def test_the_constants_are_those_of_the_paper() -> None:
    problem = ridge_problem()
    eigenvalues = torch.linalg.eigvalsh(problem.hessian())
    assert float(eigenvalues[0]) == pytest.approx(0.04)
    assert float(eigenvalues[-1]) == pytest.approx(1.03)
    assert float(problem.smoothness().mean()) == pytest.approx(3.3, abs=0.1)
    assert 7 < float(problem.smoothness().max()) < 11


def test_the_training_split_knows_its_exact_smoothness() -> None:
    problem, dataset = ridge_problem(), load_dataset("ridge")
    regulariser = dataset.objective.regulariser
    found = smoothness_constants(dataset.train.inputs, "regression", regulariser=regulariser)
    torch.testing.assert_close(found, problem.smoothness(), rtol=1e-6, atol=0)


def test_the_gradient_vanishes_at_the_solution_and_nowhere_else_is_lower() -> None:
    problem = ridge_problem()
    solution = problem.solution().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.value(solution), solution)
    assert float(gradient.norm()) < 1e-12
    for seed in range(5):
        other = solution + 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(seed)).double()
        assert float(problem.value(other).detach()) > float(problem.value(solution).detach())


def test_the_weighted_objective_of_all_rows_is_the_problem_with_its_regulariser() -> None:
    """Value, and gradient against central differences, in float64."""
    problem, dataset = ridge_problem(), load_dataset("ridge")
    model = build_model("linear", DATASETS["ridge"], seed=0).double()
    (weight,) = model.parameters()
    ones = torch.ones(100).double()
    loss = dataset.objective.weighted_mean(model, problem.features, problem.targets, ones)
    (gradient,) = torch.autograd.grad(loss, weight)
    point = weight.detach().flatten()
    assert float(loss.detach()) == pytest.approx(float(problem.value(point)), rel=1e-12)
    step = 1e-5
    for index in range(0, 100, 7):
        shift = torch.zeros(100).double()
        shift[index] = step
        slope = (problem.value(point + shift) - problem.value(point - shift)) / (2 * step)
        assert float(gradient[0, index]) == pytest.approx(float(slope), abs=1e-8)


def test_every_split_is_the_problem_itself() -> None:
    dataset = load_dataset("ridge")
    assert dataset.validation is dataset.train
    assert dataset.test is dataset.train
