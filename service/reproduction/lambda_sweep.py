"""The figure over λ: full gradients on consistent least squares, where only λ leaves a neighbourhood."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from service.analysis import colours
from service.analysis.curves import CurveFigure, CurvePanel, first_below
from service.reproduction import ExperimentName
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.markdown import number, paragraph, table
from service.reproduction.synthetic import (
    ENDS_NOTE,
    X_LABEL,
    Y_LABEL,
    bound_curve,
    bound_sentence,
    bound_violations,
    curve,
    drawn,
    ending,
    known,
    shown,
    subtitle,
    synthetic_study,
)

NAME = ExperimentName.LAMBDA_SWEEP
TITLE = "λ from USAM to SAM, with full gradients"
LAMBDAS = tuple(tenth / 10 for tenth in range(11))
BOUNDED = (0.0, 0.5, 1.0)
"""The values of λ whose bound is drawn."""
LEVEL = 1e-6
PART = "sweep"


def experiment() -> Experiment:
    """The same at both scales: the published setting takes a minute on two cores."""
    study = synthetic_study(
        NAME,
        "Consistent least squares, full gradients, the step sizes of Theorem 3.2",
        train={
            "dataset": "ridge",
            "n_samples": 100,
            "n_features": 100,
            "condition_number": 10.0,
            "spectrum": "geometric",
            "targets": "consistent",
            "regulariser": 0.0,
            "batch_size": 100,
            "sampling": "uniform",
            "epochs": 10_000,
            "report_every_epochs": 20,
        },
        space={"lambda": LAMBDAS},
        seeds=1,
    )
    return Experiment(NAME, TITLE, ABOUT, {PART: study}, report, EXTENT)


def report(results: Mapping[str, StudyResults]) -> Report:
    """One curve for each λ, and where each ends."""
    sweep = results[PART]
    inks = dict(zip(LAMBDAS, colours.ordered(len(LAMBDAS)), strict=True))
    curves = {lam: curve(sweep, {"lambda": lam}, label=f"{lam:.1f}", colour=inks[lam]) for lam in LAMBDAS}
    bounds = [
        bound_curve(sweep, {"lambda": lam}, label=f"{lam:.1f}, bound", colour=inks[lam]) for lam in reversed(BOUNDED)
    ]
    figure = CurveFigure(
        title=TITLE,
        subtitle=subtitle("consistent least squares, n = d = 100, cond(A) = 10, full gradients", seeds=1),
        x_label=X_LABEL,
        y_label=Y_LABEL,
        panels=(CurvePanel("", known([*reversed(curves.values()), *bounds])),),
        legend_title="λ",
    )
    rows = []
    for lam, drawn_curve in curves.items():
        end, limit = ending(sweep, {"lambda": lam}), bound_curve(sweep, {"lambda": lam})
        below = first_below(drawn_curve, LEVEL) if drawn_curve else None
        rows.append(
            [
                f"{lam:.1f}",
                str(end) if end else "–",
                number(limit.mean[-1]) if limit else "–",
                f"{below:,.0f}" if below is not None else "never",
            ]
        )
    head = ["λ", "ends at", "bound at the end", "steps until it stays below 1e-6"]
    parts = [shown(NAME, TITLE), table(head, rows), f"{ENDS_NOTE}.", paragraph(_findings(sweep))]
    return Report("\n\n".join(parts), drawn(NAME, figure))


def _findings(sweep: StudyResults) -> str:
    found = {lam: ending(sweep, {"lambda": lam}) for lam in LAMBDAS}
    ends = {lam: end.mean for lam, end in found.items() if end}
    said = []
    if 0.0 in ends:
        said.append(f"λ = 0 (USAM) ends at a relative suboptimality of {number(ends[0.0])}.")
    above = [lam for lam in ends if lam > 0]
    if above:
        falls = [right for left, right in pairwise(above) if ends[right] <= ends[left]]
        trend = (
            "the more of the normalised step, the higher it ends, at every step of the sweep"
            if not falls
            else f"where it ends does not rise with λ at λ = {', '.join(f'{lam:.1f}' for lam in falls)}"
        )
        first, last = above[0], above[-1]
        said.append(f"From λ = {first:.1f} ({number(ends[first])}) to λ = {last:.1f} ({number(ends[last])}), {trend}.")
        said.append("These are single runs: a full gradient draws nothing, so there is no spread and nothing to test.")
    said.append(bound_sentence([bound_violations(sweep, {"lambda": lam}) for lam in LAMBDAS]))
    return " ".join(said)


EXTENT = "all 10,000 steps of the authors' notebook and its one run for each λ; nothing is left out"

ABOUT = """\
Unified SAM with full gradients on a least-squares problem that is solved exactly (n = d = 100, geometric singular
values with condition number 10, no regulariser, b = Ax* for some x*), for λ = 0, 0.1, …, 1 and 10,000 steps, with the
step sizes of Theorem 3.2 (ρ = ρ*/2 and the γ* that belongs to it). It is the setting of the authors' notebook, except
that f is divided by n here and that they take the simplified form of the step sizes.

What the paper says of it: without noise (C = 0) the neighbourhood of Theorem 3.2 is N = (L/μ) ρλ²(1 + 2γρL²). So λ = 0
goes to the minimum at a linear rate, and every λ above 0 stops short of it, the sooner the larger it is."""
