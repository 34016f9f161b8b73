"""The table of λ × ρ for deep networks, beside the one that the paper has published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.analysis.aggregation import Summary, summarise
from service.analysis.labelling import Unit, value_label
from service.analysis.standard_errors import in_standard_errors
from service.reproduction import ExperimentName, Scale
from service.reproduction.differences import TESTING_NOTE, Difference, Verdict, count, stand_ins
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.markdown import paragraph, table
from service.reproduction.published import LAMBDAS, RHOS, SEEDS, SGD_WRN_28_10_CIFAR10, SOURCE, WRN_28_10_CIFAR10
from service.spec import StudySpec, parse_spec
from service.study import Scalar

NAME = ExperimentName.LAMBDA_RHO
TITLE = "λ × ρ for deep networks"
GRID, SGD = "grid", "sgd"
METRIC = "test_accuracy"
Cell = tuple[float, Scalar]
BySeed = Mapping[int, float]

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
        "validation": "none",
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
        EXTENT_PAPER if is_published else EXTENT_SMALL,
    )


def report(results: Mapping[str, StudyResults], *, is_published_setting: bool) -> Report:
    """The accuracies of both sides, each cell against its side's SGD and against the other side's cell."""
    ours = measured(results[GRID])
    sgd = _test_accuracy(results[SGD], {"rho": 0.0})
    return Report("\n\n".join(table_and_findings(ours, sgd, is_published_setting=is_published_setting)), {})


def measured(grid: StudyResults) -> dict[Cell, BySeed]:
    """The test accuracies by (ρ, λ) and seed; cells of which no trial succeeded are left out."""
    found = {(rho, lam): _test_accuracy(grid, {"rho": rho, "lambda": lam}) for rho in RHOS for lam in LAMBDAS}
    return {cell: by_seed for cell, by_seed in found.items() if by_seed}


def table_and_findings(ours: Mapping[Cell, BySeed], sgd: BySeed, *, is_published_setting: bool) -> list[str]:
    """The parts of the report, in Markdown. sgd: empty where none of its trials succeeded."""
    unit = Unit(100.0, 2, " (%)")
    head = ["ρ", "λ", "ours", "published", "ours − our SGD", "published − published SGD", "ours − published"]
    cells = {cell: summarise(list(by_seed.values())) for cell, by_seed in ours.items()}
    our_sgd = summarise(list(sgd.values())) if sgd else None
    against_theirs = _difference(our_sgd, SGD_WRN_28_10_CIFAR10, unit)
    rows = [_row("0", "–", our_sgd, SGD_WRN_28_10_CIFAR10, unit, ["", "", against_theirs])]
    for (rho, lam), theirs in WRN_28_10_CIFAR10.items():
        mine = cells.get((rho, lam))
        differences = [
            _difference(mine, our_sgd, unit),
            _difference(theirs, SGD_WRN_28_10_CIFAR10, unit),
            _difference(mine, theirs, unit),
        ]
        rows.append(_row(f"{rho:g}", value_label(lam), mine, theirs, unit, differences))
    parts = [table(head, rows, left=2), _READING]
    if 0 in [summary.std for summary in (our_sgd, *cells.values()) if summary]:
        parts.append(_NO_SPREAD)
    parts.append(paragraph(f"Published: WRN-28-10 on CIFAR-10, {SOURCE}."))
    if sgd:
        parts.append(_against_sgd("Ours", "over the seeds", ours, sgd, unit))
    parts.append(_against_sgd("Published", "of its means and spreads", _PUBLISHED, _PUBLISHED_SGD, unit))
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
    if errors is None and a.std is not None and b.std is not None:
        shown += " (no spread)"
    return (shown if errors is None else f"{shown} ({errors:+.1f} SE)").replace("-", "−")


def _against_sgd(side: str, basis: str, cells: Mapping[Cell, BySeed], sgd: BySeed, unit: Unit) -> str:
    """How many cells a test puts above and below SGD, and which is the best."""
    if not cells:
        return f"{side}: no cell has a result."
    (rho, lam), best = max(
        ((cell, summarise(list(by_seed.values()))) for cell, by_seed in cells.items()), key=lambda item: item[1].mean
    )
    return paragraph(
        f"**{side}**: {_counted([Difference.between(by_seed, sgd) for by_seed in cells.values()], 'SGD', basis)} "
        f"The best mean is {unit.mean_and_std(best)} at ρ = {rho:g}, λ = {value_label(lam)}; "
        f"the best of {len(cells)} is partly luck."
    )


def _against_published(ours: Mapping[Cell, BySeed]) -> str:
    differences = [Difference.between(by_seed, _PUBLISHED[cell]) for cell, by_seed in ours.items()]
    return paragraph(f"**Ours against the published**: {_counted(differences, 'the published cell', 'of the two')}")


def _counted(differences: Sequence[Difference], other: str, basis: str) -> str:
    """How many of the cells lie where. basis: what the tests are of, in words."""
    tests = sorted({found.comparison.test for found in differences if found.comparison.test})
    above, below, unclear, untested = (
        count(differences, verdict)
        for verdict in (Verdict.ABOVE, Verdict.BELOW, Verdict.NOT_DISTINGUISHABLE, Verdict.UNTESTED)
    )
    if not tests:
        return f"none of {len(differences)} cells can be tested against {other}."
    without = f", and {untested} cannot be tested" if untested else ""
    return (
        f"by {' and '.join(tests)} tests {basis}, {above} of {len(differences)} cells lie above {other}, {below} below "
        f"it, {unclear} cannot be told from it{without}."
    )


def _test_accuracy(results: StudyResults, point: Mapping[str, Scalar]) -> BySeed:
    found = results.configuration(point)
    return results.last(found, METRIC) if found else {}


def _study(scale: Scale, part: str, space: Mapping[str, Any]) -> StudySpec:
    is_small = scale is Scale.SMALL
    raw: dict[str, Any] = {
        "name": f"{NAME} {scale} {part}",
        "description": "The paper's table of deep networks" + (", reduced to two CPU cores" if is_small else ""),
        "train": {**_COMMON, **_TRAIN[scale]},
        "search_space": dict(space),
        "objective": {"metric": "val_accuracy" if is_small else METRIC, "mode": "max"},
        "allow_test_objective": not is_small,
        "replicates": {"seeds": list(range(SEEDS))},
        "resources_per_trial": {"cpu": 1} if is_small else {"cpu": 2, "gpu": 1},
        "checkpoint": {"every_epochs": 5 if is_small else 10, "keep": "none"},
    }
    return parse_spec(raw)


_PUBLISHED_SGD = stand_ins(SGD_WRN_28_10_CIFAR10, first_seed=-SEEDS)
_PUBLISHED: dict[Cell, BySeed] = {
    cell: stand_ins(summary, first_seed=-2 * SEEDS) for cell, summary in WRN_28_10_CIFAR10.items()
}
"""Under seeds that neither we nor the published SGD have."""

_READING = paragraph(
    f"Test accuracy in %, mean ± standard deviation over the seeds ({SEEDS} in the published table); the first row is "
    "SGD. In brackets: the difference in standard errors, (a − b) / √(s_a²/n_a + s_b²/n_b). Standard errors are no "
    f"verdict with {SEEDS} seeds a side: beyond 2 of them lies about one comparison in nine by chance alone. What is "
    "called above or below here is so by a t test: paired over the seeds within our side, Welch's where only mean and "
    f"spread are published. {TESTING_NOTE} Of 20 such tests one finds a difference by chance alone, and all of a side "
    "share its SGD."
)

_NO_SPREAD = paragraph(
    "± 0.00: the same accuracy with every seed. A difference from such a cell has the standard error of the other side "
    "alone; where neither side varies it has none, and nothing is tested."
)

ABOUT_PAPER = f"""\
WRN-28-10 on CIFAR-10 for ρ ∈ {{0.1, 0.2, 0.3, 0.4}} × λ ∈ {{0, 0.5, 1, 1/t, 1−1/t}} and SGD (ρ = 0), {SEEDS} seeds
each. Stated by the authors: SGD with momentum 0.9 and weight decay 5e-4, {SEEDS} seeds. Not stated by them, and taken
from common practice: batches of 128, learning rate 0.1 falling along a cosine, 200 epochs, random crops after
reflect-padding by 4 pixels, horizontal flips. All 50,000 training images are learned from, none is held out for
validation. Different from theirs: the passes are computed in bfloat16. Every cell is shown; nothing was selected by the
test set."""

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

_OTHER_GRIDS = "the paper's other networks and data, PreActResNet-18 and CIFAR-100, are not run"
EXTENT_PAPER = (
    f"WRN-28-10 on CIFAR-10, all 20 cells and SGD, {SEEDS} seeds each, on all 50,000 training images; {_OTHER_GRIDS}"
)
EXTENT_SMALL = (
    f"all 20 cells and SGD, {SEEDS} seeds each, of small_cnn and 5 epochs of 6,000 images of Fashion-MNIST in place of "
    f"WRN-28-10 and 200 epochs of CIFAR-10; {_OTHER_GRIDS}"
)
