"""How far two means lie apart, in units of what chance would make of it."""

from __future__ import annotations

import math

from service.analysis.aggregation import Summary


def in_standard_errors(a: Summary, b: Summary) -> float | None:
    """The difference of the means a − b over its standard error √(std_a²/n_a + std_b²/n_b).

    None where one replicate leaves a spread unknown, or where neither side has any.
    """
    if a.std is None or b.std is None:
        return None
    standard_error = math.sqrt(a.std**2 / a.n + b.std**2 / b.n)
    return (a.mean - b.mean) / standard_error if standard_error > 0 else None
