import math
from collections import Counter

import pytest
import torch

from trainers.sampling import MiniBatch, NiceSampler, Sampler, UniformSampler, UniformWithReplacementSampler
from trainers.sampling.drawing import subsets_cost_less_together

N = 23


def a_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def indices_of(sampler: Sampler) -> list[list[int]]:
    return [batch.indices.tolist() for batch in sampler.batches()]


def all_indices_of(sampler: Sampler) -> list[int]:
    return [index for batch in indices_of(sampler) for index in batch]


def test_uniform_sees_every_example_once_an_epoch_in_a_fresh_order() -> None:
    sampler = UniformSampler(N, 5, a_generator())
    first, second = (all_indices_of(sampler) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


@pytest.mark.parametrize("make", [UniformSampler, UniformWithReplacementSampler, NiceSampler])
def test_all_weights_are_one(make: type[UniformSampler]) -> None:
    batches: list[MiniBatch] = list(make(N, 5, a_generator()).batches())
    assert all(bool((batch.weights == 1).all()) for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9, 10, 17, 22, N])
def test_a_nice_batch_never_has_an_example_twice(batch_size: int) -> None:
    """On both sides of where the subsets are drawn in another way."""
    sampler = NiceSampler(N, batch_size, a_generator())
    for _ in range(20):
        assert all(len(set(batch)) == len(batch) for batch in indices_of(sampler))


def test_an_epoch_of_nice_batches_that_are_drawn_together_ends_with_the_remainder() -> None:
    assert subsets_cost_less_together(1000, 12)
    batches = indices_of(NiceSampler(1000, 12, a_generator()))
    assert [len(batch) for batch in batches] == [12] * 83 + [4]
    assert all(len(set(batch)) == len(batch) and set(batch) <= set(range(1000)) for batch in batches)


def test_nice_batches_are_independent_of_each_other() -> None:
    """In an epoch of five batches of two out of ten, a permutation has every example once; here some are missing."""
    sampler = NiceSampler(10, 2, a_generator())
    epochs = [all_indices_of(sampler) for _ in range(2000)]
    assert sum(len(set(epoch)) for epoch in epochs) / 2000 == pytest.approx(10 * (1 - 0.8**5), abs=0.1)


@pytest.mark.parametrize(("size", "batch_size"), [(6, 2), (6, 5)])
def test_a_nice_batch_is_every_ordered_subset_alike(size: int, batch_size: int) -> None:
    """Within five standard deviations; the order counts where a batch is split into micro-batches."""
    sampler = NiceSampler(size, batch_size, a_generator())
    counts = Counter(tuple(batch) for _ in range(8000) for batch in indices_of(sampler) if len(batch) == batch_size)
    orders, total = math.perm(size, batch_size), sum(counts.values())
    assert len(counts) == orders
    deviation = math.sqrt(total / orders)
    assert all(abs(count - total / orders) < 5 * deviation for count in counts.values())


def test_draws_with_replacement_are_independent_and_alike() -> None:
    sampler = UniformWithReplacementSampler(4, 2, a_generator())
    pairs = Counter(tuple(batch) for _ in range(4000) for batch in indices_of(sampler))
    assert len(pairs) == 16
    assert all(abs(count - 500) < 5 * math.sqrt(500) for count in pairs.values())


def test_the_mean_effective_sample_size_is_the_mean_batch() -> None:
    sampler = UniformSampler(N, 5, a_generator())
    assert sampler.diagnostics()["effective_sample_size"] == pytest.approx(23 / 5)
