"""Commands about what a study has found: trials, the best one, export, checkpoint, importances."""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.studies import Json, StudyArgument, client
from service.errors import NotEnoughResultsError
from service.study import TrialState

if TYPE_CHECKING:
    from service.answers import StudyDetail, TrialOverview
    from service.client import Client


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (trials, best, surface, export, checkpoint, importances):
        app.command()(command)


def trials(
    study_id: StudyArgument,
    state: Annotated[
        list[TrialState] | None, typer.Option(case_sensitive=False, help="Only these; can be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List the trials of a study: how they went, and why those that wait do."""
    from service.cli import rendering, trial_rendering
    from service.spec import stored_objective

    with client() as service:
        study = service.study(study_id)
        found = service.trials(study_id, states=state or (), limit=limit)
    if as_json:
        typer.echo(json.dumps([trial.model_dump(mode="json") for trial in found], indent=2))
        return
    if not found:
        typer.echo("no trials")
        return
    console = rendering.console()
    for part in trial_rendering.trials_table(found, objective=stored_objective(study.spec)):
        console.print(part)
    there = sum(count for known, count in study.trial_counts.items() if not state or known in state)
    if there > len(found):
        typer.echo(f"the first {len(found)} of {there}; --limit {there} shows all")


def best(
    study_id: StudyArgument,
    command: Annotated[
        bool, typer.Option("--command", help="Only the command that trains its best trial once more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the best configuration of a study, and the command that trains it once more, without the service."""
    from service.cli import rendering

    with client() as service:
        study = service.study(study_id)
        if study.best is None:
            raise NotEnoughResultsError(f"study {study_id!r} has no configuration with a result yet")
        again = _training_command(study, _best_trial(service, study_id))
    if as_json:
        typer.echo(study.best.model_dump_json(indent=2))
    elif command:
        typer.echo(again)
    else:
        console = rendering.console()
        for part in rendering.best_facts(study):
            console.print(part)
        typer.echo(f"again: {again}")


def surface(
    study_id: StudyArgument,
    x: Annotated[str | None, typer.Option(metavar="PARAMETER", help="By default lambda, or the first one.")] = None,
    y: Annotated[str | None, typer.Option(metavar="PARAMETER", help="By default rho, or the next one.")] = None,
    panel: Annotated[
        str | None, typer.Option(metavar="PARAMETER", help="A table for each of its values; '' for one table.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of the last epoch, such as sharpness_one_step; by default the objective.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Draw it: a .png, or a page to explore, .html."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the objective over two parameters, such as λ and ρ, or another metric: as a table, or as a figure."""
    from service.analysis.surface import in_order_of_interest
    from service.cli import rendering, surface_rendering
    from service.spec import stored_objective, stored_space

    ending = "" if output is None else output.suffix
    if output is not None and ending not in (".png", ".html"):
        raise typer.BadParameter(f"{output} must end with .png or .html")
    with client() as service:
        study = service.study(study_id)
        parameters = stored_space(study.spec).parameters
        left = [name for name in in_order_of_interest(parameters) if name not in (x, y)]
        x, y = (name or (left.pop(0) if left else None) for name in (x, y))
        if x is None or y is None:
            raise NotEnoughResultsError(
                f"study {study_id!r} searches {', '.join(parameters)}: a surface needs two parameters"
            )
        found = service.surface(study_id, x=x, y=y, panel=panel, metric=metric)
    objective = stored_objective(study.spec)
    label = (
        rendering.metric_label(objective) if found.metric == objective.metric else rendering.in_its_unit(found.metric)
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    elif output is not None:
        from service.analysis.labelling import figure_title
        from service.analysis.plots import heat_map_html, heat_map_png  # they take a second to import

        draw = heat_map_png if ending == ".png" else heat_map_html
        title = figure_title(study.name, at=objective.at if found.metric == objective.metric else "last")
        drawn = draw(found, title=title, metric=found.metric)
        _write(output, [drawn.encode() if isinstance(drawn, str) else drawn])
        typer.echo(f"{output}: {label} of study {study_id}", err=True)
    elif surface_rendering.is_readable(found):
        console = rendering.console()
        seeds = len(study.spec["replicates"]["seeds"])
        console.print(surface_rendering.surface_tables(found, label=label, seeds=seeds, width=console.width))
    else:
        typer.echo(
            f"{len(found.x_values)} values of {x} and {len(found.y_values)} of {y} make no table: "
            "--output FILE.png draws them"
        )


def export(
    study_id: StudyArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="By default the standard output.")
    ] = None,
    table_format: Annotated[
        Literal["csv", "json", "parquet"] | None,
        typer.Option("--format", help="By default what FILE ends with, or csv."),
    ] = None,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Write its runs in MLflow anew instead.")] = False,
) -> None:
    """Write the trials of a study as one table, a row for each."""
    if mlflow:
        with client() as service:
            service.export_again(study_id)
        typer.echo(f"the runs of study {study_id} in MLflow are being written anew")
        return
    ending = "" if output is None else output.suffix.removeprefix(".")
    if table_format is None and ending and ending not in _FORMATS:
        raise typer.BadParameter(f"{output} must end with .csv, .json or .parquet, or --format say what it is to be")
    chosen: Literal["csv", "json", "parquet"] = table_format or _FORMATS.get(ending, "csv")
    if chosen == "parquet" and output is None and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is no text: name a file with --output")
    with client() as service:
        table = service.export(study_id, table_format=chosen)
        if output is None:
            for piece in table:
                sys.stdout.buffer.write(piece)
            return
        _write(output, table)
    typer.echo(f"{output}: the trials of study {study_id}", err=True)


def checkpoint(
    study_id: StudyArgument,
    trial_id: Annotated[
        str | None,
        typer.Argument(
            metavar="TRIAL", help="By default the best trial of the best configuration.", show_default=False
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Of its best epoch (checkpoint.keep has to say best), not its last.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="By default TRIAL.ckpt.", show_default=False)
    ] = None,
) -> None:
    """Take home a trial's checkpoint: its weights, and all that a training goes on from."""
    with client() as service:
        trial_id = _best_trial(service, study_id).id if trial_id is None else trial_id
        output = Path(f"{trial_id}.ckpt") if output is None else output
        _write(output, service.checkpoint(study_id, trial_id, which="best" if best else "latest"))
    typer.echo(f"{output}: of trial {trial_id}; samstudy train … --checkpoint FILE goes on from it", err=True)
    typer.echo(f'the weights: trainers.checkpoint.load("{output}")["training"]["model"]', err=True)


def _best_trial(service: Client, study_id: str) -> TrialOverview:
    """The best trial of the best configuration, whether it searched or confirmed."""
    study, best = service.study(study_id), service.best(study_id)
    if best is None:
        raise NotEnoughResultsError(f"study {study_id!r} has no configuration with a result yet: name a trial")
    trials = service.trials(study_id, configuration_id=best.configuration.id, states=[TrialState.SUCCEEDED])
    sign = 1 if study.spec["objective"]["mode"] == "max" else -1
    return max(trials, key=lambda trial: -math.inf if trial.objective is None else sign * trial.objective)


def _training_command(study: StudyDetail, trial: TrialOverview) -> str:
    """The command that trains once more as this trial of the best configuration has, with as many threads."""
    best = study.best
    point = {} if best is None else best.configuration.point
    settings = {**study.spec["train"], **point, "seed": trial.seed}
    threads = max(1, int(study.spec["resources_per_trial"]["cpu"]))
    words = [f"{name}={value}" for name, value in settings.items()]
    return shlex.join(["samstudy", "train", *words, "--threads", str(threads)])


def _write(output: Path, content: Iterable[bytes]) -> None:
    """Writes the file whole or not at all: what breaks off or has no room leaves one that is there as it was.

    What cannot be replaced, such as a pipe, is written once all of it has come. Where nothing can be written, OSError
    is raised before any of it is asked for.
    """
    if _can_be_replaced(output):
        _replace(output.resolve(), content)
        return
    _check_can_be_written(output)
    with tempfile.TemporaryFile() as whole:
        whole.writelines(content)
        whole.seek(0)
        with output.open("wb") as file:
            shutil.copyfileobj(whole, file)


def _can_be_replaced(path: Path) -> bool:
    """Whether a new file may take its place; /dev/stdout may be a file, which whoever has opened it keeps."""
    if path.absolute().is_relative_to("/dev") or path.absolute().is_relative_to("/proc"):
        return False
    is_ours = not path.exists() or (path.is_file() and os.access(path, os.W_OK))
    return is_ours and os.access(path.resolve().parent, os.W_OK)


def _check_can_be_written(path: Path) -> None:
    """Raises the OSError that writing would, and changes nothing."""
    if path.is_fifo():
        return  # which opens only once somebody reads it
    is_new = not path.exists()
    path.open("ab").close()
    if is_new:
        path.resolve().unlink()


def _replace(path: Path, content: Iterable[bytes]) -> None:
    """Puts a new file where one may be, whose mode it keeps."""
    new = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with new.open("xb") as file:
            file.writelines(content)
        if path.exists():
            new.chmod(stat.S_IMODE(path.stat().st_mode))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def importances(
    study_id: StudyArgument,
    method: Annotated[
        Literal["fanova", "ped_anova"],
        typer.Option(help="fanova: over the whole space; ped_anova: what tells the best points from the others."),
    ] = "fanova",
    as_json: Json = False,
) -> None:
    """Show which parameters matter to a study's objective."""
    from service.cli import rendering, trial_rendering

    with client() as service:
        found = service.importances(study_id, method=method)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    for part in trial_rendering.importances_table(found):
        rendering.console().print(part)


_FORMATS: dict[str, Literal["csv", "json", "parquet"]] = {"csv": "csv", "json": "json", "parquet": "parquet"}
