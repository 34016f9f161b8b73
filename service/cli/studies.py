"""Commands about studies: submit, watch, list, show, logs, compare."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import StudyNotFoundError
from service.ids import may_be_study_id
from service.study import StudyState

if TYPE_CHECKING:
    from service.client import Client

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_SHOWN = 5
"""How many studies of one name are listed."""


def found_id(given: str) -> str:
    """The id of the study that is given by its id or its name; archived ones have names too.

    Raises StudyNotFoundError, and typer.BadParameter where several studies have the name.
    """
    with client() as service:
        if may_be_study_id(given):
            with suppress(StudyNotFoundError):
                return service.study(given).id
        known = (service.studies(name=given, archived=archived, page_size=_SHOWN + 1) for archived in (False, True))
        named = list(islice(chain.from_iterable(known), _SHOWN + 1))
    if not named:
        raise StudyNotFoundError(given, or_name=True)
    if len(named) > 1:
        those = ", ".join(f"{study.id} ({study.state}, of {study.owner})" for study in named[:_SHOWN])
        more = " and more" if len(named) > _SHOWN else ""
        raise typer.BadParameter(f"several studies have the name {given!r}: {those}{more}; give an id")
    return named[0].id


StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's id, or a name that no other has.", callback=found_id)
]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (submit, watch, show, logs, compare):
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
    searching, confirming = planned.trials - planned.confirming_trials, planned.confirming_trials
    size = f"{planned.configurations} configurations × {seeds} seed{'s' * (seeds > 1)} = {searching} trials"
    if confirming:
        size += f", and {confirming} that confirm the best,"
    if validate_only:
        typer.echo(f"the spec is valid: {size} at most")
        return
    with client() as service:
        study = service.submit(spec, idempotency_key=idempotency_key)
        typer.echo(f"study {study.id} ({spec.name}): {size} at most")
        if follow:
            raise typer.Exit(watched(service, study.id))
    typer.echo(f"next: samstudy watch {study.id}")


def watch(study_id: StudyArgument) -> None:
    """Show how a study goes until it has ended.

    Ctrl-C leaves it running.
    """
    with client() as service:
        raise typer.Exit(watched(service, study_id))


def list_studies(
    state: Annotated[
        list[StudyState] | None, typer.Option(case_sensitive=False, help="Only these; can be repeated.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY:VALUE", help="Can be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="Only studies of this name.")] = None,
    name_contains: Annotated[str | None, typer.Option(help="Only studies with this in their names.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's, for admins, who see all.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Those that were put out of sight.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List studies, the newest first."""
    from service.cli import rendering

    labels: dict[str, str] = {}
    for pair in label or ():
        key, colon, value = pair.partition(":")
        if not colon:
            raise typer.BadParameter(f"a label is written KEY:VALUE, got {pair!r}")
        if labels.setdefault(key, value) != value:
            raise typer.BadParameter(f"a study has one value of the label {key!r}, got {labels[key]!r} and {value!r}")
    with client() as service:
        pages = service.studies(
            states=state or (),
            labels=labels,
            name=name,
            name_contains=name_contains,
            owner=owner,
            archived=archived,
            page_size=min(limit + 1, 200),
        )
        seen = list(islice(pages, limit + 1))
    found = seen[:limit]
    if as_json:
        typer.echo(json.dumps([study.model_dump(mode="json") for study in found], indent=2))
    elif found:
        rendering.console().print(rendering.studies_table(found))
        if len(seen) > limit:
            typer.echo(f"the newest {limit}; --limit {10 * limit} shows more")
    elif state or label or name or name_contains or owner or archived:
        typer.echo("no study is like this")
    else:
        typer.echo("no studies; start one with `samstudy submit FILE`")


def show(study_id: StudyArgument, as_json: Json = False) -> None:
    """Show one study: state, results, best."""
    from service.cli import rendering
    from service.cli.watching import results_of

    with client() as service:
        study = service.study(study_id)
        if as_json:
            typer.echo(study.model_dump_json(indent=2))
            return
        console = rendering.console()
        for part in rendering.study_facts(study, api_url=service.url):
            console.print(part)
        console.print(results_of(service, study, width=console.width))


def compare(
    study_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            help="Two or more, by id or name.",
            callback=lambda given: list(map(found_id, given)),
        ),
    ],
    metric: Annotated[str | None, typer.Option(help="By default the objective they share.")] = None,
    as_json: Json = False,
) -> None:
    """Compare studies by their best configurations.

    Each later study is compared with the first, paired over shared seeds; over the trials that confirm the best
    configurations where all of the studies have such, else over those of the search.
    """
    from service.cli import comparison_rendering, rendering

    with client() as service:
        comparison = service.compare(study_ids, metric=metric)
    if as_json:
        typer.echo(comparison.model_dump_json(indent=2))
        return
    console = rendering.console()
    for part in comparison_rendering.comparison_tables(comparison):
        console.print(part)


def logs(
    study_id: StudyArgument,
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's id.")],
    attempt: Annotated[int | None, typer.Option(min=1, help="By default the newest.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only so many of the last lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the attempt has ended.")] = False,
) -> None:
    """Print what a trial has printed, and how it went."""
    with client() as service:
        for text in service.logs(study_id, trial_id, attempt=attempt, tail=tail, follow=follow):
            typer.echo(text, nl=False)


def watched(service: Client, study_id: str) -> int:
    """Shows the study until it has ended; the exit code."""
    from service.cli import rendering
    from service.cli.watching import watch_study

    try:
        study = watch_study(service, study_id, rendering.console())
    except KeyboardInterrupt:
        again = f"`samstudy watch {study_id}` shows it, `samstudy cancel {study_id}` ends it"
        typer.echo(f"\nstudy {study_id} goes on; {again}")
        return 130
    return 0 if study.state is StudyState.SUCCEEDED else 1


def client() -> Client:
    """The service that this command talks to."""
    from service.client import Client

    return Client(patience_s=1.0)
