"""How far two means lie apart, in units of what chance would make of it."""

from __future__ import annotations

import math

from service.analysis.aggregation import Summary


def in_standard_errors(a: Summary, b: Summary) -> float | None:
    """The difference of the means a − b over its standard error √(std_a²/n_a + std_b²/n_b).

    None where a spread is unknown, as with one replicate, or where neither side has any.
    """
    if a.std is None or b.std is None:
        return None
    half_error = math.hypot(a.std / math.sqrt(a.n), b.std / math.sqrt(b.n)) / 2
    return (a.mean / 2 - b.mean / 2) / half_error if half_error > 0 else None  # a whole difference may be no float
