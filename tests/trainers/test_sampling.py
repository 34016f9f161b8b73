import math

import pytest
import torch
from torch import Tensor, nn

from trainers.sampling import (
    GradientNormSampler,
    LipschitzSampler,
    MiniBatch,
    Sampler,
    UniformSampler,
    effective_sample_size,
    gradient_norm_scores,
    importance_probabilities,
    importance_weights,
    smoothness_constants,
    variance_gain,
)

N, B = 23, 5


def a_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed_scores(indices: Tensor) -> Tensor:
    return 1 + 20 * (indices % 7 == 6).float()


def switched_on(seed: int = 0) -> GradientNormSampler:
    sampler = GradientNormSampler(N, B, a_generator(seed), presample_factor=3, passes=2, score=skewed_scores)
    sampler.load_state_dict({**sampler.state_dict(), "tau": 100.0})
    return sampler


SAMPLERS = {
    "uniform": lambda: UniformSampler(N, B, a_generator()),
    "lipschitz": lambda: LipschitzSampler(skewed_scores(torch.arange(N)), B, a_generator()),
    "gradient_norm": switched_on,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_has_all_its_batches_and_the_last_is_smaller(name: str) -> None:
    batches = list(SAMPLERS[name]().batches())
    assert [len(batch.indices) for batch in batches] == [5, 5, 5, 5, 3]
    assert all(batch.weights.shape == batch.indices.shape for batch in batches)
    assert all(batch.weights.dtype == torch.float32 for batch in batches)


def test_uniform_sees_every_example_once_an_epoch_in_a_fresh_order() -> None:
    sampler = UniformSampler(N, B, a_generator())
    first, second = (torch.cat([batch.indices for batch in sampler.batches()]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(N))
    assert not torch.equal(first, second)


def test_importance_weights_make_the_expectation_the_mean_exactly() -> None:
    scores = skewed_scores(torch.arange(N)).double()
    values = torch.randn(N, generator=a_generator(), dtype=torch.float64)
    probabilities = importance_probabilities(scores)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    expectation = (probabilities * importance_weights(probabilities) * values).sum()
    assert float(expectation) == pytest.approx(float(values.mean()), abs=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_weighted_mean_over_batches_is_unbiased(name: str) -> None:
    """Averaged over 2,000 epochs, each of an epoch's batches agrees with the mean within four standard errors."""
    sampler: Sampler = SAMPLERS[name]()
    values = skewed_scores(torch.arange(N)) * (0.3 + 0.1 * torch.randn(N, generator=a_generator(1)))

    def estimate(batch: MiniBatch) -> float:
        return float((batch.weights * values[batch.indices]).mean())

    estimates = torch.tensor([[estimate(batch) for batch in sampler.batches()] for _ in range(2000)])
    standard_errors = estimates.std(0) / math.sqrt(len(estimates))
    assert bool((standard_errors < 0.05).all())
    assert bool(((estimates.mean(0) - values.mean()).abs() < 4 * standard_errors).all())


def test_leaving_the_weights_out_would_be_biased() -> None:
    sampler = LipschitzSampler(skewed_scores(torch.arange(N)), N, a_generator())
    values = (torch.arange(N) % 7 == 6).float()
    drawn = torch.cat([values[batch.indices] for _ in range(200) for batch in sampler.batches()])
    assert float(drawn.mean()) > 2 * float(values.mean())


def test_lipschitz_draws_in_proportion_to_the_constants() -> None:
    smoothness = torch.tensor([1.0, 2.0, 5.0])
    sampler = LipschitzSampler(smoothness, 1, a_generator())
    batches = [batch for _ in range(4000) for batch in sampler.batches()]
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]), minlength=3) / len(batches)
    torch.testing.assert_close(counts, smoothness / 8, rtol=0, atol=0.02)
    weight_of = {int(batch.indices): float(batch.weights) for batch in batches}
    assert weight_of == pytest.approx({0: 8 / 3, 1: 8 / 6, 2: 8 / 15})


def test_an_example_that_would_never_be_drawn_is_refused() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive and finite"):
            LipschitzSampler(torch.tensor([1.0, bad]), 1, a_generator())


def test_gradient_norm_is_uniform_until_the_scores_promise_enough() -> None:
    flat = GradientNormSampler(N, B, a_generator(), presample_factor=3, passes=2, score=lambda i: torch.ones(len(i)))
    uniform = UniformSampler(N, B, a_generator())
    for _ in range(5):
        for ours, theirs in zip(flat.batches(), uniform.batches(), strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.weights, theirs.weights)
        assert not flat.is_on

    peaked = GradientNormSampler(
        N, B, a_generator(), presample_factor=3, passes=2, score=lambda i: 0.01 + (i % 5 == 0).float()
    )
    assert not peaked.is_on
    weights = torch.cat([batch.weights for _ in range(5) for batch in peaked.batches()])
    assert peaked.is_on
    assert float(weights[:B].min()) == float(weights[:B].max()) == 1
    assert float(weights.min()) < 0.9


def near_the_threshold(seed: int, tau: float) -> tuple[GradientNormSampler, Tensor]:
    """Eight examples, one of which has most of the gradient; the scores are the values that are averaged."""
    values = torch.tensor([10.0] + 7 * [0.1])
    sampler = GradientNormSampler(8, 4, a_generator(seed), presample_factor=2, passes=2, score=lambda i: values[i])
    sampler.load_state_dict({**sampler.state_dict(), "tau": tau})
    return sampler, values


@pytest.mark.parametrize("tau", [1.3, 1.35])
def test_gradient_norm_is_unbiased_where_it_turns_on_and_off(tau: float) -> None:
    """Each batch of two epochs agrees with the mean 1.3375 within four standard errors of at most 0.04.

    Leaving a permutation after its first batch because of that batch's scores gives 1.96 for the second one.
    """
    estimates, was_on = [], []
    for seed in range(2500):
        sampler, values = near_the_threshold(seed, tau)
        row = []
        for _ in range(2):
            was_on.append(sampler.is_on)
            row += [float((batch.weights * values[batch.indices]).mean()) for batch in sampler.batches()]
        estimates.append(row)
    assert 0 < sum(was_on[1::2]) < 2500
    table = torch.tensor(estimates)
    standard_errors = table.std(0) / math.sqrt(len(table))
    assert bool((standard_errors < 0.04).all())
    assert bool(((table.mean(0) - 1.3375).abs() < 4 * standard_errors).all())


def test_an_epoch_that_begins_uniform_ends_uniform() -> None:
    """Also where τ crosses the threshold on the way."""
    crossed_early = 0
    for seed in range(10):
        sampler, _ = near_the_threshold(seed, 1.33)
        indices = []
        for batch in sampler.batches():
            crossed_early += sampler.is_on and not indices
            indices += batch.indices.tolist()
        assert sorted(indices) == list(range(8))
        assert sampler.is_on
    assert crossed_early > 0


@pytest.mark.parametrize(("passes", "threshold"), [(1, 2.0), (2, 1.5)])
def test_the_variance_must_fall_by_more_where_a_step_is_cheaper(passes: int, threshold: float) -> None:
    """1 + B/(3b) for one pass a step, 1 + B/(6b) for two."""
    sampler = GradientNormSampler(N, B, a_generator(), presample_factor=3, passes=passes, score=skewed_scores)
    for tau, expected in ((threshold - 1e-9, False), (threshold + 1e-9, True)):
        sampler.load_state_dict({**sampler.state_dict(), "tau": tau})
        assert sampler.is_on is expected


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [1.0, math.nan, 1.0], [1.0, math.inf, 1.0]])
def test_scores_without_a_finite_positive_sum_mean_uniform(scores: list[float]) -> None:
    probabilities = importance_probabilities(torch.tensor(scores))
    assert probabilities.tolist() == pytest.approx([1 / 3] * 3)
    assert float(variance_gain(probabilities)) == pytest.approx(1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_resumes_exactly(name: str) -> None:
    sampler, resumed = SAMPLERS[name](), SAMPLERS[name]()
    for _ in range(3):
        list(sampler.batches())
    resumed.load_state_dict(sampler.state_dict())
    for ours, theirs in zip(sampler.batches(), resumed.batches(), strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.weights, theirs.weights)


def test_the_effective_sample_size_lies_between_one_and_the_batch() -> None:
    assert float(effective_sample_size(torch.full((8,), 0.3))) == pytest.approx(8)
    assert float(effective_sample_size(torch.tensor([1e6, 1e-6, 1e-6]))) == pytest.approx(1)
    assert float(effective_sample_size(torch.tensor([1.0, 3.0]))) == pytest.approx(1.6)


def test_the_variance_gain_is_rms_over_mean_of_the_scores() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0])
    expected = math.sqrt(41 / 3) / 3
    assert float(variance_gain(importance_probabilities(scores))) == pytest.approx(expected)


def test_gradient_norm_scores_are_the_norms_of_the_gradient_at_the_logits() -> None:
    logits = torch.randn(6, 4, generator=a_generator(), requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, targets, reduction="sum"), logits)
    torch.testing.assert_close(gradient_norm_scores(logits.detach(), targets), gradient.norm(dim=1))


def largest_curvature(loss_of: object, x: Tensor) -> float:
    hessian = torch.autograd.functional.hessian(loss_of, x)  # type: ignore[arg-type]
    return float(torch.linalg.eigvalsh(hessian)[-1])


def test_least_squares_constants_are_the_largest_eigenvalue_of_each_hessian() -> None:
    inputs = torch.randn(4, 6, generator=a_generator(), dtype=torch.float64)
    constants = smoothness_constants(inputs, "regression", regulariser=0.03)
    for row, constant in zip(inputs, constants, strict=True):
        found = largest_curvature(lambda x, a=row: 0.5 * (a @ x - 1) ** 2 + 0.015 * (x @ x), torch.zeros(6).double())
        assert found == pytest.approx(float(constant), rel=1e-9)


def test_softmax_constants_bound_every_hessian_and_are_attained() -> None:
    inputs = torch.randn(4, 3, generator=a_generator(), dtype=torch.float64)
    constants = smoothness_constants(inputs, "classification")
    target = torch.tensor(0)
    for row, constant in zip(inputs, constants, strict=True):
        with_bias = torch.cat([row, torch.ones(1).double()])

        def loss(x: Tensor, a: Tensor = with_bias) -> Tensor:
            return nn.functional.cross_entropy(x.view(4, 4) @ a, target)

        for _ in range(10):
            assert largest_curvature(loss, torch.randn(16).double()) <= float(constant)
        # Two classes share the probability, the others have none: the worst case.
        worst = torch.outer(torch.tensor([1.0, 1.0, -1.0, -1.0]).double(), with_bias) * 20 / (with_bias @ with_bias)
        assert largest_curvature(loss, worst.flatten()) == pytest.approx(float(constant), rel=1e-6)
