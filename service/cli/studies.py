"""Commands about studies: submit, watch, list, show, compare, cancel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.study import StudyState

if TYPE_CHECKING:
    from service.client import Client

StudyArgument = Annotated[str, typer.Argument(metavar="ID", help="A study's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (submit, watch, show, compare, cancel):
        app.command()(command)
    app.command("list")(list_studies)


def submit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A study spec in YAML or JSON.", exists=True, dir_okay=False)
    ],
    follow: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")] = False,
    name: Annotated[str | None, typer.Option(help="Instead of the name in the file.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key and file is the same study.")
    ] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the file and start nothing.")] = False,
) -> None:
    """Start a study."""
    from service.spec import load_spec, parse_spec, plan

    spec = load_spec(file)
    if name is not None:
        spec = parse_spec({**spec.to_mapping(), "name": name})
    planned = plan(spec)
    seeds = len(spec.replicates.seeds)
    size = f"{planned.configurations} configurations × {seeds} seed{'s' * (seeds > 1)} = {planned.trials} trials"
    if validate_only:
        typer.echo(f"the spec is valid: {size} at most")
        return
    with _client() as client:
        study = client.submit(spec, idempotency_key=idempotency_key)
        typer.echo(f"study {study.id} ({spec.name}): {size} at most")
        if follow:
            raise typer.Exit(_watch(client, study.id))
    typer.echo(f"next: samstudy watch {study.id}")


def watch(study_id: StudyArgument) -> None:
    """Show how a study goes until it has ended.

    Ctrl-C leaves it running.
    """
    with _client() as client:
        raise typer.Exit(_watch(client, study_id))


def list_studies(
    state: Annotated[list[StudyState] | None, typer.Option(help="Only these; can be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY:VALUE", help="Can be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="Only studies of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List studies, the newest first."""
    from itertools import islice

    from service.cli import rendering

    labels = {}
    for pair in label or ():
        key, colon, value = pair.partition(":")
        if not colon:
            raise typer.BadParameter(f"a label is written KEY:VALUE, got {pair!r}")
        labels[key] = value
    with _client() as client:
        pages = client.studies(states=state or (), labels=labels, name=name, page_size=min(limit, 200))
        found = list(islice(pages, limit))
    if as_json:
        typer.echo(json.dumps([study.model_dump(mode="json") for study in found], indent=2))
    elif found:
        rendering.console().print(rendering.studies_table(found))
    else:
        typer.echo("no studies; start one with `samstudy submit FILE`")


def show(study_id: StudyArgument, as_json: Json = False) -> None:
    """Show one study: state, results, best."""
    from service.cli import rendering
    from service.cli.watching import results_of

    with _client() as client:
        study = client.study(study_id)
        if as_json:
            typer.echo(study.model_dump_json(indent=2))
            return
        console = rendering.console()
        for part in rendering.study_facts(study, api_url=client.url):
            console.print(part)
        console.print(results_of(client, study, width=console.width))


def compare(
    study_ids: Annotated[list[str], typer.Argument(metavar="ID ID…", help="Two studies or more.")],
    metric: Annotated[str | None, typer.Option(help="By default the objective they share.")] = None,
) -> None:
    """Compare studies by their best configurations.

    Each later study is compared with the first, paired over shared seeds.
    """
    from service.cli import rendering

    with _client() as client:
        comparison = client.compare(study_ids, metric=metric)
    console = rendering.console()
    console.print(rendering.compared_table(comparison))
    console.print(rendering.differences_table(comparison))


def cancel(study_id: StudyArgument) -> None:
    """End a study now, its running trials included."""
    with _client() as client:
        study = client.cancel(study_id)
    ended = study.state.is_final
    typer.echo(f"study {study_id} is cancelled" if ended else f"study {study_id} is being cancelled")


def _watch(client: Client, study_id: str) -> int:
    from service.cli import rendering
    from service.cli.watching import watch_study

    try:
        study = watch_study(client, study_id, rendering.console())
    except KeyboardInterrupt:
        typer.echo(f"\nstudy {study_id} goes on; `samstudy watch {study_id}` shows it, `samstudy cancel` ends it")
        return 130
    return 0 if study.state is StudyState.SUCCEEDED else 1


def _client() -> Client:
    from service.client import Client

    return Client(patience_s=1.0)
