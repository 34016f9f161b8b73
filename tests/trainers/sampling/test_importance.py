import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.sampling import ImportanceSampler, build_sampler, importance

GRADIENT_NORMS = torch.tensor([0.2, 3.0, 0.01, 1.0, 0.5, 9.0], dtype=torch.float64)


def a_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_and_weights_are_those_of_the_definition() -> None:
    """Written out anew in NumPy, from the same numbers."""
    probabilities = GRADIENT_NORMS / GRADIENT_NORMS.sum()
    sampler = ImportanceSampler(probabilities, 4, a_generator(5), task="regression")
    numbers = torch.rand(6, dtype=torch.float64, generator=a_generator(5)).numpy()
    expected = [int(np.argmax(np.cumsum(probabilities.numpy()) > number)) for number in numbers]
    batches = list(sampler.batches())
    assert torch.cat([batch.indices for batch in batches]).tolist() == expected
    weights = torch.cat([batch.weights for batch in batches])
    torch.testing.assert_close(weights.double(), 1 / (6 * probabilities[expected]), rtol=1e-6, atol=0)


def test_lipschitz_draws_in_proportion_to_the_constants() -> None:
    smoothness = torch.tensor([1.0, 2.0, 5.0])
    sampler = build_sampler(
        "lipschitz", size=3, batch_size=1, generator=a_generator(), task="binary", smoothness=smoothness
    )
    batches = [batch for _ in range(4000) for batch in sampler.batches()]
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]), minlength=3) / len(batches)
    torch.testing.assert_close(counts, smoothness / 8, rtol=0, atol=0.02)
    weight_of = {int(batch.indices): float(batch.weights) for batch in batches}
    assert weight_of == pytest.approx({0: 8 / 3, 1: 8 / 6, 2: 8 / 15})


def test_leaving_the_weights_out_would_be_biased() -> None:
    values = (torch.arange(23) % 7 == 6).double()
    probabilities = (1 + 20 * values) / (1 + 20 * values).sum()
    sampler = ImportanceSampler(probabilities, 23, a_generator(), task="regression")
    drawn = torch.cat([values[batch.indices] for _ in range(200) for batch in sampler.batches()])
    assert float(drawn.mean()) > 2 * float(values.mean())


def test_an_example_that_would_never_be_drawn_is_refused() -> None:
    for bad in (0.0, -0.5, 1e-14, math.nan):
        with pytest.raises(ValueError, match="probabilit"):
            ImportanceSampler(torch.tensor([1 - bad, bad]).double(), 1, a_generator(), task="regression")


def test_probabilities_must_have_the_sum_one() -> None:
    for total in (0.9, 1.1, math.inf):
        with pytest.raises(ValueError, match="must have the sum 1, got"):
            ImportanceSampler(torch.full((4,), total / 4), 1, a_generator(), task="regression")


def every_outcome(sampler: ImportanceSampler, smoothness: Tensor, losses: Tensor) -> float:
    """The variance ratio after an epoch that has every example as often as it is probable.

    The constants are whole numbers, so that Σ L_i draws do, at equally distant places of [0, 1).
    """
    draws = int(smoothness.sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "uniform_numbers", lambda *_, **__: (torch.arange(draws).double() + 0.5) / draws)
        batches = list(sampler.batches())
    assert torch.cat([batch.indices for batch in batches]).bincount().tolist() == smoothness.tolist()
    for batch in batches:
        sampler.observe(batch, losses[batch.indices])
    return sampler.diagnostics()["variance_ratio"]


def single_draw_variance(gradients: Tensor, probabilities: Tensor) -> float:
    """E‖g − ∇f‖² of one draw, over all outcomes. gradients: (n, d)."""
    estimates = gradients / (len(gradients) * probabilities.unsqueeze(1))
    errors = (estimates - gradients.mean(0)).square().sum(1)
    return float((probabilities * errors).sum())


def a_linear_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of squared norms L_i = 1, 1, 2, 4, 16, targets that do not fit them, and these L_i."""
    smoothness = torch.tensor([1.0, 1.0, 2.0, 4.0, 16.0], dtype=torch.float64)
    directions = torch.randn(5, 2, generator=a_generator(3), dtype=torch.float64)
    rows = directions / directions.norm(dim=1, keepdim=True) * smoothness.sqrt().unsqueeze(1)
    return rows, torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64), smoothness


def exact_ratio(gradients: Tensor, smoothness: Tensor) -> float:
    uniform = torch.full_like(smoothness, 1 / len(smoothness))
    by_importance = single_draw_variance(gradients, smoothness / smoothness.sum())
    return by_importance / single_draw_variance(gradients, uniform)


def lipschitz(smoothness: Tensor, task: str) -> ImportanceSampler:
    sampler = build_sampler(
        "lipschitz", size=5, batch_size=5, generator=a_generator(), task=task, smoothness=smoothness
    )
    assert isinstance(sampler, ImportanceSampler)
    return sampler


def test_at_the_minimum_the_variance_ratio_is_exact_for_least_squares() -> None:
    rows, targets, smoothness = a_linear_problem()
    minimiser = torch.linalg.lstsq(rows, targets.unsqueeze(1)).solution.squeeze(1)
    residuals = rows @ minimiser - targets
    expected = exact_ratio(residuals.unsqueeze(1) * rows, smoothness)
    found = every_outcome(lipschitz(smoothness, "regression"), smoothness, 0.5 * residuals.square())
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(expected - 1) > 0.2


def test_at_the_minimum_the_variance_ratio_is_exact_for_the_logistic_loss() -> None:
    rows, targets, smoothness = a_linear_problem()
    rows[1], rows[4] = rows[0], 2 * rows[3]  # with opposite targets, so that no x separates them
    x = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        slopes = -targets * torch.sigmoid(-targets * (rows @ x))
        curvatures = slopes.abs() * (1 - slopes.abs())
        x -= torch.linalg.solve(rows.T @ (curvatures.unsqueeze(1) * rows), rows.T @ slopes)
    gradients = slopes.unsqueeze(1) * rows
    assert float(slopes.norm()) > 0.5
    assert float(gradients.mean(0).norm()) < 1e-12
    losses = torch.logaddexp(torch.zeros(5).double(), -targets * (rows @ x))
    found = every_outcome(lipschitz(smoothness, "binary"), smoothness, losses)
    assert found == pytest.approx(exact_ratio(gradients, smoothness), rel=1e-6)


def test_away_from_the_minimum_the_estimate_lies_between_one_and_the_variance_ratio() -> None:
    rows, targets, smoothness = a_linear_problem()
    ratios = []
    for seed in range(20):
        x = 2 * torch.randn(2, generator=a_generator(seed), dtype=torch.float64)
        residuals = rows @ x - targets
        exact = exact_ratio(residuals.unsqueeze(1) * rows, smoothness)
        found = every_outcome(lipschitz(smoothness, "regression"), smoothness, 0.5 * residuals.square())
        assert min(1, exact) <= found <= max(1, exact)
        ratios.append(exact)
    assert min(ratios) < 0.7
    assert max(ratios) > 1


def test_where_nothing_was_observed_the_variance_ratio_is_one() -> None:
    sampler = lipschitz(torch.ones(5), "regression")
    list(sampler.batches())
    assert sampler.diagnostics()["variance_ratio"] == 1


def test_there_are_no_diagnostics_before_the_first_epoch() -> None:
    with pytest.raises(RuntimeError, match="none has run"):
        lipschitz(torch.ones(5), "regression").diagnostics()
