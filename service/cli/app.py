"""The commands, and what becomes of their errors: a readable list on stderr and an exit code, no stack trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from pydantic import ValidationError

from service.cli import backup, demo, doctor, keys, lifecycle, processes, reproduce, results, studies, webhooks
from service.errors import SamstudyError
from service.logs import redacted
from service.settings import Settings

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130

_BAD_INPUT_STATUSES = frozenset({400, 404, 413, 415, 422})

app = typer.Typer(
    name="samstudy",
    help="Hyperparameter studies of sharpness-aware training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (studies, lifecycle, results, processes, demo, reproduce, webhooks, keys, backup, doctor):
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 where it did what was asked, 2 for bad input, 130 for Ctrl-C, 1 for everything else."""
    if sys.stdout is None:  # who has closed it wants to see nothing
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # λ and ★ must not end a command in a terminal without them
    for given in sys.argv[1:] if arguments is None else arguments:
        if given != given.encode(errors="replace").decode():
            print(f"error: an argument must be UTF-8, got {given!a}", file=sys.stderr)
            return BAD_INPUT
    try:
        app(args=arguments, prog_name="samstudy")
    except SamstudyError as error:
        print_error(error)
        return BAD_INPUT if error.status in _BAD_INPUT_STATUSES else FAILED
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        for detail in error.errors():
            print(f"error: SAMSTUDY_{str(detail['loc'][0]).upper()}: {detail['msg']}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a file that cannot be read, a folder that cannot be made
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else FAILED if left.code else 0
    return 0


def print_error(error: SamstudyError) -> None:
    """The error on stderr: its title with one line for each field, or what it says."""
    if not error.problems:
        print(f"error: {redacted(error.detail)}", file=sys.stderr)
        return
    print(f"error: {error.title[:1].lower()}{error.title[1:]}", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem.field}: {redacted(problem.message)}", file=sys.stderr)
