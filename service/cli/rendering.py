"""What the command line shows, as rich renderables: pure functions of what the API answered.

Everything stays legible without colour: the best is marked ★, and states are words.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence, Set
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from service.analysis.aggregation import ConfigurationResult, Summary
from service.analysis.labelling import lost_confirmation, missing_seeds, point_label, symbol, value_label
from service.answers import StudyDetail, StudyOverview
from service.spec import Objective, stored_objective
from service.study import StudyState, TrialState
from trainers.metrics import is_accuracy

_PLAIN_WIDTH = 120
SHOWN_CONFIGURATIONS = 10
BEST = "★"
_SHOWN_BESIDE = {"test_accuracy", "test_loss"}
"""What is said of the best configuration beside the objective: the search did not see it."""

_STYLES = {
    StudyState.SUCCEEDED: "green",
    StudyState.FAILED: "red",
    StudyState.CANCELLED: "yellow",
    StudyState.RUNNING: "cyan",
    StudyState.PAUSED: "yellow",
}


def console() -> Console:
    """The standard output; wide enough for a table where it is not a terminal, unless COLUMNS says otherwise."""
    environment = dict(os.environ)
    if not environment.get("COLUMNS", "").strip("0"):  # a width of 0 is one that nobody knows
        environment.pop("COLUMNS", None)
    width = None if sys.stdout.isatty() or "COLUMNS" in environment else _PLAIN_WIDTH
    return _PlainConsole(width=width, highlight=False, markup=False, emoji=False, _environ=environment)


class _PlainConsole(Console):
    """Shows what users and trainings have written as it is: no text is markup, none commands the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else "".join(map(_visible, segment.text))
            yield segment._replace(text=shown)


def _visible(character: str) -> str:
    is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return "\N{REPLACEMENT CHARACTER}" if is_control else character


def studies_table(studies: Sequence[StudyOverview]) -> Table:
    """Studies, one a line; with their owners where they have several."""
    owners = len({study.owner for study in studies}) > 1
    table = plain_table(
        "id", "name", *["owner"] * owners, "state", "trials done", "created", "labels", ids=["id", "state"]
    )
    for study in studies:
        done = sum(count for state, count in study.trial_counts.items() if state.is_final)
        table.add_row(
            study.id,
            study.name,
            *[study.owner] * owners,
            _state(study, archived=study.archived_at is not None),
            f"{done}/{'?' if study.trials_planned is None else study.trials_planned}",
            shown_time(study.created_at),
            " ".join(f"{key}:{value}" for key, value in study.labels.items()),
        )
    return table


def study_facts(study: StudyDetail, *, api_url: str) -> Iterator[RenderableType]:
    """The study in a few lines, without its results."""
    yield Text.assemble((f"{study.id}  {study.name}", "bold"), "  ", _state(study))
    if study.description:
        yield Text(study.description)
    yield progress_line(study, now=datetime.now(study.created_at.tzinfo))
    yield from _waiting(study)
    yield from _troubles(study)
    yield from best_facts(study)
    yield from _addresses(study, api_url)


def study_end(study: StudyDetail, *, api_url: str) -> Iterator[RenderableType]:
    """What there is to say once the study has ended, below its results."""
    yield from best_facts(study)
    yield Text.assemble(f"study {study.id} ended: ", _state(study))
    yield from _troubles(study)
    yield from _addresses(study, api_url)


def progress_bar(study: StudyDetail, *, now: datetime) -> RenderableType:
    """A bar over the planned trials and the numbers beside it."""
    done, planned = study.progress.trials_done, study.progress.trials_planned
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=24)
    grid.add_column()
    grid.add_row(ProgressBar(total=planned or max(done, 1), completed=done), progress_line(study, now=now))
    return grid


def progress_line(study: StudyDetail, *, now: datetime) -> Text:
    """State, trials done of those planned, running, failed and stopped ones, and how long it has had a driver."""
    counts, progress = study.trial_counts, study.progress
    stopped = counts.get(TrialState.EARLY_STOPPED, 0)
    planned = "" if progress.trials_planned is None else f"/{progress.trials_planned}"
    spent_s = study.elapsed_s + ((now - study.running_since).total_seconds() if study.running_since else 0.0)
    parts = [
        f"{progress.trials_done}{planned} trials done",
        f"{counts.get(TrialState.RUNNING, 0)} running",
        f"{counts.get(TrialState.FAILED, 0)} failed",
        *([f"{stopped} stopped early"] if stopped else []),
        _duration(spent_s),
    ]
    line = Text.assemble(_state(study), "  ", ", ".join(parts))
    if study.state is StudyState.STOPPING and study.waiting_reason:
        line.append(f"  ({study.waiting_reason})")
    elif study.waiting_reason and not counts.get(TrialState.RUNNING):
        line.append(f"  (waits: {study.waiting_reason})")
    return line


def configurations_table(
    results: Sequence[ConfigurationResult], *, objective: Objective, best: ConfigurationResult | None
) -> RenderableType:
    """The first of the results, which come best first by the mean of the search. best: the one to be marked."""
    known = [result for result in results if result.objective]
    shown = known[:SHOWN_CONFIGURATIONS]
    are_confirmed = any(result.confirmed or lost_confirmation(result) for result in shown)
    if not shown:
        return Text("no results yet")
    names = list(dict.fromkeys(name for result in shown for name in result.configuration.point))
    confirmed = ["confirmed"] if are_confirmed else []
    symbols = [symbol(name) for name in names]
    table = plain_table("#", *symbols, metric_label(objective), "95 % interval", *confirmed, "")
    for result in shown:
        is_best = best is not None and result.configuration.id == best.configuration.id
        point = result.configuration.point
        table.add_row(
            str(result.configuration.number),
            *(value_label(point[name]) if name in point else "" for name in names),
            shown_summary(result.objective, objective.metric),
            shown_interval(result.objective, objective.metric),
            *([_confirmed(result, objective.metric)] if are_confirmed else []),
            BEST if is_best else "" if result.complete else "incomplete",
            style="bold green" if is_best else None,
        )
    if len(known) == len(shown):  # others may have been stopped early, and have no result
        return table
    return Group(table, Text(f"the best {len(shown)}; `samstudy export` has all", style="dim"))


def shown_summary(summary: Summary | None, metric: str, *, of: int = 0) -> str:
    """`97.2 ± 0.3 (3)`: accuracies in percent, everything else with four digits; (2/3) where it lacks one of three."""
    if summary is None:
        return ""
    return f"{shown_mean(summary, metric)} ({summary.n}{f'/{of}' if of > summary.n else ''})"


def shown_time(at: datetime | None, *, seconds: bool = False) -> str:
    """A time on this machine's clock; nothing where there is none."""
    return "" if at is None else f"{at.astimezone():{'%Y-%m-%d %H:%M:%S' if seconds else '%Y-%m-%d %H:%M'}}"


def shown_interval(summary: Summary | None, metric: str) -> str:
    """The 95 % interval; nothing where one replicate leaves it unknown."""
    if summary is None or summary.low is None or summary.high is None:
        return ""
    return f"[{shown_number(summary.low, metric)}, {shown_number(summary.high, metric)}]"


def shown_mean(summary: Summary, metric: str) -> str:
    """`97.2 ± 0.3`, as `shown_summary` without the count."""
    mean = shown_number(summary.mean, metric)
    if summary.std is None:
        return mean
    return f"{mean} ± {summary.std * 100:.1f}" if is_accuracy(metric) else f"{mean} ± {summary.std:.2g}"


def shown_number(value: float, metric: str) -> str:
    """A value of the metric: accuracies in percent, everything else with four digits."""
    return f"{value * 100:.1f}" if is_accuracy(metric) else f"{value:.4g}"


def scale_of(metric: str) -> float:
    """By what a value is multiplied to be shown: accuracies are shown in percent."""
    return 100.0 if is_accuracy(metric) else 1.0


def metric_label(objective: Objective) -> str:
    """The objective's metric with its unit, and with its epoch where that is not the last."""
    return in_its_unit(objective.metric) + (", best epoch" if objective.at == "best" else "")


def in_its_unit(metric: str) -> str:
    """The metric's name with the unit in which it is shown."""
    return f"{metric} in %" if is_accuracy(metric) else metric


def best_facts(study: StudyDetail) -> Iterator[RenderableType]:
    """Its best configuration and what that was worth; nothing where there is none."""
    if study.best is not None:
        objective = stored_objective(study.spec)
        best = study.best
        number, point = best.configuration.number, point_label(best.configuration.point)
        yield Text.assemble(("best: ", "bold"), f"configuration {number}, {point}")
        label, metric, lost = metric_label(objective), objective.metric, lost_confirmation(best)
        if best.confirmed is not None:
            shown = _with_interval(best.confirmed, metric, of=best.confirming_trials)
            yield Text(f"      {label}: {shown}, on fresh seeds{_how_honest(study, best)}")
        searched = " in the search" if best.confirmed or lost else ""
        of = len(best.by_seed) + len(best.missing_by_seed)
        yield Text(f"      {label}{searched}: {_with_interval(best.objective, metric, of=of)}")
        if missing := missing_seeds(best.missing_by_seed):
            yield Text(f"      {missing}", style="yellow")
        if lost:
            yield Text(f"      confirmation: {lost}", style="yellow")
        at = ", last epoch" if objective.at == "best" else ""
        yield from _beside(best, _SHOWN_BESIDE - {metric}, at=at, searched=searched)


def _how_honest(study: StudyDetail, best: ConfigurationResult) -> str:
    """What the mean on fresh seeds is worth: of several that are confirmed, these have chosen the best one.

    They may be fewer than top_k, or one alone: the search may have found no more, or their trials may have failed.
    """
    confirm = study.spec.get("confirm") or {}
    if confirm.get("top_k", 1) > 1:
        return ": the best of those confirmed by these, so a little too good where they are several"
    return ": the honest number" if best.confirmed and best.confirmed.n == best.confirming_trials else ""


def _beside(best: ConfigurationResult, metrics: Set[str], *, at: str, searched: str) -> Iterator[RenderableType]:
    """These metrics, over the fresh seeds where they are known.

    at: what is said of their epoch. searched: what is said of those of the search.
    """
    for metric in sorted(metrics & (best.metrics.keys() | best.confirmed_metrics.keys())):
        label = in_its_unit(metric) + at
        confirmed = best.confirmed_metrics.get(metric)
        if confirmed is not None:
            shown = shown_summary(confirmed, metric, of=best.confirming_trials)
            yield Text(f"      {label}: {shown}, on fresh seeds")
        else:
            yield Text(f"      {label}{searched}: {shown_summary(best.metrics[metric], metric)}")


def _confirmed(result: ConfigurationResult, metric: str) -> str:
    """The mean on fresh seeds, or that there is none because their trials failed."""
    if result.confirmed is None:
        return lost_confirmation(result) or ""
    return shown_summary(result.confirmed, metric, of=result.confirming_trials)


def _with_interval(summary: Summary | None, metric: str, *, of: int = 0) -> str:
    interval = shown_interval(summary, metric) or "unknown with one value"
    return f"{shown_summary(summary, metric, of=of)}, 95 % interval {interval}"


def _waiting(study: StudyDetail) -> Iterator[RenderableType]:
    """Its share, and why its trials wait, where they do."""
    if study.slots is not None:
        yield Text(f"share: {study.slots} trial{'s' * (study.slots != 1)} at a time")
    if study.pending_reason:
        yield Text(f"its trials wait: {study.pending_reason}")
    if study.state is StudyState.PAUSED:
        yield Text(f"`samstudy resume {study.id}` lets it go on")


def _troubles(study: StudyDetail) -> Iterator[RenderableType]:
    if study.reason:
        yield Text(f"reason: {study.reason}")
    if study.error:
        yield Text(f"error: {study.error}", style="red")


def _addresses(study: StudyDetail, api_url: str) -> Iterator[RenderableType]:
    yield Text(f"API:    {api_url}/api/v1/studies/{study.id}")
    if study.mlflow_url:
        yield Text(f"MLflow: {study.mlflow_url}")


def _state(study: StudyOverview, *, archived: bool = False) -> Text:
    return Text(f"{study.state}{' (archived)' * archived}", style=_STYLES.get(study.state, ""))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plain_table(*columns: str, ids: Collection[str] = ()) -> Table:
    """An empty table in the style of all of them: nothing in it is cut off.

    ids: the columns of which each cell is on one line, so that it can be copied; the others make room.
    """
    table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ids, overflow="fold")
    return table
