"""The table of λ × ρ for deep networks, beside the one that the paper has published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.analysis.aggregation import Summary
from service.analysis.labelling import Unit, value_label
from service.analysis.standard_errors import in_standard_errors
from service.reproduction import ExperimentName, Scale
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.markdown import paragraph, table
from service.reproduction.published import LAMBDAS, RHOS, SEEDS, SGD_WRN_28_10_CIFAR10, SOURCE, WRN_28_10_CIFAR10
from service.spec import StudySpec, parse_spec
from service.study import Scalar

NAME = ExperimentName.LAMBDA_RHO
TITLE = "λ × ρ for deep networks"
GRID, SGD = "grid", "sgd"
METRIC = "test_accuracy"
CLEAR = 2.0
"""Standard errors beyond which differences are counted."""

Cell = tuple[float, Scalar]

_COMMON: dict[str, Scalar] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_schedule": "cosine",
    "batch_size": 128,
    "landscape": "none",
}
_TRAIN: dict[Scale, dict[str, Scalar]] = {
    Scale.SMALL: {
        "dataset": "fashion_mnist",
        "model": "small_cnn",
        "train_examples": 6_000,
        "epochs": 5,
        "lr": 0.02,
        "lr_warmup_epochs": 2,
        "report_every_epochs": 5,
    },
    Scale.PAPER: {
        "dataset": "cifar10",
        "model": "wrn_28_10",
        "epochs": 200,
        "lr": 0.1,
        "augmentation": "crop_flip",
        "precision": "bfloat16",
        "memory_format": "channels_last",
    },
}


def experiment(scale: Scale) -> Experiment:
    """The grid of λ × ρ, and a study of its own for SGD, which has neither."""
    rhos = {"type": "categorical", "choices": list(RHOS)}
    studies = {
        SGD: _study(scale, SGD, {"rho": {"type": "categorical", "choices": [0.0]}}),
        GRID: _study(scale, GRID, {"rho": rhos, "lambda": {"type": "categorical", "choices": list(LAMBDAS)}}),
    }
    is_published = scale is Scale.PAPER
    return Experiment(
        NAME if scale is Scale.SMALL else f"{NAME}-{scale}",
        TITLE,
        ABOUT_PAPER if is_published else ABOUT_SMALL,
        studies,
        lambda results: report(results, is_published_setting=is_published),
    )


def report(results: Mapping[str, StudyResults], *, is_published_setting: bool) -> Report:
    """The accuracies of both sides, each cell against its side's SGD and against the other side's cell."""
    ours = measured(results[GRID])
    sgd = _test_accuracy(results[SGD], {"rho": 0.0})
    return Report("\n\n".join(table_and_findings(ours, sgd, is_published_setting=is_published_setting)), {})


def measured(grid: StudyResults) -> dict[Cell, Summary]:
    """The test accuracies by (ρ, λ); cells of which no trial succeeded are left out."""
    found = {(rho, lam): _test_accuracy(grid, {"rho": rho, "lambda": lam}) for rho in RHOS for lam in LAMBDAS}
    return {cell: summary for cell, summary in found.items() if summary}


def table_and_findings(ours: Mapping[Cell, Summary], sgd: Summary | None, *, is_published_setting: bool) -> list[str]:
    """The parts of the report, in Markdown."""
    unit = Unit(100.0, 2, " (%)")
    head = ["ρ", "λ", "ours", "published", "ours − our SGD", "published − published SGD", "ours − published"]
    rows = [_row("0", "–", sgd, SGD_WRN_28_10_CIFAR10, unit, ["", "", _difference(sgd, SGD_WRN_28_10_CIFAR10, unit)])]
    for rho in RHOS:
        for lam in LAMBDAS:
            mine, theirs = ours.get((rho, lam)), WRN_28_10_CIFAR10[rho, lam]
            differences = [
                _difference(mine, sgd, unit),
                _difference(theirs, SGD_WRN_28_10_CIFAR10, unit),
                _difference(mine, theirs, unit),
            ]
            rows.append(_row(f"{rho:g}", value_label(lam), mine, theirs, unit, differences))
    parts = [
        table(head, rows, left=2),
        _READING,
        paragraph(f"Published: WRN-28-10 on CIFAR-10, {SOURCE}."),
    ]
    if sgd:
        parts.append(_against_sgd("Ours", ours, sgd, unit))
    parts.append(_against_sgd("Published", WRN_28_10_CIFAR10, SGD_WRN_28_10_CIFAR10, unit))
    if is_published_setting:
        parts.append(_against_published(ours))
    return parts


def _row(
    rho: str, lam: str, mine: Summary | None, theirs: Summary, unit: Unit, differences: Sequence[str]
) -> list[str]:
    return [rho, lam, unit.mean_and_std(mine) if mine else "–", unit.mean_and_std(theirs), *differences]


def _difference(a: Summary | None, b: Summary | None, unit: Unit) -> str:
    """Such as +0.35 (+5.2 SE), in the unit of the means."""
    if a is None or b is None:
        return "–"
    errors = in_standard_errors(a, b)
    shown = f"{(a.mean - b.mean) * unit.factor:+.{unit.decimals}f}"
    return (shown if errors is None else f"{shown} ({errors:+.1f} SE)").replace("-", "−")


def _against_sgd(side: str, cells: Mapping[Cell, Summary], sgd: Summary, unit: Unit) -> str:
    """How many cells lie above and below SGD, and which is the best."""
    if not cells:
        return f"{side}: no cell has a result."
    errors = [in_standard_errors(summary, sgd) for summary in cells.values()]
    clear = [error for error in errors if error is not None and abs(error) > CLEAR]
    above = sum(summary.mean > sgd.mean for summary in cells.values())
    (rho, lam), best = max(cells.items(), key=lambda item: item[1].mean)
    return paragraph(
        f"**{side}**: {above} of {len(cells)} cells lie above SGD; by more than {CLEAR:g} standard errors "
        f"{sum(error > 0 for error in clear)} lie above it and {sum(error < 0 for error in clear)} below. "
        f"The best mean is {unit.mean_and_std(best)} at ρ = {rho:g}, λ = {value_label(lam)}; "
        f"the best of {len(cells)} is partly luck."
    )


def _against_published(ours: Mapping[Cell, Summary]) -> str:
    errors = [in_standard_errors(summary, WRN_28_10_CIFAR10[cell]) for cell, summary in ours.items()]
    known = [error for error in errors if error is not None]
    within = sum(abs(error) <= CLEAR for error in known)
    return f"Against the published cells: {within} of {len(known)} lie within {CLEAR:g} standard errors."


def _test_accuracy(results: StudyResults, point: Mapping[str, Scalar]) -> Summary | None:
    found = results.configuration(point)
    return found.metrics.get(METRIC) if found else None


def _study(scale: Scale, part: str, space: Mapping[str, Any]) -> StudySpec:
    is_small = scale is Scale.SMALL
    raw: dict[str, Any] = {
        "name": f"{NAME} {scale} {part}",
        "description": "The paper's table of deep networks" + (", reduced to two CPU cores" if is_small else ""),
        "train": {**_COMMON, **_TRAIN[scale]},
        "search_space": dict(space),
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": list(range(SEEDS))},
        "resources_per_trial": {"cpu": 1} if is_small else {"cpu": 2, "gpu": 1},
        "checkpoint": {"every_epochs": 5 if is_small else 10, "keep": "none"},
    }
    return parse_spec(raw)


_READING = f"""\
Test accuracy in %, mean ± standard deviation over the seeds ({SEEDS} in the published table); the first row is SGD. In
brackets: the difference in standard errors, (a − b) / √(s_a²/n_a + s_b²/n_b). With {SEEDS} seeds on each side chance
alone makes more than {CLEAR:g} standard errors of it about once in nine comparisons (Student's t with 4 degrees of
freedom), and all comparisons of a side share its SGD."""

ABOUT_PAPER = f"""\
WRN-28-10 on CIFAR-10 for ρ ∈ {{0.1, 0.2, 0.3, 0.4}} × λ ∈ {{0, 0.5, 1, 1/t, 1−1/t}} and SGD (ρ = 0), {SEEDS} seeds
each. Stated by the authors: SGD with momentum 0.9 and weight decay 5e-4, {SEEDS} seeds. Not stated by them, and taken
from common practice: batches of 128, learning rate 0.1 falling along a cosine, 200 epochs, random crops after
reflect-padding by 4 pixels, horizontal flips. Different from theirs: 5,000 training images are held out for validation,
and the passes are computed in bfloat16. Every cell is shown; nothing was selected by the test set."""

ABOUT_SMALL = f"""\
The grid of the paper's table, ρ ∈ {{0.1, 0.2, 0.3, 0.4}} × λ ∈ {{0, 0.5, 1, 1/t, 1−1/t}} and SGD (ρ = 0), {SEEDS} seeds
each, **with another network on other data**: a small convolutional network that learns 6,000 images of Fashion-MNIST
for 5 epochs, so that all 63 trainings fit two CPU cores. The learning rate, 0.02, rises over the first 2 epochs:
without that, most radii threw the untrained network to chance, from where it did not come back. This shows that the
command and the grid work, and how the method behaves there. It does not reproduce the published numbers, which belong
to WRN-28-10 on CIFAR-10: what can be compared is each side with its own SGD; the last column is the difference between
two problems, and no measure of the reproduction. The radii ρ are the paper's, chosen for a network of 36.5 million
weights trained for long; this one has 20 thousand and takes 235 steps. For the published setting there is `--scale
paper`, which needs GPUs. Every cell is shown; nothing was selected by the test set."""
