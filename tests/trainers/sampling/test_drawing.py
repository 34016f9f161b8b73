from collections import Counter
from fractions import Fraction
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from trainers.sampling.drawing import (
    draw_subsets,
    draw_uniformly,
    draw_with_replacement,
    shuffle_rows,
    subsets_cost_less_together,
    uniform_numbers,
)

LARGEST = 1 - 2.0**-53


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_index_is_drawn_exactly_as_often_as_it_is_probable() -> None:
    """Over a grid of numbers that resolves the probabilities."""
    probabilities = float64(3, 0, 1, 8, 4) / 16
    drawn = draw_with_replacement(probabilities, torch.arange(64, dtype=torch.float64) / 64)
    assert torch.bincount(drawn, minlength=5).tolist() == [12, 0, 4, 32, 16]


def test_every_row_is_drawn_from_its_own_distribution() -> None:
    rows = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    numbers = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = draw_with_replacement(rows, numbers)
    for row, at, drawn in zip(rows, numbers, together, strict=True):
        assert torch.equal(draw_with_replacement(row, at), drawn)


def test_an_index_without_probability_is_not_drawn_even_at_the_ends() -> None:
    for probabilities in (float64(0, 1, 0), float64(0, 0.1, 0.2, 0.3, 0.4, 0)):
        drawn = draw_with_replacement(probabilities, float64(0, 2.0**-53, 0.1, 0.5, LARGEST))
        assert bool((probabilities[drawn] > 0).all())


@pytest.mark.parametrize("size", [1, 3, 10, 1000, 12_345])
def test_the_largest_number_draws_the_last_index_and_never_one_beyond(size: int) -> None:
    """Also where the sum is not 1 for rounding."""
    numbers = float64(0, LARGEST)
    assert draw_uniformly(size, numbers).tolist() == [0, size - 1]
    scores = torch.rand(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) + 0.1
    assert draw_with_replacement(scores / scores.sum(), numbers).tolist() == [0, size - 1]


def test_there_may_be_more_than_two_to_the_24_categories() -> None:
    size = 2**24 + 7
    probabilities = torch.full((size,), 1 / size, dtype=torch.float64)
    assert draw_with_replacement(probabilities, float64(0, 0.5, LARGEST)).tolist() == [0, size // 2, size - 1]


@pytest.mark.parametrize(("size", "count"), [(5, 1), (5, 2), (5, 3), (4, 4), (6, 2)])
def test_all_subsets_are_equally_likely(size: int, count: int) -> None:
    """Every outcome of the k-th draw, in the middle of its interval, with every outcome of the others."""
    middles = [[(i + 0.5) / bound for i in range(bound)] for bound in range(size - count + 1, size + 1)]
    outcomes = torch.tensor(list(product(*middles)), dtype=torch.float64).T
    subsets = [tuple(sorted(column)) for column in draw_subsets(size, outcomes).T.tolist()]
    assert all(len(set(subset)) == count for subset in subsets)
    shares = {subset: Fraction(times, len(subsets)) for subset, times in Counter(subsets).items()}
    number_of_subsets = len(list(permutations(range(size), count))) // len(list(permutations(range(count))))
    assert len(shares) == number_of_subsets
    assert set(shares.values()) == {Fraction(1, number_of_subsets)}


def test_a_shuffled_row_has_every_order_once_for_every_order_of_the_numbers() -> None:
    numbers = torch.tensor(list(permutations((0.1, 0.5, 0.7, 0.9))), dtype=torch.float64)
    rows = torch.tensor([4, 7, 1, 9]).expand(len(numbers), 4)
    shuffled = {tuple(row) for row in shuffle_rows(rows, numbers).tolist()}
    assert shuffled == set(permutations((4, 7, 1, 9)))


def test_numbers_depend_on_the_generator_alone() -> None:
    first = uniform_numbers(3, 2, generator=torch.Generator().manual_seed(4))
    torch.rand(5)
    assert torch.equal(uniform_numbers(3, 2, generator=torch.Generator().manual_seed(4)), first)
    assert first.dtype == torch.float64
    assert first.shape == (3, 2)


@pytest.mark.parametrize(
    ("size", "together", "one_by_one"),
    [(100, (1, 2), (10, 50)), (1149, (2, 8), (64, 512)), (45_000, (32, 128), (1024,))],
)
def test_subsets_are_drawn_together_where_they_are_small_against_the_whole(
    size: int, together: tuple[int, ...], one_by_one: tuple[int, ...]
) -> None:
    """Where either way was several times as fast when it was measured."""
    assert all(subsets_cost_less_together(size, count) for count in together)
    assert not any(subsets_cost_less_together(size, count) for count in one_by_one)
