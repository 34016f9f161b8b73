import math
from itertools import product

import pytest
import torch

from trainers.sampling import LossSampler, MiniBatch
from trainers.sampling.drawing import draw_with_replacement, uniform_numbers

VALUES = torch.tensor([3.0, -1.0, 0.2], dtype=torch.float64)


def a_sampler(size: int = 3, batch_size: int = 2, share: float = 0.2, seed: int = 0) -> LossSampler:
    generator = torch.Generator().manual_seed(seed)
    return LossSampler(size, batch_size, generator, task="classification", uniform_share=share)


def observe(sampler: LossSampler, indices: tuple[int, ...], losses: list[float]) -> None:
    sampler.observe(MiniBatch(torch.tensor(indices), torch.ones(len(indices))), torch.tensor(losses))


def test_the_probabilities_are_the_mixture_of_the_last_seen_losses() -> None:
    sampler = a_sampler()
    assert sampler.probabilities.tolist() == pytest.approx([1 / 3] * 3)
    observe(sampler, (0, 1), [3.0, 1.0])
    observe(sampler, (2,), [4.0])
    expected = [0.8 * score / 8 + 0.2 / 3 for score in (3, 1, 4)]
    assert sampler.probabilities.tolist() == pytest.approx(expected)
    observe(sampler, (0,), [0.0])
    assert sampler.probabilities.tolist() == pytest.approx([0.8 * score / 5 + 0.2 / 3 for score in (0, 1, 4)])


def test_an_example_not_seen_counts_as_the_mean_of_those_that_were() -> None:
    sampler = a_sampler()
    observe(sampler, (0, 1), [3.0, 1.0])
    assert sampler.probabilities.tolist() == pytest.approx([0.8 * score / 6 + 0.2 / 3 for score in (3, 1, 2)])


def test_of_an_example_seen_twice_the_later_loss_counts() -> None:
    """In one batch or in two, and where the last one is not finite the one before."""
    sampler = a_sampler()
    observe(sampler, (0, 1, 2, 1), [1.0, 3.0, 2.0, 5.0])
    assert sampler.probabilities.tolist() == pytest.approx([0.8 * score / 8 + 0.2 / 3 for score in (1, 5, 2)])
    observe(sampler, (0, 1), [9.0, 4.0])
    observe(sampler, (2, 0, 1), [8.0, 2.0, float("nan")])
    assert sampler.probabilities.tolist() == pytest.approx([0.8 * score / 14 + 0.2 / 3 for score in (2, 4, 8)])


def test_losses_that_no_draw_has_used_yet_are_in_the_state() -> None:
    sampler, resumed = a_sampler(), a_sampler(seed=9)
    observe(sampler, (0, 1), [3.0, 1.0])
    observe(resumed, (0, 1, 2), [7.0, 7.0, 7.0])
    resumed.load_state_dict(sampler.state_dict())
    assert torch.equal(resumed.probabilities, sampler.probabilities)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_leaves_the_score_before(bad: float) -> None:
    sampler = a_sampler()
    observe(sampler, (0, 1, 2), [1.0, bad, 2.0])
    observe(sampler, (0, 2), [bad, 6.0])
    assert sampler.probabilities.tolist() == pytest.approx([0.8 * score / 10.5 + 0.2 / 3 for score in (1, 3.5, 6)])


def test_losses_that_are_all_zero_mean_uniform() -> None:
    sampler = a_sampler()
    observe(sampler, (0, 1, 2), [0.0, 0.0, 0.0])
    assert sampler.probabilities.tolist() == pytest.approx([1 / 3] * 3)


def test_stale_scores_stay_unbiased() -> None:
    """Over all outcomes of two batches, exactly: the second one's probabilities depend on what the first one drew."""
    outcomes = list(product(range(3), repeat=2))
    first, second, likelihoods = 0.0, 0.0, 0.0
    for drawn in outcomes:
        sampler = a_sampler()
        p = sampler.probabilities
        likelihood = float(p[list(drawn)].prod())
        first += likelihood * float((VALUES / (3 * p))[list(drawn)].mean())
        observe(sampler, drawn, [10.0 ** (1 - i) for i in drawn])
        q = sampler.probabilities
        for then in outcomes:
            joint = likelihood * float(q[list(then)].prod())
            likelihoods += joint
            second += joint * float((VALUES / (3 * q))[list(then)].mean())
    assert likelihoods == pytest.approx(1, abs=1e-12)
    assert first == pytest.approx(float(VALUES.mean()), abs=1e-12)
    assert second == pytest.approx(float(VALUES.mean()), abs=1e-12)


def test_batches_are_drawn_by_the_probabilities_of_the_time_with_the_weights_of_the_definition() -> None:
    """320 batches an epoch, so that p is computed anew after every 32nd, and the same in between."""
    sampler = a_sampler(size=959, batch_size=3)
    twin = torch.Generator().manual_seed(0)
    for step, batch in enumerate(sampler.batches()):
        if step % 32 == 0:
            probabilities = sampler.probabilities
            size = min(96, 959 - 3 * step)
            expected = draw_with_replacement(probabilities, uniform_numbers(size, generator=twin)).split(3)
        assert torch.equal(batch.indices, expected[step % 32])
        torch.testing.assert_close(batch.weights.double(), 1 / (959 * probabilities[batch.indices]), rtol=1e-6, atol=0)
        sampler.observe(batch, batch.indices.float() * step)
    assert step == 319
    assert not torch.allclose(probabilities, sampler.probabilities)


@pytest.mark.parametrize(
    ("steps", "refreshes"), [(1, 1), (18, 1), (63, 1), (64, 2), (100, 3), (352, 11), (512, 16), (3520, 16)]
)
def test_p_is_computed_up_to_16_times_an_epoch_and_once_in_32_steps_at_most(steps: int, refreshes: int) -> None:
    class Counted(LossSampler):
        count = 0

        @property
        def probabilities(self) -> torch.Tensor:
            self.count += 1
            return super().probabilities

    sampler = Counted(2 * steps, 2, torch.Generator(), task="classification", uniform_share=0.5)
    for batch in sampler.batches():
        sampler.observe(batch, batch.weights)
    assert sampler.count == refreshes


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_no_weight_exceeds_one_over_alpha(share: float) -> None:
    sampler = a_sampler(size=50, batch_size=5, share=share)
    for _ in range(5):
        for batch in sampler.batches():
            sampler.observe(batch, (batch.indices == 7).float())
            assert float(batch.weights.max()) <= (1 + 1e-6) / share


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_alpha_must_be_above_zero(share: float) -> None:
    with pytest.raises(ValueError, match=r"uniform_share must lie in \(0, 1\]"):
        a_sampler(share=share)


def test_alpha_must_leave_every_example_a_probability_that_draws_resolve() -> None:
    with pytest.raises(ValueError, match="at least 2e-12 for loss sampling of 2 examples"):
        a_sampler(size=2, batch_size=1, share=1e-17)
    sampler = a_sampler(size=2, batch_size=1, share=2e-12)
    for batch in sampler.batches():
        sampler.observe(batch, torch.tensor([1.0]) * (batch.indices == 0))
    assert float(sampler.probabilities.min()) >= 1e-12


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="scores must be of 3 examples"):
        a_sampler().load_state_dict(a_sampler(size=4).state_dict())


def test_the_variance_falls_where_the_losses_tell_the_gradients() -> None:
    """A tenth of the examples have a hundred times the loss: for α = 0.1 the exact ratio of second moments is known."""
    sampler = a_sampler(size=10_000, batch_size=50, share=0.1)
    losses = torch.where(torch.arange(10_000) % 10 == 0, 0.4, 0.004).double()
    for _ in range(8):
        for batch in sampler.batches():
            sampler.observe(batch, losses[batch.indices])
    probabilities = 0.9 * losses / losses.sum() + 0.1 / 10_000
    squared_norms = torch.expm1(-losses).square()
    exact = (squared_norms / probabilities).sum() / 10_000**2 / squared_norms.mean()
    assert float(exact) < 0.2
    assert sampler.diagnostics()["variance_ratio"] == pytest.approx(float(exact), rel=0.02)
