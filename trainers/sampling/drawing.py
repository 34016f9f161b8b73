"""Drawing indices: from any distribution, and subsets without replacement. Vectorised, and on the generator's device.

Every draw inverts a distribution at uniform float64 numbers, of 53 random bits, where `torch.randint` takes 32 bits
modulo n and `torch.multinomial` ends at 2²⁴ categories. Bisection takes 0.09 µs a draw from 50,000 on one core, as
`torch.multinomial` does; an alias table draws in a sixth of that, but is built one entry after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_numbers(*shape: int, generator: torch.Generator) -> Tensor:
    """Independent uniform numbers in [0, 1), float64."""
    return torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)


def draw_with_replacement(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Indices i with probability p_i, one for each of the uniform numbers; int64.

    probabilities: (n,), float64, and numbers (m,); or one distribution a row, (k, n), and (k, m) numbers. The sum need
    not be exactly 1. An index of probability 0 is never drawn.
    """
    return draw_by_cumulative(probabilities.cumsum(-1), numbers)


def draw_by_cumulative(cumulative: Tensor, numbers: Tensor) -> Tensor:
    """`draw_with_replacement` from the running sums of the probabilities, for many draws from the same ones."""
    return torch.searchsorted(cumulative, numbers * cumulative[..., -1:], right=True)


def draw_uniformly(size: int, numbers: Tensor) -> Tensor:
    """Indices in 0, …, size − 1, all with the same probability, one for each of the uniform numbers; int64."""
    return (numbers * size).long()


def draw_subsets(size: int, numbers: Tensor) -> Tensor:
    """Uniformly random subsets of 0, …, size − 1, one a column, all columns at once: (τ, subsets), int64.

    numbers: (τ, subsets), uniform in [0, 1). Floyd's algorithm: the k-th element is drawn from the first size − τ + k
    indices; where the subset has it already, it is the last of these. The order within a subset is not random.
    Work of τ²/2 comparisons a subset, in τ vectorised rounds. (Bentley and Floyd 1987, Communications of the ACM 30.)
    """
    count = len(numbers)
    bounds = torch.arange(size - count + 1, size + 1, device=numbers.device).unsqueeze(1)
    chosen = (numbers * bounds).long()
    for k in range(1, count):
        is_taken = (chosen[:k] == chosen[k]).any(0)
        chosen[k] = torch.where(is_taken, bounds[k] - 1, chosen[k])
    return chosen


def subsets_cost_less_together(size: int, count: int) -> bool:
    """Whether an epoch's subsets of `count` cost less by `draw_subsets` than by a permutation for each of them.

    From times of one core, in ns: a round of Floyd's algorithm takes 20,000, and 0.8 n more for its comparisons; a
    permutation 3,500 + 4.4 n. From n = 100 to 66,000 they choose right wherever it matters.
    """
    return count * (20_000 + 0.8 * size) < size / count * (3_500 + 4.4 * size)


def shuffle_rows(rows: Tensor, numbers: Tensor) -> Tensor:
    """Every row in a random order of its own. rows, numbers: (m, b), the numbers uniform in [0, 1)."""
    return rows.gather(1, numbers.argsort(1))
