"""The figure of two step-size rules: constant steps stop at a neighbourhood, decreasing ones go on to the minimum."""

from __future__ import annotations

from collections.abc import Mapping

from service.analysis import colours
from service.analysis.curves import CurveFigure, CurvePanel
from service.reproduction import ExperimentName
from service.reproduction.differences import Difference, findings
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.markdown import number, paragraph, table
from service.reproduction.synthetic import (
    BOUND_LABEL,
    RUNS_NOTE,
    X_LABEL,
    Y_LABEL,
    bound_curve,
    bound_sentence,
    bound_violations,
    curve,
    drawn,
    ending,
    extent,
    known,
    lambda_label,
    shown,
    subtitle,
    synthetic_study,
)
from service.study import Scalar

NAME = ExperimentName.CONSTANT_VS_DECREASING
TITLE = "Constant against decreasing steps"
LAMBDAS = (0.0, 0.5, 1.0)
CONSTANT, DECREASING = "constant", "decreasing"
EPOCHS, REPORT_EVERY, SEEDS = 10_000, 50, 5


def experiment() -> Experiment:
    """Two studies that differ in both schedules, with the steps and runs of the authors' notebook at both scales."""
    fixed: dict[str, Scalar] = {
        "dataset": "ridge",
        "n_samples": 100,
        "n_features": 100,
        "condition_number": 10.0,
        "spectrum": "geometric",
        "targets": "consistent",
        "regulariser": "auto",
        "batch_size": 1,
        "sampling": "uniform_with_replacement",
        "epochs": EPOCHS,
        "report_every_epochs": REPORT_EVERY,
    }
    schedules = {
        CONSTANT: ("constant", "the constant steps of Theorem 3.2"),
        DECREASING: ("decreasing", "the decreasing steps of Theorem 3.5"),
    }
    studies = {
        part: synthetic_study(
            f"{NAME} {part}",
            f"Ridge regression, one index a step, {steps}",
            train={**fixed, "lr_schedule": schedule, "rho_schedule": schedule},
            space={"lambda": LAMBDAS},
            seeds=SEEDS,
        )
        for part, (schedule, steps) in schedules.items()
    }
    about = ABOUT.format(steps=f"{100 * EPOCHS:,}", runs=SEEDS)
    return Experiment(NAME, TITLE, about, studies, report, extent(epochs=EPOCHS, seeds=SEEDS))


def report(results: Mapping[str, StudyResults]) -> Report:
    """One panel for each λ."""
    constant, decreasing = results[CONSTANT], results[DECREASING]
    blue, orange = colours.CATEGORIES[:2]
    panels = [
        CurvePanel(
            lambda_label(lam),
            known(
                [
                    curve(constant, {"lambda": lam}, label="constant steps", colour=blue, marker="circle"),
                    curve(decreasing, {"lambda": lam}, label="decreasing steps", colour=orange, marker="triangle"),
                    bound_curve(constant, {"lambda": lam}, label=f"{BOUND_LABEL}, constant", colour=blue),
                    bound_curve(decreasing, {"lambda": lam}, label="bound step by step, decreasing", colour=orange),
                ]
            ),
        )
        for lam in LAMBDAS
    ]
    seeds = len(constant.spec().replicates.seeds)
    figure = CurveFigure(
        title=TITLE,
        subtitle=subtitle(
            "ridge, n = d = 100, cond(A) = 10, regulariser 3/n, one index a step",
            seeds=seeds,
            bounds=f"{BOUND_LABEL}, for decreasing steps step by step",
        ),
        x_label=X_LABEL,
        y_label=Y_LABEL,
        panels=tuple(panels),
    )
    head = ["λ", "constant steps end at", "decreasing steps end at", "constant ÷ decreasing"]
    rows = []
    for lam in LAMBDAS:
        ends = ending(constant, {"lambda": lam}), ending(decreasing, {"lambda": lam})
        ratio = number(ends[0].mean / ends[1].mean) if ends[0] and ends[1] and ends[1].mean > 0 else "–"
        rows.append([f"{lam:.1f}", *(str(end) if end else "–" for end in ends), ratio])
    parts = [shown(NAME, TITLE), table(head, rows), paragraph(RUNS_NOTE), *_findings(constant, decreasing)]
    return Report("\n\n".join(parts), drawn(NAME, figure))


def _findings(constant: StudyResults, decreasing: StudyResults) -> list[str]:
    differences = {}
    for lam in LAMBDAS:
        plateau, end = ending(constant, {"lambda": lam}), ending(decreasing, {"lambda": lam})
        if plateau and end:
            differences[lambda_label(lam)] = Difference.between(end.by_seed, plateau.by_seed)
    bounds = [
        bound_sentence(
            [bound_violations(constant, {"lambda": lam}) for lam in LAMBDAS], runs="runs with constant steps"
        ),
        bound_sentence(
            [bound_violations(decreasing, {"lambda": lam}) for lam in LAMBDAS],
            runs="runs with decreasing steps",
            bound="theirs (that of the theorem for one step, (1 − γ_t μ) δ + γ_t μ N_t, taken step by step)",
        ),
    ]
    told = findings("Decreasing steps end", "constant ones", "decreasing − constant", differences)
    return [told, paragraph(" ".join(bounds))]


ABOUT = """\
Unified SAM on ridge regression (n = d = 100, geometric singular values with condition number 10, b = Ax* for some x*,
regulariser 3/n), one index a step, drawn uniformly with replacement, for λ = 0, 0.5 and 1: {runs} runs of {steps} steps
each. Once with the constant steps of Theorem 3.2 (ρ = ρ*/2 and the γ* that belongs to it), once with the decreasing
steps of Theorem 3.5, ρ_t = min(ρ, 1/(2t+1)) and γ_t = min(γ*, (2t+1)/((t+1)²μ)). The problem is that of the authors'
notebook, which takes the simplified form of the step sizes.

What the paper says of it: constant steps converge at a linear rate to a neighbourhood of the minimum and stay there,
decreasing ones converge to the minimum itself, at the rate O(1/t), and so end lower once there are steps enough."""
