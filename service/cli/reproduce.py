"""`samstudy reproduce NAME`: a figure or the table of the paper, from its studies to its page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import ServiceUnavailableError
from service.reproduction import ExperimentName, Scale
from service.settings import settings, without_user

if TYPE_CHECKING:
    from rich.console import Console

    from service.client import Client
    from service.reproduction.experiment import StudyResults
    from service.reproduction.provenance import Provenance

DOCS = Path("docs") / "reproduction"
ELSEWHERE = Path("reproduction")
_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command()(reproduce)


def reproduce(
    name: Annotated[ExperimentName, typer.Argument(metavar="NAME", help="What to reproduce.")],
    scale: Annotated[
        Scale,
        typer.Option(
            help="small: 1 to 40 minutes on two CPU cores, the table on other data; paper: the published setting, for "
            "which the table needs GPUs. The figures are the published ones at either."
        ),
    ] = Scale.SMALL,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help=f"Where the page goes; by default {DOCS} where that exists, else {ELSEWHERE}.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run it anew, also where it was run or is running already.")
    ] = False,
) -> None:
    """Run one of the paper's experiments and write its figure or table.

    It takes the studies of an earlier run of the same command and sources, finished or cut off, where there are any.
    """
    from service.cli import rendering
    from service.cli.watching import watch_study
    from service.reproduction import catalog, pages
    from service.reproduction.running import run_experiment

    experiment = catalog.experiment(name, scale)
    folder = output or (DOCS if DOCS.is_dir() else ELSEWHERE)
    folder.mkdir(parents=True, exist_ok=True)
    console = rendering.console()
    with _service(console) as (client, keep_up, provenance):

        def watch(study_id: str) -> None:
            watch_study(client, study_id, console, sleep=keep_up)

        try:
            results = run_experiment(client, experiment, watch=watch, fresh=fresh)
        except KeyboardInterrupt:
            typer.echo("\nits studies are recorded: the same command goes on with them")
            raise typer.Exit(_INTERRUPTED) from None
        report = experiment.report(results)
        is_small = experiment.name == catalog.experiment(name, Scale.SMALL).name
        command = f"samstudy reproduce {name}" + ("" if is_small else f" --scale {scale}")
        page = pages.page(experiment, report, results, command=command, provenance=provenance)
        files = {**report.files, f"{experiment.name}.md": page.encode()}
        for file_name, content in files.items():
            (folder / file_name).write_bytes(content)
        (folder / pages.INDEX).write_text(pages.index(pages.pages_in(folder)))
        console.print(f"\nwritten to {folder / experiment.name}.md", soft_wrap=True)
        for study in results.values():
            console.print(f"in MLflow:  {_attach(client, study, files)}", soft_wrap=True)


@contextmanager
def _service(console: Console) -> Iterator[tuple[Client, Callable[[float], None], Provenance]]:
    """A client of the service to use, how to wait so that its parts stay up, and what its trials run on."""
    from service.cli.serving import service_of_home
    from service.client import Client
    from service.reproduction.provenance import of_another_machine, of_this_machine

    if settings().url:
        with Client(settings().url) as client:
            client.check_ready()
            console.print(f"using the service at {client.url}")
            yield client, time.sleep, of_another_machine()
        return
    with service_of_home(console, threading.Event()) as (addresses, restart_ended), Client(addresses.api_url) as client:

        def keep_up(seconds: float) -> None:
            time.sleep(seconds)
            restart_ended()

        yield client, keep_up, of_this_machine()


def _attach(client: Client, results: StudyResults, files: Mapping[str, bytes]) -> str:
    """Puts the files into the study's run in MLflow, and answers with its address."""
    from service.cli.serving import wait_for_export
    from service.tracking.attachments import attach

    wait_for_export(client, results.study.id)
    study = client.study(results.study.id)
    if study.mlflow_run_id is None or study.mlflow_url is None:
        raise ServiceUnavailableError(f"MLflow does not have study {study.id}; see the controller's log")
    shown, _, _ = study.mlflow_url.partition("/#/")
    own = (settings().mlflow_url.rstrip("/"), settings().mlflow_public_url.rstrip("/"))
    with_password = next((url for url in own if without_user(url) == shown), shown)  # the API does not show it
    attach(with_password, study.mlflow_run_id, files)
    return study.mlflow_url
