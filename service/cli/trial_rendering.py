"""Trials and importances as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from service.analysis.labelling import symbol, value_label
from service.answers import Importances, TrialOverview
from service.cli.rendering import metric_label, plain_table, shown_number
from service.spec import Objective
from service.study import Purpose, TrialState

_STYLES = {TrialState.SUCCEEDED: "green", TrialState.FAILED: "red", TrialState.RUNNING: "cyan"}
_BAR_WIDTH = 30
_MOST_NAMED = 3
"""Of the trials of which the same is said."""


def trials_table(trials: Sequence[TrialOverview], *, objective: Objective) -> Iterator[RenderableType]:
    """Trials, one a line, what confirms is marked; below them what is to be said of some, each thing once.

    Their attempts are shown where one has had more than one.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.point))
    attempts = ["attempts"] if any(trial.attempt > 1 for trial in trials) else []
    symbols = [symbol(name) for name in names]
    epochs = "trained" if "epochs" in names else "epochs"
    columns = ("trial", *symbols, "seed", "state", *attempts, epochs, metric_label(objective))
    table = plain_table(*columns, ids=["trial", *symbols, "state"])
    said: defaultdict[str, list[str]] = defaultdict(list)
    for trial in trials:
        if words := trial.pending_reason or trial.note or _last_line(trial.error):
            said[words].append(trial.id)
        table.add_row(
            trial.id,
            *(value_label(trial.point[name]) if name in trial.point else "" for name in names),
            f"{trial.seed}{' (confirms)' * (trial.purpose is Purpose.CONFIRM)}",
            Text(trial.state, style=_STYLES.get(trial.state, "")),
            *([str(trial.attempt)] if attempts else []),
            str(trial.epochs_done),
            "" if trial.objective is None else shown_number(trial.objective, objective.metric),
        )
    yield table
    for words, ids in said.items():
        others = f" and {len(ids) - _MOST_NAMED} more" if len(ids) > _MOST_NAMED else ""
        yield Text.assemble((f"{', '.join(ids[:_MOST_NAMED])}{others}: ", "bold"), words)


def importances_table(found: Importances) -> Iterator[RenderableType]:
    """A bar for each parameter, and what they were told from."""
    table = plain_table("parameter", "importance", "")
    for one in found.importances:
        name = symbol(one.parameter)
        table.add_row(name, f"{one.importance:.2f}", "█" * round(_BAR_WIDTH * one.importance))
    yield table
    left_out = f"; says nothing of {', '.join(found.left_out)}" if found.left_out else ""
    yield Text(f"{found.metric}, {found.method} over {found.n} complete configurations{left_out}", style="dim")


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else ""
