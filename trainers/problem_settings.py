"""What a synthetic problem is asked to be: plain values that check themselves, without importing torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

KINDS = ("ridge", "logistic")
SPECTRA = ("outlier", "geometric")
TARGETS = ("independent", "consistent")

MAX_CONDITION_NUMBER = 1e6
"""A's, so that the Hessian's, its square, stays well within float64."""

MIN_LOGISTIC_REGULARISER = 1e-8
"""Without one, logistic regression of separable rows has no minimum; below this, float64 does not find it."""

SIZES = {"ridge": (100, 100), "logistic": (200, 10)}
"""n_samples and n_features of a kind where they are "auto"; its regulariser is then 3/n, or 1/n for logistic."""

_REGULARISER_TIMES_N = {"ridge": 3.0, "logistic": 1.0}


@dataclass(frozen=True, slots=True)
class ProblemSettings:
    """One synthetic problem, the same whenever it is built; `ProblemSettings.of` fills in the defaults of a kind.

    kind: "ridge", ½(aᵀx − b)² + (r/2)‖x‖², or "logistic", log(1 + exp(−b aᵀx)) + (r/2)‖x‖² with b = ±1.
    n_samples, n_features: shape of A, whose rows are the a_i; integers of at least 2 and at least 1.
    condition_number: κ, of A, in [1, 10⁶]; 1 where A has a single column.
    spectrum: A's singular values: "outlier" has 1, κ and the others from U[1, 2] (U[1, κ] where κ < 2); "geometric"
    has them spread evenly on a logarithmic scale from κ^−½ to κ^½, as the published experiments (a) and (b).
    targets: "independent" draws b from the standard normal distribution, or its sign; "consistent" takes b = A x̂ for
    one drawn x̂, or its signs, so that ridge without a regulariser interpolates.
    regulariser: r, at least 0; at least 10⁻⁸ for logistic.
    Raises ValueError, with the rule and the value, for any other value.
    """

    kind: str
    n_samples: int
    n_features: int
    condition_number: float
    spectrum: str
    targets: str
    regulariser: float

    def __post_init__(self) -> None:
        _require_choice("kind", self.kind, KINDS)
        _require_choice("spectrum", self.spectrum, SPECTRA)
        _require_choice("targets", self.targets, TARGETS)
        _require_size("n_samples", self.n_samples, 2)
        _require_size("n_features", self.n_features, 1)
        if not 1 <= self.condition_number <= MAX_CONDITION_NUMBER:
            raise ValueError(
                f"condition_number must lie in [1, {MAX_CONDITION_NUMBER:g}], got {self.condition_number!r}"
            )
        if self.n_features == 1 and self.condition_number != 1:
            raise ValueError(f"condition_number must be 1 where n_features is 1, got {self.condition_number!r}")
        least = MIN_LOGISTIC_REGULARISER if self.kind == "logistic" else 0
        if not (least <= self.regulariser and math.isfinite(self.regulariser)):
            raise ValueError(
                f"regulariser must be at least {least:g} and finite for {self.kind}, got {self.regulariser!r}"
            )

    @classmethod
    def of(
        cls,
        kind: str,
        *,
        n_samples: int | str = "auto",
        n_features: int | str = "auto",
        condition_number: float = 10.0,
        spectrum: str = "outlier",
        targets: str = "independent",
        regulariser: float | str = "auto",
    ) -> ProblemSettings:
        """The settings with "auto" replaced by the paper's sizes: ridge 100 × 100, r = 3/n; logistic 200 × 10, r = 1/n.

        Raises ValueError as the class does, and for any string but "auto" in place of a number.
        """
        _require_choice("kind", kind, KINDS)
        default_rows, default_columns = SIZES[kind]
        rows = _chosen("n_samples", n_samples, default_rows)
        columns = _chosen("n_features", n_features, default_columns)
        _require_size("n_samples", rows, 2)
        _require_size("n_features", columns, 1)
        strength = _chosen("regulariser", regulariser, _REGULARISER_TIMES_N[kind] / rows)
        return cls(kind, int(rows), int(columns), condition_number, spectrum, targets, strength)

    @property
    def interpolates(self) -> bool:
        """Whether one x minimises every f_i at once, with the value 0."""
        return (
            self.kind == "ridge"
            and self.regulariser == 0
            and (self.targets == "consistent" or self.n_samples <= self.n_features)
        )


def _chosen(name: str, value: float | str, default: float) -> float:
    if value == "auto":
        return default
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number or 'auto', got {value!r}")
    return value


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _require_size(name: str, value: float, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
