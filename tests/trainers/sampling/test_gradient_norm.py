import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from trainers.sampling import (
    UniformSampler,
    importance_probabilities,
    output_gradient_norms,
)
from trainers.sampling.drawing import draw_uniformly, draw_with_replacement, uniform_numbers
from trainers.sampling.gradient_norm import SMALLEST_SHARE, GradientNormSampler, presampled_moments, smoothed

N, B = 23, 5


def a_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed(indices: Tensor) -> Tensor:
    return 1 + 20 * (indices % 7 == 6).float()


def a_sampler(
    score: Callable[[Tensor], Tensor] = skewed,
    *,
    size: int = N,
    batch_size: int = B,
    factor: int = 3,
    passes: int = 2,
    share: float = 0.0,
    tau: float = 1.0,
    seed: int = 0,
) -> GradientNormSampler:
    sampler = GradientNormSampler(
        size,
        batch_size,
        a_generator(seed),
        task="regression",
        score=score,
        presample_factor=factor,
        passes=passes,
        uniform_share=share,
    )
    sampler.load_state_dict({**sampler.state_dict(), "tau": torch.tensor(tau, dtype=torch.float64)})
    return sampler


def train_an_epoch(sampler: GradientNormSampler, norms: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The indices; a regression whose gradients at the outputs have these norms."""
    seen = []
    for batch in sampler.batches():
        seen.append(batch.indices)
        sampler.observe(batch, 0.5 * norms(batch.indices).double().square())
    return seen


def test_an_epoch_that_is_off_is_exactly_the_uniform_samplers_and_scores_nothing() -> None:
    def never(indices: Tensor) -> Tensor:
        raise AssertionError("no forward pass is wanted")

    sampler, uniform = a_sampler(never), UniformSampler(N, B, a_generator())
    for _ in range(5):
        for ours, theirs in zip(sampler.batches(), uniform.batches(), strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.weights, theirs.weights)
            sampler.observe(ours, torch.ones(len(ours.indices)))
        assert not sampler.is_on
        assert sampler.diagnostics() == uniform.diagnostics()


def test_it_switches_on_when_the_losses_promise_enough_and_off_again() -> None:
    def peaked(indices: Tensor) -> Tensor:
        return 0.01 + (indices % 5 == 0).float()

    scores = {"now": peaked}
    sampler = a_sampler(lambda indices: scores["now"](indices))
    for _ in range(5):
        train_an_epoch(sampler, peaked)
    assert sampler.is_on
    scores["now"] = torch.ones_like
    for _ in range(10):
        train_an_epoch(sampler, torch.ones_like)
    assert not sampler.is_on


def test_tau_is_the_gain_among_as_many_examples_on_or_off_smoothed_in_order() -> None:
    """Written out anew: in a uniform epoch of the last 15 that were observed, in one by importance of 15 candidates."""
    sampler, tau = a_sampler(), 1.0
    norms = skewed(torch.cat(train_an_epoch(sampler, skewed))).double()
    for window in (norms[:15], norms[5:20]):
        tau = 0.9 * tau + 0.1 * float(window.square().mean().sqrt() / window.mean())
    assert float(sampler.state_dict()["tau"]) == pytest.approx(tau, rel=1e-12)

    scored: list[Tensor] = []
    sampler = a_sampler(lambda indices: (scored.append(skewed(indices).double()), scored[-1])[1], tau=50.0)
    train_an_epoch(sampler, skewed)
    assert [len(scores) for scores in scored] == [15] * 5
    tau = 50.0
    for scores in scored:
        tau = 0.9 * tau + 0.1 * float(scores.square().mean().sqrt() / scores.mean())
    assert float(sampler.state_dict()["tau"]) == pytest.approx(tau, rel=1e-12)


@pytest.mark.parametrize(("size", "batch_size"), [(7, 7), (7, 3), (5, 1)])
def test_an_epoch_of_fewer_examples_than_candidates_tells_tau_by_all_of_them(size: int, batch_size: int) -> None:
    sampler = a_sampler(lambda i: 1 + i, size=size, batch_size=batch_size, factor=8)
    train_an_epoch(sampler, lambda i: 1.0 + i)
    norms = torch.arange(1.0, size + 1, dtype=torch.float64)
    gain = float(norms.square().mean().sqrt() / norms.mean())
    assert float(sampler.state_dict()["tau"]) == pytest.approx(0.9 + 0.1 * gain, rel=1e-12)


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_whether_it_is_on_does_not_depend_on_where_it_started(tau: float) -> None:
    """One gradient in a hundred is a hundred times as large: worth 16 candidates for one drawn."""

    def rarely_large(indices: Tensor) -> Tensor:
        return 1 + 99 * (indices % 100 == 0).float()

    sampler = a_sampler(rarely_large, size=4000, batch_size=32, factor=16, tau=tau)
    train_an_epoch(sampler, rarely_large)
    for _ in range(3):
        assert sampler.is_on
        train_an_epoch(sampler, rarely_large)
        assert sampler.diagnostics()["variance_ratio"] < 0.15


def test_smoothing_many_steps_at_once_is_smoothing_them_one_by_one() -> None:
    gains = 1 + torch.rand(40, generator=a_generator(), dtype=torch.float64)
    tau = torch.tensor(1.7, dtype=torch.float64)
    one_by_one = tau
    for gain in gains:
        one_by_one = smoothed(one_by_one, gain.unsqueeze(0))
    torch.testing.assert_close(smoothed(tau, gains), one_by_one, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("passes", "threshold"), [(1, 2.0), (2, 1.5)])
def test_the_variance_must_fall_by_more_where_a_step_is_cheaper(passes: int, threshold: float) -> None:
    """1 + B/(3b) for one pass a step, 1 + B/(6b) for two."""
    for tau, expected in ((threshold - 1e-9, False), (threshold + 1e-9, True)):
        assert a_sampler(passes=passes, tau=tau).is_on is expected


def test_draws_and_weights_are_those_of_the_definition() -> None:
    sampler, twin = a_sampler(tau=9.0, share=0.25), a_generator()
    candidates = draw_uniformly(N, uniform_numbers(5, 3 * B, generator=twin))
    numbers = torch.split(uniform_numbers(N, generator=twin), B)
    for batch, among, at in zip(sampler.batches(), candidates, numbers, strict=True):
        scores = skewed(among).double()
        probabilities = 0.75 * scores / scores.sum() + 0.25 / len(among)
        drawn = draw_with_replacement(probabilities, at)
        assert torch.equal(batch.indices, among[drawn])
        expected = 1 / (len(among) * probabilities[drawn])
        torch.testing.assert_close(batch.weights.double(), expected, rtol=1e-6, atol=0)


def test_each_batch_is_scored_by_the_model_as_it_then_is() -> None:
    scored: list[int] = []
    sampler = a_sampler(lambda i: (scored.append(len(i)), skewed(i))[1], size=1149, batch_size=64, factor=3, tau=9.0)
    for number, _ in enumerate(sampler.batches(), 1):
        assert scored == [3 * 64] * number
    assert len(scored) == 18


def candidate_sets(size: int, candidates: int) -> Tensor:
    """(size^candidates, candidates): all of them, equally likely."""
    return torch.tensor(list(product(range(size), repeat=candidates)))


@pytest.mark.parametrize("share", [SMALLEST_SHARE, 0.5])
@pytest.mark.parametrize(
    "scores", [[1.0, 5.0, 0.1], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, math.nan, 1.0], [1.0, math.inf, 0.0]]
)
def test_a_candidate_is_drawn_as_often_as_its_weight_says_whatever_the_scores_are(
    scores: list[float], share: float
) -> None:
    """p_i w_i = 1/B for each of the B candidates of every set, so that the draws' weighted mean is the candidates'."""
    draws, sampler = 20_000, a_sampler(share=share)
    numbers = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    for of_set in torch.tensor(scores)[candidate_sets(3, 4)]:
        drawn, weights = sampler._draw(of_set, numbers)
        counts = torch.bincount(drawn, minlength=4)
        assert len(counts) == 4
        assert bool((counts > 0).all())
        probabilities = counts.double().index_select(0, drawn) / draws
        torch.testing.assert_close(probabilities, 1 / (4 * weights.double()), rtol=1e-6, atol=1.01 / draws)
        assert float(weights.max()) <= 1.000001 / share


def near_the_threshold(seed: int, tau: float) -> tuple[GradientNormSampler, Tensor]:
    """Twelve examples, one of which has most of the gradient; the scores are the values that are averaged."""
    values = torch.tensor([10.0] + 11 * [0.1])
    return a_sampler(lambda i: values[i], size=12, batch_size=4, factor=2, seed=seed, tau=tau), values


@pytest.mark.parametrize("tau", [1.1, 1.35])
def test_it_is_unbiased_where_it_turns_on_and_off(tau: float) -> None:
    """Each batch of two epochs agrees with the mean 0.925 within four standard errors of at most 0.035."""
    estimates, was_on = [], []
    for seed in range(2500):
        sampler, values = near_the_threshold(seed, tau)
        row = []
        for _ in range(2):
            was_on.append(sampler.is_on)
            for batch in sampler.batches():
                sampler.observe(batch, 0.5 * values[batch.indices].square())
                row.append((batch.weights * values[batch.indices]).mean())
        estimates.append(torch.stack(row))
    assert 0 < sum(was_on[1::2]) < 2500
    table = torch.stack(estimates)
    standard_errors = table.std(0) / math.sqrt(len(table))
    assert bool((standard_errors < 0.035).all())
    assert bool(((table.mean(0) - 0.925).abs() < 4 * standard_errors).all())


def test_an_epoch_that_begins_uniform_ends_uniform() -> None:
    """Also where τ has crossed the threshold since."""
    for seed in range(10):
        sampler, values = near_the_threshold(seed, 1.33)
        assert not sampler.is_on
        indices = torch.cat(train_an_epoch(sampler, lambda i, v=values: v[i]))
        assert sorted(indices.tolist()) == list(range(12))
        assert sampler.is_on


def a_regression() -> tuple[Tensor, Tensor]:
    """Rows of norm 1 and their residuals at the minimum of least squares, (5, 1): gradients r_i·a_i of mean 0."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, -0.6]], dtype=torch.float64)
    targets = torch.tensor([[4.0], [-4.0], [0.1], [-0.2], [0.15]], dtype=torch.float64)
    return rows, rows @ torch.linalg.lstsq(rows, targets).solution - targets


def exact_variance_ratio(gradients: Tensor, scores: Tensor, *, candidates: int, draws: int, share: float) -> float:
    """E‖g − ∇f‖² over all sets of candidates and all draws from each, over that of as many uniform draws."""
    n, mean = len(gradients), gradients.mean(0)
    variance = 0.0
    for among in candidate_sets(n, candidates):
        probabilities = (1 - share) * scores[among] / scores[among].sum() + share / candidates
        terms = gradients[among] / (candidates * probabilities.unsqueeze(1))
        outcomes = candidate_sets(candidates, draws)
        errors = (terms[outcomes].mean(1) - mean).square().sum(1)
        variance += float((probabilities[outcomes].prod(1) * errors).sum()) / n**candidates
    uniform = float((gradients - mean).square().sum(1).mean()) / draws
    return variance / uniform


@pytest.mark.parametrize("share", [SMALLEST_SHARE, 0.5])
def test_at_the_minimum_the_variance_ratio_is_exact(share: float) -> None:
    """The expectation of both moments, over all sets of four candidates for two draws, gives the ratio."""
    rows, residuals = a_regression()
    gradients = residuals * rows
    assert float(gradients.mean(0).norm()) < 1e-14
    scores = output_gradient_norms("regression", residuals, torch.zeros(5, dtype=torch.float64))
    exact = exact_variance_ratio(gradients, scores, candidates=4, draws=2, share=share)
    of_sets = scores[candidate_sets(5, 4)]
    moments = presampled_moments(of_sets, importance_probabilities(of_sets), share, 2)
    assert float(moments[0] / moments[1]) == pytest.approx(exact, rel=1e-12)
    assert abs(exact - 1) > 0.05


def test_an_epoch_estimates_that_ratio() -> None:
    rows, residuals = a_regression()
    scores = residuals.squeeze(1).abs()
    sampler = a_sampler(lambda i: scores[i % 5], size=8000, batch_size=2, factor=2, tau=9.0)
    train_an_epoch(sampler, lambda i: scores[i % 5])
    exact = exact_variance_ratio(residuals * rows, scores, candidates=4, draws=2, share=SMALLEST_SHARE)
    assert sampler.diagnostics()["variance_ratio"] == pytest.approx(exact, rel=0.02)


def test_scores_that_are_zero_or_not_finite_are_drawn_from_nevertheless() -> None:
    for bad in (0.0, math.nan, math.inf):
        sampler = a_sampler(lambda i, b=bad: torch.where(i % 2 == 0, b, 1.0), tau=100.0)
        for batch in sampler.batches():
            assert bool(torch.isfinite(batch.weights).all())
        assert all(math.isfinite(value) for value in sampler.diagnostics().values())
        assert math.isfinite(float(sampler.state_dict()["tau"]))


def test_a_candidate_of_score_zero_is_drawn_now_and_then_with_a_large_weight() -> None:
    """Half of the examples have the score 0, and so half of the smallest share of the draws: 40 of 80,000."""
    sampler = a_sampler(lambda i: (i % 2).float(), size=4000, batch_size=2000, factor=2, tau=1e6)
    drawn = [batch for _ in range(20) for batch in sampler.batches()]
    has_no_score = torch.cat([batch.indices for batch in drawn]) % 2 == 0
    weights = torch.cat([batch.weights for batch in drawn])[has_no_score]
    assert abs(len(weights) - 40) < 4 * math.sqrt(40)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / SMALLEST_SHARE), rtol=1e-6, atol=0)


def test_no_weight_exceeds_a_thousand() -> None:
    sampler = a_sampler(lambda i: (i == 3).float(), size=4000, batch_size=400, tau=1e6)
    largest = max(float(batch.weights.max()) for _ in range(5) for batch in sampler.batches())
    assert largest <= 1 / SMALLEST_SHARE * (1 + 1e-6)


def test_a_batch_of_one_is_drawn_from_several_candidates_too() -> None:
    values = 1.0 + torch.arange(5)
    sampler = a_sampler(lambda i: values[i], size=5, batch_size=1, tau=9.0)
    estimates = []
    for _ in range(2000):
        sampler.load_state_dict({**sampler.state_dict(), "tau": torch.tensor(9.0)})
        for batch in sampler.batches():
            assert len(batch.indices) == len(batch.weights) == 1
            estimates.append(float(batch.weights * values[batch.indices]))
    mean, deviation = torch.tensor(estimates).mean(), torch.tensor(estimates).std()
    assert abs(float(mean) - 3) < 4 * float(deviation) / math.sqrt(len(estimates))
    assert float(deviation) < 0.9  # 1.41 for uniform draws
