"""Watching a study from the command line: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live

from service.answers import StudyDetail
from service.cli import rendering, surface_rendering
from service.client import Client
from service.errors import InvalidSpecError
from service.spec import stored_objective, stored_space

POLL_S = 0.5
PLAIN_POLLS = 10
"""Where nothing can be redrawn, a line comes only with a new state, or after so many polls."""
PATIENCE_S = 60.0
"""How long a watcher waits for a service that is away, such as one that is being restarted."""


def watch_study(
    client: Client, study_id: str, console: Console, *, sleep: Callable[[float], None] = time.sleep
) -> StudyDetail:
    """Shows the study until it has ended, pauses included; answers with how it stands then.

    Raises what the client raises.
    """
    study = client.study(study_id)
    client.patience_s = PATIENCE_S
    watch = _watch_live if console.is_terminal else _watch_plainly
    study = watch(client, study, console, sleep)
    console.print(results_of(client, study, width=console.width))
    for part in rendering.study_end(study, api_url=client.url):
        console.print(part)
    return study


def results_of(client: Client, study: StudyDetail, *, width: int) -> RenderableType:
    """The study's λ × ρ table where its space has both and the table is of a size to be read, else its best ones."""
    objective = stored_objective(study.spec)
    try:
        parameters = stored_space(study.spec).parameters
    except InvalidSpecError:  # accepted by another version of the service
        pass
    else:
        axes = [parameters.get(name) for name in ("lambda", "rho")]
        if all(axis is not None and axis.size is not None for axis in axes):  # else nearly every cell is empty
            surface = client.surface(study.id)
            if surface_rendering.is_readable(surface):
                seeds = len(study.spec["replicates"]["seeds"])
                label = rendering.metric_label(objective)
                return surface_rendering.surface_tables(surface, label=label, seeds=seeds, width=width)
    results = client.configurations(study.id, order_by="objective", limit=rendering.SHOWN_CONFIGURATIONS + 1)
    return rendering.configurations_table(results, objective=objective, best=study.best)


def _watch_live(client: Client, study: StudyDetail, console: Console, sleep: Callable[[float], None]) -> StudyDetail:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not study.state.is_final:
            progress = rendering.progress_bar(study, now=datetime.now(UTC))
            live.update(Group(results_of(client, study, width=console.width), progress), refresh=True)
            sleep(POLL_S)
            study = client.study(study.id)
    console.print(rendering.progress_line(study, now=datetime.now(UTC)))
    return study


def _watch_plainly(client: Client, study: StudyDetail, console: Console, sleep: Callable[[float], None]) -> StudyDetail:
    shown: tuple[object, ...] = ()
    polls = 0
    while True:
        news = (study.state, study.waiting_reason, polls // PLAIN_POLLS)
        if news != shown:
            console.print(rendering.progress_line(study, now=datetime.now(UTC)), soft_wrap=True)
            shown = news
        polls += 1
        if study.state.is_final:
            return study
        sleep(POLL_S)
        study = client.study(study.id)
