"""The tables of `samstudy compare`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from service.analysis.labelling import point_label
from service.answers import StudyComparison, StudyDifference
from service.cli.rendering import in_its_unit, plain_table, scale_of, shown_interval, shown_summary

_VALUES = {
    "confirmed": "over the trials that confirm the best configurations on fresh seeds",
    "search": "over the trials of the search, by which the configurations were chosen",
}


def comparison_tables(comparison: StudyComparison) -> Iterator[RenderableType]:
    """The studies, each later one against the first, and how that was done."""
    yield _studies(comparison)
    yield _differences(comparison)
    tests = dict.fromkeys(row.test for row in comparison.differences if row.test)
    done = f"; {' and '.join(f'{test} tests' for test in tests)}, two-sided" if tests else ""
    values = f"{comparison.metric}, {comparison.at} epoch, {_VALUES[comparison.values]}"
    yield Text(f"{values}{done}{_correction(comparison)}", style="dim")


def _correction(comparison: StudyComparison) -> str:
    """For how many comparisons: those that were tested."""
    tested = sum(row.p_value is not None for row in comparison.differences)
    if not tested:
        return ""
    if tested == 1:
        return f"; {comparison.correction}'s correction for 1 comparison"
    return f"; {comparison.correction}'s correction of p for {tested} comparisons; the intervals are not corrected"


def _studies(comparison: StudyComparison) -> Table:
    """The best configuration of each; (2/3) where trials have no value."""
    metric = in_its_unit(comparison.metric)
    table = plain_table("study", "name", "best configuration", metric, "95 % interval", ids=["study"])
    for side in comparison.studies:
        point = "none yet" if side.configuration is None else point_label(side.configuration.configuration.point)
        table.add_row(
            side.study_id,
            side.name,
            point,
            shown_summary(side.summary, comparison.metric, of=len(side.by_seed) + len(side.missing_by_seed)),
            shown_interval(side.summary, comparison.metric),
        )
    return table


def _differences(comparison: StudyComparison) -> Table:
    """Each later study against the first."""
    table = plain_table(
        "difference", "", "95 % interval", "p", f"p ({comparison.correction})", "test", ids=["difference"]
    )
    scale = scale_of(comparison.metric)
    for row in comparison.differences:
        interval = "" if row.low is None or row.high is None else f"[{row.low * scale:+.3g}, {row.high * scale:+.3g}]"
        table.add_row(
            f"{row.a} − {row.b}",
            "" if row.difference is None else f"{row.difference * scale:+.3g}",
            interval,
            "" if row.p_value is None else f"{row.p_value:.2g}",
            "" if row.p_adjusted is None else f"{row.p_adjusted:.2g}",
            ", ".join(part for part in (_test(row), row.note) if part),
        )
    return table


def _test(row: StudyDifference) -> str:
    if row.test is None:
        return ""
    return f"{row.test}, n = {row.n}" if row.test == "paired t" else f"{row.test}, n = {row.n_a} and {row.n_b}"
