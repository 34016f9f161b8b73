"""The figure of two samplings: an index drawn uniformly, or in proportion to its smoothness constant."""

from __future__ import annotations

from collections.abc import Mapping

from service.analysis import colours
from service.analysis.curves import CurveFigure, CurvePanel, first_below
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

NAME = ExperimentName.IMPORTANCE
TITLE = "Uniform against importance sampling"
LAMBDAS = (0.0, 0.5, 1.0)
UNIFORM, IMPORTANCE = "uniform_with_replacement", "lipschitz"
PART = "samplings"
EPOCHS, REPORT_EVERY, SEEDS = 3_000, 20, 5

_LAST_COLUMN = "The last column: after how many steps importance sampling stays below what uniform sampling ends at."


def experiment() -> Experiment:
    """One study, with the steps and runs of the authors' notebook at both scales."""
    study = synthetic_study(
        NAME,
        "Ridge regression with an outlier, one index a step, uniform against importance sampling",
        train={
            "dataset": "ridge",
            "n_samples": 100,
            "n_features": 100,
            "condition_number": 10.0,
            "spectrum": "outlier",
            "targets": "independent",
            "regulariser": "auto",
            "batch_size": 1,
            "epochs": EPOCHS,
            "report_every_epochs": REPORT_EVERY,
        },
        space={"sampling": (UNIFORM, IMPORTANCE), "lambda": LAMBDAS},
        seeds=SEEDS,
    )
    about = ABOUT.format(steps=f"{100 * EPOCHS:,}", runs=SEEDS)
    return Experiment(NAME, TITLE, about, {PART: study}, report, extent(epochs=EPOCHS, seeds=SEEDS))


def report(results: Mapping[str, StudyResults]) -> Report:
    """One panel for each λ."""
    study = results[PART]
    blue, orange = colours.CATEGORIES[:2]
    panels = []
    for lam in LAMBDAS:
        curves = [
            curve(study, _at(lam, UNIFORM), label="uniform sampling", colour=blue, marker="circle"),
            curve(study, _at(lam, IMPORTANCE), label="importance sampling", colour=orange, marker="triangle"),
            bound_curve(study, _at(lam, UNIFORM), label=f"{BOUND_LABEL}, uniform", colour=blue),
            bound_curve(study, _at(lam, IMPORTANCE), label=f"{BOUND_LABEL}, importance", colour=orange),
        ]
        panels.append(CurvePanel(lambda_label(lam), known(curves)))
    seeds = len(study.spec().replicates.seeds)
    figure = CurveFigure(
        title=TITLE,
        subtitle=subtitle(
            "ridge, n = d = 100, singular values 1, 10 and 98 in [1, 2], regulariser 3/n, one index a step", seeds=seeds
        ),
        x_label=X_LABEL,
        y_label=Y_LABEL,
        panels=tuple(panels),
    )
    head = ["λ", "uniform ends at", "importance ends at", "uniform ÷ importance", "steps until importance is there"]
    rows = []
    for lam in LAMBDAS:
        ends = [ending(study, _at(lam, sampling)) for sampling in (UNIFORM, IMPORTANCE)]
        drawn_curve = curve(study, _at(lam, IMPORTANCE))
        ratio = there = "–"
        if ends[0] and ends[1] and drawn_curve:
            ratio = number(ends[0].mean / ends[1].mean)
            place = first_below(drawn_curve, ends[0].mean)
            there = f"{place:,.0f} of {drawn_curve.x[-1]:,.0f}" if place is not None else "never"
        rows.append([f"{lam:.1f}", *(str(end) if end else "–" for end in ends), ratio, there])
    parts = [
        shown(NAME, TITLE),
        table(head, rows),
        paragraph(f"{RUNS_NOTE} {_LAST_COLUMN}"),
        *_findings(study),
    ]
    return Report("\n\n".join(parts), drawn(NAME, figure))


def _findings(study: StudyResults) -> list[str]:
    differences = {}
    for lam in LAMBDAS:
        uniform, importance = (ending(study, _at(lam, sampling)) for sampling in (UNIFORM, IMPORTANCE))
        if uniform and importance:
            differences[lambda_label(lam)] = Difference.between(importance.by_seed, uniform.by_seed)
    pairs = [(lam, sampling) for lam in LAMBDAS for sampling in (UNIFORM, IMPORTANCE)]
    bounds = bound_sentence([bound_violations(study, _at(lam, sampling)) for lam, sampling in pairs])
    told = findings("Importance sampling ends", "uniform sampling", "importance − uniform", differences)
    return [told, paragraph(bounds)]


def _at(lam: float, sampling: str) -> dict[str, Scalar]:
    return {"lambda": lam, "sampling": sampling}


ABOUT = """\
Unified SAM on ridge regression with one large singular value (n = d = 100, singular values 1, 10 and 98 from U[1, 2],
b standard normal, regulariser 3/n), one index a step, for λ = 0, 0.5 and 1: {runs} runs of {steps} steps each, with the
constant steps of Theorem 3.2 (ρ = ρ*/2 and the γ* that belongs to it). An index is drawn uniformly, or with
p_i = L_i/ΣL_j and the weight 1/(n p_i). The problem is that of the authors' notebook, which takes the simplified form
of the step sizes.

The authors' published code draws with p_i as well, but leaves out the weight, so that it minimises Σ p_i f_i instead of
f. Here the gradient is unbiased.

What the paper says of it: importance sampling replaces L_max by L_avg in the theorem's constants. That allows larger
steps, and so fewer of them, where L_max ≫ L_avg."""
