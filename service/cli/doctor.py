"""`samstudy doctor`: is everything there, does everything answer, and what to do where not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

import typer

from service.cli import examining_machine, examining_services, examining_store
from service.cli.findings import Finding, Verdict, lines, note
from service.logs import redacted
from service.settings import Settings, settings, unknown_variables


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command()(doctor)


def doctor(
    all_settings: Annotated[bool, typer.Option("--settings", help="Show every setting, not only those set.")] = False,
) -> None:
    """Say what is wrong with the service and its surroundings, and what to do.

    Exits with 1 where something is wrong; works while the service is down too. It writes a small file to the storage
    and deletes it.
    """
    from service.cli.rendering import console

    current = settings()
    found: list[Finding] = []
    for finding in examine(current):
        found.append(finding)
        for line in lines(finding):
            typer.echo(line)
    typer.echo()
    shown = shown_settings(current, only_set=not all_settings)
    typer.echo("settings (SAMSTUDY_<NAME>):" if shown else "every setting has its default")
    for name, value in shown.items():
        typer.echo(f"  {name} = {value}")
    typer.echo()
    number = sum(finding.verdict is Verdict.WRONG for finding in found)
    if number:
        console().print(f"{number} {'thing is' if number == 1 else 'things are'} wrong", style="red")
        raise typer.Exit(1)
    console().print("nothing is wrong", style="green")


def shown_settings(current: Settings, *, only_set: bool = False) -> dict[str, str]:
    """Every setting, or those that differ from their default; passwords in URLs left out."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    differing = {name: str(value) for name, value in current if not (only_set and value == defaults[name])}
    return {name: redacted(value) for name, value in differing.items()}


def examine(current: Settings) -> Iterator[Finding]:
    """Everything that can be wrong, one after the other."""
    from service.addresses import running_addresses
    from service.store.keys import KeyStore
    from service.store.watching import WatchingStore

    running = running_addresses(current.home)
    for name, meant in unknown_variables(os.environ).items():
        yield note(
            "settings",
            f"nobody reads {name}",
            f"did you mean {meant}?" if meant else "samstudy doctor --settings lists all",
        )
    yield from examining_machine.examine_machine(current.home)
    known_run = None
    with examining_store.opened_store(current) as (database, findings):
        yield from findings
        yield examining_store.examine_storage(current.storage_uri)
        if database is not None:
            store = WatchingStore(database)
            yield from examining_store.examine_work(store)
            yield examining_services.examine_keys(current, KeyStore(database))
            known_run = store.run_in_mlflow()
    store_is_missing = examining_store.missing_file(current) is not None
    api = examining_services.examine_api(current, running, store_is_missing=store_is_missing)
    yield api
    yield examining_services.examine_mlflow(running.mlflow_url if running else current.mlflow_url, known_run)
    yield from examining_services.examine_ray(current, running)
    if api.verdict is Verdict.WRONG:
        urls = {"API": current.own_url, "MLflow": current.mlflow_url}
        yield from examining_machine.examine_ports({**urls, "Ray": current.ray_jobs_url})
