import math
from itertools import product

import pytest
import torch
from torch import Tensor

from trainers.sampling import (
    effective_sample_size,
    importance_probabilities,
    importance_weights,
    mixture_probabilities,
    variance_gain,
)

SCORES = {
    "all alike": [2.0, 2.0, 2.0, 2.0],
    "skewed": [1e-3, 1.0, 50.0, 3.0],
    "some zero": [0.0, 1.0, 0.0, 3.0],
    "all zero": [0.0, 0.0, 0.0, 0.0],
    "nan": [1.0, math.nan, 1.0, 2.0],
    "infinite": [1.0, math.inf, 1.0, 2.0],
    "negative": [1.0, -2.0, 1.0, 2.0],
    "huge": [1e308, 1e308, 1.0, 1.0],
}


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("uniform_share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_weighted_mean_of_a_batch_is_unbiased(name: str, uniform_share: float, batch_size: int) -> None:
    """Over all outcomes of the draws, with their probabilities; for values that vanish with the score where α is 0."""
    probabilities = mixture_probabilities(importance_probabilities(float64(*SCORES[name])), uniform_share)
    weights = importance_weights(probabilities)
    values = torch.where(probabilities > 0, float64(3.0, -1.0, 0.2, 7.0), 0.0)
    expectation = 0.0
    for outcome in product(range(4), repeat=batch_size):
        if all(probabilities[i] > 0 for i in outcome):
            drawn = torch.tensor(outcome)
            likelihood = float(probabilities[drawn].prod())
            expectation += likelihood * float((weights[drawn] * values[drawn]).mean())
    assert expectation == pytest.approx(float(values.mean()), abs=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_probabilities_are_a_distribution_whatever_the_scores(name: str) -> None:
    probabilities = importance_probabilities(float64(*SCORES[name]))
    assert probabilities.dtype == torch.float64
    assert bool((probabilities >= 0).all())
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["all zero", "nan", "infinite", "negative", "huge"])
def test_scores_that_say_nothing_mean_uniform(name: str) -> None:
    probabilities = importance_probabilities(float64(*SCORES[name]))
    assert probabilities.tolist() == [0.25] * 4
    assert float(variance_gain(probabilities)) == pytest.approx(1)


def test_probabilities_are_proportional_to_the_scores() -> None:
    assert importance_probabilities(torch.tensor([1.0, 2.0, 5.0])).tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


@pytest.mark.parametrize("uniform_share", [0.1, 0.5, 1.0])
def test_the_mixture_bounds_every_weight_by_one_over_alpha(uniform_share: float) -> None:
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 20
    mixed = mixture_probabilities(importance_probabilities(scores), uniform_share)
    assert float(importance_weights(mixed).max()) <= (1 + 1e-12) / uniform_share


def test_half_uniform_is_at_most_twice_as_bad_as_the_better_of_uniform_and_importance() -> None:
    """max L_i/(n p_i) ≤ 2·min(L_max, L_avg)."""
    for seed in range(20):
        smoothness = torch.rand(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** (seed + 1)
        mixed = mixture_probabilities(importance_probabilities(smoothness), 0.5)
        worst = float((smoothness * importance_weights(mixed)).max())
        assert worst <= 2 * min(float(smoothness.max()), float(smoothness.mean())) * (1 + 1e-12)


def test_every_row_is_a_distribution_of_its_own() -> None:
    rows = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[1, 2] = math.nan
    together = mixture_probabilities(importance_probabilities(rows), 0.2)
    for row, scores in zip(together, rows, strict=True):
        assert torch.equal(row, mixture_probabilities(importance_probabilities(scores), 0.2))
    for function in (variance_gain, effective_sample_size, importance_weights):
        alone = torch.stack([function(row) for row in together])
        torch.testing.assert_close(function(together), alone, rtol=1e-14, atol=0)


def test_the_effective_sample_size_lies_between_one_and_the_batch() -> None:
    assert float(effective_sample_size(torch.full((8,), 0.3))) == pytest.approx(8)
    assert float(effective_sample_size(torch.tensor([1e6, 1e-6, 1e-6]))) == pytest.approx(1)
    assert float(effective_sample_size(torch.tensor([1.0, 3.0]))) == pytest.approx(1.6)


def test_the_variance_gain_is_rms_over_mean_of_the_scores() -> None:
    expected = math.sqrt(41 / 3) / 3
    assert float(variance_gain(importance_probabilities(torch.tensor([1.0, 2.0, 6.0])))) == pytest.approx(expected)
