"""λ_t and the learning rate as functions of the step: pure, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math


def lam_at(lam: float | str, t: int) -> float:
    """λ_t, in [0, 1] (arXiv 2503.02225, section 2).

    lam: a constant, or the schedule "1/t" (from SAM to USAM) or "1-1/t" (from USAM to SAM).
    t: the step, from 1.
    Raises ValueError for a step below 1 and for an unknown schedule.
    """
    if t < 1:
        raise ValueError(f"t must be at least 1, got {t}")
    if isinstance(lam, str):
        if lam == "1/t":
            return 1 / t
        if lam == "1-1/t":
            return 1 - 1 / t
        raise ValueError(f"lam must be a number in [0, 1], '1/t' or '1-1/t', got {lam!r}")
    return lam


def learning_rate_at(schedule: str, step: int, *, lr: float, total_steps: int) -> float:
    """Learning rate of a step.

    schedule: "constant", or "cosine", which falls from lr at step 0 towards 0 at step total_steps.
    step: from 0 to total_steps − 1.
    Raises ValueError for an unknown schedule.
    """
    if schedule == "constant":
        return lr
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    raise ValueError(f"schedule must be 'constant' or 'cosine', got {schedule!r}")
