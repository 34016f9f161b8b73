"""Whether two sides of an experiment differ: the t tests of `service.analysis.comparison`, in words and numbers.

A side is its runs' values by seed. Only what a test at 95 % calls a difference is called one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from service.analysis.aggregation import Summary, summarise
from service.analysis.comparison import Comparison, compare
from service.reproduction.markdown import listed, number, paragraph, signed

TESTING_NOTE = "Each difference is tested by itself, two-sided, at 95 %."


class Verdict(Enum):
    """What the test says of a − b. UNTESTED: too few runs for one, or runs that do not vary."""

    BELOW = auto()
    ABOVE = auto()
    NOT_DISTINGUISHABLE = auto()
    UNTESTED = auto()


@dataclass(frozen=True, slots=True)
class Difference:
    """a − b. standard_error: of the difference, as the test has it; None where there is no test."""

    comparison: Comparison
    standard_error: float | None

    @classmethod
    def between(cls, a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
        """Paired over the seeds that both have, else by Welch's test."""
        comparison = compare(a, b)
        return cls(comparison, None if comparison.test is None else _standard_error(a, b, comparison))

    @property
    def verdict(self) -> Verdict:
        """BELOW and ABOVE: the 95 % interval of the difference leaves out 0."""
        low, high = self.comparison.low, self.comparison.high
        if low is None or high is None:
            return Verdict.UNTESTED
        if low <= 0 <= high:
            return Verdict.NOT_DISTINGUISHABLE
        return Verdict.BELOW if high < 0 else Verdict.ABOVE

    def __str__(self) -> str:
        """Such as −1.8e-5, standard error 1.0e-5 (−1.8 of them), paired t, n = 3, p = 0.21."""
        compared = self.comparison
        if compared.difference is None:
            return "unknown"
        shown = signed(compared.difference)
        if self.standard_error is None:
            return f"{shown}, without a test: {compared.note}"
        errors = f"{compared.difference / self.standard_error:+.1f}".replace("-", "−")
        n = f"n = {compared.n}" if compared.test == "paired t" else f"n = {compared.n_a} and {compared.n_b}"
        p = "" if compared.p_value is None else f", p = {number(compared.p_value)}"
        return f"{shown}, standard error {number(self.standard_error)} ({errors} of them), {compared.test}, {n}{p}"


def verdicts(subject: str, other: str, differences: Mapping[str, Difference]) -> str:
    """Sentences on where the subject's values are below and above the other's, by label.

    subject, other: such as `Decreasing steps end` and `constant ones`.
    """
    places: dict[Verdict, list[str]] = {verdict: [] for verdict in Verdict}
    for label, difference in differences.items():
        places[difference.verdict].append(label)
    said = [
        f"{subject} {where} {other} at {listed(places[verdict])}."
        for verdict, where in ((Verdict.BELOW, "below"), (Verdict.ABOVE, "above"))
        if places[verdict]
    ]
    if unclear := places[Verdict.NOT_DISTINGUISHABLE]:
        said.append(f"The two are not distinguishable at {listed(unclear)}.")
    if untested := places[Verdict.UNTESTED]:
        said.append(f"Nothing could be tested at {listed(untested)}.")
    return " ".join([*said, TESTING_NOTE])


def numbered(what: str, differences: Mapping[str, Difference]) -> str:
    """A list of the differences with their tests. what: is subtracted from what, such as `decreasing − constant`."""
    return "\n".join(f"- {label}: {what} = {difference}" for label, difference in differences.items())


def findings(subject: str, other: str, what: str, differences: Mapping[str, Difference]) -> str:
    """The sentences of `verdicts`, and under them the numbers that they rest on."""
    return f"{paragraph(verdicts(subject, other, differences))}\n\n{numbered(what, differences)}"


def stand_ins(summary: Summary, *, first_seed: int) -> dict[int, float]:
    """Values with exactly this mean, standard deviation and number, for a side of which no more is published.

    Welch's test asks for nothing else of a sample. first_seed: of consecutive ones that no other side has, so that
    nothing is paired. Raises ValueError where there is no standard deviation.
    """
    if summary.std is None:
        raise ValueError("values without a standard deviation cannot stand in for a sample")
    distance = summary.std * math.sqrt((summary.n - 1) / 2)
    values = [summary.mean - distance, summary.mean + distance, *[summary.mean] * (summary.n - 2)]
    return dict(enumerate(values, first_seed))


def count(differences: Sequence[Difference], verdict: Verdict) -> int:
    """How many have this verdict."""
    return sum(difference.verdict is verdict for difference in differences)


def _standard_error(a: Mapping[int, float], b: Mapping[int, float], comparison: Comparison) -> float:
    """Of a paired test: that of the mean of the differences; of Welch's: √(std_a²/n_a + std_b²/n_b)."""
    if comparison.test == "paired t":
        sides = [summarise([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])]
    else:
        sides = [summarise(list(side.values())) for side in (a, b)]
    return math.sqrt(math.fsum((side.std or 0.0) ** 2 / side.n for side in sides))
