"""Commands that steer a study: pause, resume, stop, cancel, retry, clone, budget, confirm, label, enqueue and so on."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.assignments import assignments
from service.cli.studies import StudyArgument, client, watched
from service.errors import VersionConflictError
from service.study import Study, StudyState

if TYPE_CHECKING:
    from service.client import Client

_NO_LIMIT = ("none", "null")


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    steering = (pause, resume, stop, cancel, retry, clone, budget, confirm, label, enqueue)
    for command in (*steering, archive, unarchive, delete):
        app.command()(command)


def pause(study_id: StudyArgument) -> None:
    """Pause a study: begin no new trials, save the running ones and free their workers."""
    with client() as service:
        study = service.pause(study_id)
    _say(
        study,
        "is paused" if study.state is StudyState.PAUSED else "is being paused: its running trials save their state",
    )


def resume(study_id: StudyArgument) -> None:
    """Let a paused study go on from where it was."""
    with client() as service:
        study = service.resume(study_id)
    _say(study, "goes on" if study.state is StudyState.RUNNING else "goes on as soon as its driver has started")


def stop(study_id: StudyArgument) -> None:
    """End a study after the trials that have begun."""
    with client() as service:
        study = service.stop(study_id)
    ended = study.state.is_final
    _say(
        study, f"has ended as {study.state}" if ended else "is being stopped: trials that have begun train to their end"
    )


def cancel(study_id: StudyArgument) -> None:
    """End a study now, its running trials included."""
    with client() as service:
        study = service.cancel(study_id)
    _say(study, "is cancelled" if study.state.is_final else "is being cancelled")


def retry(study_id: StudyArgument) -> None:
    """Run the failed trials of a finished study again, from their checkpoints; one whose drivers failed goes on."""
    with client() as service:
        study = service.retry(study_id)
    _say(study, f"runs again what failed; next: samstudy watch {study.id}")


def clone(
    study_id: StudyArgument,
    changes: Annotated[
        Path | None,
        typer.Option(
            "--changes",
            metavar="FILE",
            help="Sections of a spec in place of the original's, each as a whole.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Instead of the original's name.")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")] = False,
) -> None:
    """Start a new study with the spec of another; results are not taken over."""
    from service.spec_reading import read_spec_file

    sections: Any = read_spec_file(changes) if changes is not None else {}
    if not isinstance(sections, dict):
        raise typer.BadParameter("the file must hold sections of a spec, such as budget, by their names")
    with client() as service:
        made = service.clone(study_id, {**sections, **({} if name is None else {"name": name})})
        typer.echo(f"study {made.id} ({made.submitted.name}) is a clone of {study_id}")
        if sections:
            for said in _fallen_back(service.study(study_id).spec, service.study(made.id).spec, sections):
                typer.echo(said)
        if follow:
            raise typer.Exit(watched(service, made.id))
    typer.echo(f"next: samstudy watch {made.id}")


def _fallen_back(before: Mapping[str, Any], after: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[str]:
    """What the original had set in the sections that are given, and the clone has not: they replace its own whole.

    Fields that the clone's section does not know at all, as another scheduler's, are not told.
    """
    from trainers.config import defaults

    for name, given in sections.items():
        sections_of_fields = (given, before.get(name), after.get(name))
        if name in ("search_space", "labels") or not all(isinstance(section, dict) for section in sections_of_fields):
            continue
        new_section = {**(defaults() if name == "train" else {}), **after[name]}  # `train` has only what is set
        for field in before[name].keys() & new_section.keys() - given.keys():
            old, new = before[name][field], new_section[field]
            if old != new:
                yield f"  {name}.{field}: {_shown(new)}, its default, and not {_shown(old)} as in {before['name']}"


def budget(
    study_id: StudyArgument,
    limits: Annotated[
        list[str] | None, typer.Argument(metavar="[LIMIT=VALUE…]", help="Such as max_trials=120; none: no limit.")
    ] = None,
) -> None:
    """Show the budget of a study, or change limits of it.

    A higher limit lets a finished study go on with all that it knows.
    """
    with client() as service:
        before = service.study(study_id)
        if not limits:
            for limit, value in before.spec["budget"].items():
                typer.echo(f"{limit}: {'none' if value is None else value}")
            return
        given = assignments(limits, example="max_trials=120")
        changes = {limit: None if str(value).lower() in _NO_LIMIT else value for limit, value in given.items()}
        try:
            study = service.update(study_id, budget=changes, version=before.version)
        except VersionConflictError:  # somebody changed another thing, such as a label: these limits are still meant
            before = service.study(study_id)
            study = service.update(study_id, budget=changes, version=before.version)
    old, new = before.spec["budget"], study.spec["budget"]
    told = ", ".join(f"{limit} {_shown(old.get(limit))} → {_shown(new.get(limit))}" for limit in changes)
    _say(study, f"has a new budget: {told}{'; it goes on' * (before.state.is_final and not study.state.is_final)}")


def confirm(
    study_id: StudyArgument,
    seeds: Annotated[list[int], typer.Argument(metavar="SEED…", help="Fresh ones, beside those it confirms with.")],
    top_k: Annotated[int | None, typer.Option(help="How many of the best; by default as many as before, or 1.")] = None,
) -> None:
    """Run the best of a finished study again on seeds that its search never saw, for an honest number.

    A paused one does so once its search is over.
    """
    with client() as service:
        study = service.study(study_id)
        before = study.spec.get("confirm") or {"top_k": 1, "seeds": []}
        known = before["seeds"]
        of_them = before["top_k"] if top_k is None else top_k
        all_seeds = [*known, *(seed for seed in seeds if seed not in known)]
        changed = service.update(study_id, confirm={"top_k": of_them, "seeds": all_seeds}, version=study.version)
    which = "its best" if of_them == 1 else f"its {of_them} best"
    then = "it has done so already" if changed.state.is_final else f"next: samstudy watch {changed.id}"
    on = f"seed{'s' * (len(all_seeds) > 1)} {', '.join(map(str, all_seeds))}"
    _say(changed, f"confirms {which} on {on}; {then}")


def label(
    study_id: StudyArgument,
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY:VALUE…]", help="Such as team:vision; none: show them.")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Take it off; can be repeated.")] = None,
) -> None:
    """Show the labels of a study, or set and remove some of them."""
    given: dict[str, str] = {}
    for pair in labels or ():
        key, colon, value = pair.partition(":")
        if not key or not colon or key in given:
            raise typer.BadParameter(f"write KEY:VALUE once for each key, such as team:vision; got {pair!r}")
        given[key] = value
    with client() as service:
        study = service.study(study_id)
        if unknown := [key for key in remove or () if key not in study.labels]:
            raise typer.BadParameter(
                f"the study has no label {unknown[0]!r}; it has {', '.join(study.labels) or 'none'}"
            )
        changed: Mapping[str, str] = study.labels
        if given or remove:
            try:
                changed = _relabelled(service, study, given, remove or ())
            except VersionConflictError:  # another thing has changed, such as a point enqueued, or another label
                changed = _relabelled(service, service.study(study_id), given, remove or ())
    for key, value in changed.items():
        typer.echo(f"{key}:{value}")


def _relabelled(service: Client, study: Study, given: Mapping[str, str], remove: Collection[str]) -> Mapping[str, str]:
    kept = {key: value for key, value in study.labels.items() if key not in remove}
    return service.update(study.id, labels={**kept, **given}, version=study.version).labels


def enqueue(
    study_id: StudyArgument,
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE…", help="Such as lambda=0.5 rho=0.1.")],
) -> None:
    """Have a study try a point of its search space, before what its search proposes."""
    point = assignments(values, example="rho=0.1")
    with client() as service:
        result = service.enqueue(study_id, point)
    trials = sum(result.trial_states.values())
    number = result.configuration.number
    typer.echo(f"study {study_id} tries it as configuration {number}, {trials} trial{'s' * (trials > 1)}")


def archive(study_id: StudyArgument) -> None:
    """Put a finished study out of sight of `list`."""
    with client() as service:
        _say(service.archive(study_id), "is archived; `samstudy list --archived` shows it")


def unarchive(study_id: StudyArgument) -> None:
    """Put a study back into sight."""
    with client() as service:
        _say(service.unarchive(study_id), "is listed again")


def delete(
    study_id: StudyArgument,
    runs: Annotated[
        Literal["keep", "delete"],
        typer.Option(help="What becomes of its runs in MLflow; they stay once they are all there."),
    ] = "keep",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
) -> None:
    """Delete a finished study with all of its results and checkpoints."""
    with client() as service:
        study = service.study(study_id)
        if not yes:
            if not sys.stdin.isatty():
                raise typer.BadParameter("nobody can be asked here: say --yes")
            typer.confirm(f"delete study {study.id} ({study.name}) and its results for good?", abort=True)
        service.delete(study_id, delete_runs=runs == "delete")
    typer.echo(f"study {study_id} is deleted; its runs in MLflow {'are being deleted' if runs == 'delete' else 'stay'}")


def _say(study: Study, what: str) -> None:
    typer.echo(f"study {study.id} {what}")


def _shown(limit: object) -> str:
    return "none" if limit is None else f"{limit:g}" if isinstance(limit, float) else str(limit)
