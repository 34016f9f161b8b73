"""λ_t, ρ_t and the learning rate as functions of the step: pure, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from trainers.knob import plain, plain_number

KINDS = ("constant", "linear", "cosine", "1/t", "1-1/t", "decreasing")
LEARNING_RATE_SCHEDULES = ("constant", "cosine", "linear", "step", "decreasing")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A setting that changes from step to step, as `rho` or `lam` of a group of UnifiedSAM.

    kind: with s = `start`, e = `end` and u the share of the run that has passed: 0 up to the first step after the
        warm-up, and 1 from step `total_steps` on, or from the next step on where the warm-up leaves no more than one,

        - "constant": s
        - "linear": s + (e − s)·u
        - "cosine": e + (s − e)·(1 + cos πu)/2
        - "1/t": s/t, for λ from SAM to USAM (arXiv 2503.02225)
        - "1-1/t": s·(1 − 1/t), for λ from USAM to SAM (same source)
        - "decreasing": min(s, 1/(2t − 1)), the ρ_t of its Theorem 3.5, which counts from t = 0 as min(s, 1/(2t + 1)).
    start: at least 0. end: at least 0; "linear" and "cosine" need it, and no other kind takes it.
    total_steps: steps of the run, at least 1; likewise.
    warmup_steps: over the first so many steps W the value is multiplied by step/W, so that step W has it whole.
    steps_per_t: t is ⌈step/steps_per_t⌉: 1 counts steps, the steps of an epoch count epochs.

    Numbers may be of any kind, such as NumPy's; the fields hold Python's own. Raises ValueError for anything else.
    """

    kind: str
    start: float = 1.0
    end: float | None = None
    total_steps: int | None = None
    warmup_steps: int = 0
    steps_per_t: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        _check_number("start", self.start)
        check_count("warmup_steps", self.warmup_steps, 0)
        check_count("steps_per_t", self.steps_per_t, 1)
        if self.kind in ("linear", "cosine"):
            _check_number("end", self.end)
            check_count("total_steps", self.total_steps, 1)
        elif self.end is not None or self.total_steps is not None:
            raise ValueError(f"a {self.kind} schedule takes neither end nor total_steps, got {self!r}")
        for item in fields(self):
            value = getattr(self, item.name)
            object.__setattr__(self, item.name, None if value is None else plain(value))

    @property
    def largest(self) -> float:
        """A bound of every value."""
        return max(self.start, self.end or 0.0)

    def value_at(self, step: int) -> float:
        """The value at a step, from 1; see the class."""
        t = -(-step // self.steps_per_t)
        value = self.start
        if self.kind == "1/t":
            value = self.start / t
        elif self.kind == "1-1/t":
            value = self.start * (1 - 1 / t)
        elif self.kind == "decreasing":
            value = min(self.start, 1 / (2 * t - 1))
        elif self.end is not None and self.total_steps is not None:
            value = self._between(self.start, self.end, self.total_steps, step)
        return value if step >= self.warmup_steps else value * step / self.warmup_steps

    def _between(self, start: float, end: float, total_steps: int, step: int) -> float:
        passed = (step - 1 - self.warmup_steps) / max(1, total_steps - 1 - self.warmup_steps)
        passed = min(1.0, max(0.0, passed))
        left = 1 - passed if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * passed))
        return start * left + end * (1 - left)


Setting = float | str | Schedule
"""ρ or λ of a group: a number, a schedule, or for λ "1/t" and "1-1/t", short for the schedules with `start` 1."""


def value_at(setting: Setting, t: int) -> float:
    """The value of a setting at step t, from 1.

    Raises ValueError for a step below 1 and for a string other than "1/t" and "1-1/t".
    """
    if t < 1:
        raise ValueError(f"t must be at least 1, got {t}")
    if isinstance(setting, Schedule):
        return setting.value_at(t)
    if isinstance(setting, str):
        if setting == "1/t":
            return 1 / t
        if setting == "1-1/t":
            return 1 - 1 / t
        raise ValueError(f"a schedule must be '1/t', '1-1/t' or a Schedule, got {setting!r}")
    return setting


def check_rho(rho: object) -> None:
    """Raises ValueError, with the rule and the value, unless it is a finite number of at least 0 or a Schedule."""
    if not (isinstance(rho, Schedule) or is_finite_number(rho, low=0)):
        raise ValueError(f"rho must be a finite number of at least 0 or a Schedule, got {rho!r}")


def check_lam(lam: object) -> None:
    """Raises ValueError, with the rule and the value, unless it is a known string or a number or Schedule in [0, 1]."""
    is_known = lam in ("1/t", "1-1/t") if isinstance(lam, str) else is_finite_number(lam, low=0, high=1)
    if not (is_known or (isinstance(lam, Schedule) and lam.largest <= 1)):
        raise ValueError(f"lam must be a number in [0, 1], '1/t', '1-1/t' or a Schedule within [0, 1], got {lam!r}")


def check_count(name: str, value: object, low: int) -> None:
    """Raises ValueError, with the rule and the value, unless it is an integer of at least `low`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def to_plain(setting: Setting) -> float | str | dict[str, object]:
    """The setting as plain data, which torch.load(weights_only=True) and JSON read."""
    if isinstance(setting, Schedule):
        return asdict(setting)
    return plain(setting) if isinstance(setting, str) else float(setting)


def from_plain(data: float | str | Mapping[str, object]) -> Setting:
    """What `to_plain` was given. Raises ValueError, also for other fields than those of a schedule."""
    if not isinstance(data, Mapping):
        return data
    try:
        return Schedule(**data)  # type: ignore[arg-type]
    except TypeError as error:
        names = ", ".join(item.name for item in fields(Schedule))
        raise ValueError(f"the fields of a schedule are {names}, got {list(data)}") from error


def is_finite_number(value: Any, *, low: float, high: float = sys.float_info.max) -> bool:
    """Whether it is a real number in [low, high]; truth values are none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return low <= plain_number(value) <= high  # NumPy's would be compared in their own precision, which `high` exceeds


def learning_rate_at(
    schedule: str, step: int, *, lr: float, total_steps: int, warmup_steps: int = 0, mu: float | None = None
) -> float:
    """Learning rate of a step.

    schedule:

    - "constant"
    - "cosine", "linear": fall from lr at the first step after the warm-up towards 0 at step total_steps
    - "step": × 0.1 from 75 % of the steps on, and × 0.01 from 90 % on
    - "decreasing": γ_t = min(lr, (2t + 1)/((t + 1)²·mu)) with t = step (arXiv 2503.02225, Theorem 3.5)

    step: from 0 to total_steps − 1.
    warmup_steps: over the first so many steps W the rate is multiplied by (step + 1)/W.
    mu: the constant of the Polyak-Łojasiewicz condition, above 0, for "decreasing".
    Raises ValueError for an unknown schedule and for "decreasing" without mu.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    passed = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "constant":
        factor = 1.0
    elif schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * passed))
    elif schedule == "linear":
        factor = 1 - passed
    elif schedule == "step":
        factor = 0.01 if 10 * step >= 9 * total_steps else 0.1 if 4 * step >= 3 * total_steps else 1.0
    elif schedule == "decreasing":
        if mu is None or not mu > 0:
            raise ValueError(f"a decreasing learning rate needs mu above 0, got {mu!r}")
        return warmup * min(lr, (2 * step + 1) / ((step + 1) ** 2 * mu))
    else:
        raise ValueError(f"schedule must be one of {', '.join(LEARNING_RATE_SCHEDULES)}, got {schedule!r}")
    return warmup * lr * factor


def _check_number(name: str, value: object) -> None:
    if not is_finite_number(value, low=0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
