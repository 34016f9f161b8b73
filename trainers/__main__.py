"""One training run from a shell: `python -m trainers dataset=digits lambda=0.5 rho=0.1 --json`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.config import (
    ConfigProblem,
    InvalidTrainConfigError,
    Knob,
    Scalar,
    TrainConfig,
    defaults,
    knobs,
    problems_with,
)
from trainers.metrics import epoch_metrics, reported_metrics

if TYPE_CHECKING:
    from trainers.loop import EpochResult

_COLUMNS = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "suboptimality",
    "bound",
    "grad_norm",
    "perturbation_norm",
    "lr",
    "rho",
    "lambda",
    "samples_per_s",
)
"""Of the metrics of an epoch those that a line has room for; --json prints all of them."""


_MOST_NAMED = 3
"""Of the settings that a checkpoint has otherwise."""


def main(argv: Sequence[str] | None = None, *, program: str = "python -m trainers") -> int:
    """Runs the command; 0 when it finished, 1 when training failed or its output could not be written, 2 for bad input.

    argv: the arguments without the program's name; None takes those of the process.
    Raises SystemExit after --help, and for unknown options.
    """
    try:
        try:
            return _run_command(argv, program)
        finally:
            print(end="", flush=True)
    except BrokenPipeError:  # who read the output has seen enough: `... | head -1`
        _discard_output()
    except OSError as error:
        _discard_output()
        print(f"{program}: {error}", file=sys.stderr)
    return 1


def _run_command(argv: Sequence[str] | None, program: str) -> int:
    arguments = _parser(program).parse_intermixed_args(argv)
    try:
        config = parse_config(arguments.settings)
    except InvalidTrainConfigError as error:
        _print_problems(error, program)
        return 2
    path: Path | None = arguments.checkpoint
    obstacle = _obstacle_to(path) if path is not None else None
    if obstacle:
        print(f"{program}: --checkpoint: {obstacle}", file=sys.stderr)
        return 2
    return _run(config, program, as_json=arguments.json, threads=arguments.threads, path=path)


def _print_problems(error: InvalidTrainConfigError, program: str) -> None:
    for problem in error.problems:
        message = problem.message.removeprefix(f"{problem.field} ")
        print(f"{program}: {problem.field}: {message}", file=sys.stderr)


def parse_config(settings: Iterable[str]) -> TrainConfig:
    """The configuration that these "key=value" settings name, defaults for the rest.

    Raises InvalidTrainConfigError with every problem at once.
    """
    values: dict[str, Scalar] = {}
    problems = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (name and equals):
            problems.append(ConfigProblem(setting or "''", "settings are written key=value"))
        elif name in values:
            problems.append(ConfigProblem(name, "set twice"))
        else:
            values[name] = _value(knobs().get(name), text)
    problems += problems_with(values)
    if problems:
        raise InvalidTrainConfigError(problems)
    return TrainConfig.from_mapping(values)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Trains one model with Unified SAM and prints one line per epoch.",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, listed below")
    parser.add_argument("--json", action="store_true", help="print one JSON object per epoch, with every metric")
    parser.add_argument("--threads", type=_threads, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="saved after each epoch; continued from where it exists"
    )
    return parser


def _settings_help() -> str:
    rows = [
        (name, f"{knob.description}; {knob.rule} (default: {default})")
        for (name, knob), default in zip(knobs().items(), defaults().values(), strict=True)
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(("settings:", *(f"  {name:<{width}}  {text}" for name, text in rows)))


def _threads(text: str) -> int:
    knob = Knob("int", "CPU threads", low=1, high=1024)
    value = _value(knob, text)
    if not isinstance(value, int) or knob.problem_with("threads", value):
        raise argparse.ArgumentTypeError(f"must be {knob.rule}, got {text!r}")
    return value


def _obstacle_to(path: Path) -> str | None:
    """Why a checkpoint cannot be kept at this path, found out before training rather than after its first epoch."""
    try:
        if path.exists() and not path.is_file():
            return f"must be a file, and {path} is none"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
        if path.exists():
            path.open("rb").close()
    except OSError as error:
        return f"cannot keep a file at {path}: {error.strerror}"
    return None


def _discard_output() -> None:
    """Sends what is still buffered for stdout to nowhere, so that the interpreter's last flush has nothing to say."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _value(knob: Knob | None, text: str) -> Scalar:
    """The text as the knob's kind; as it stands where it cannot be read so, for the knob's own check to refuse."""
    if knob is None or knob.kind == "str" or text in knob.choices:
        return text
    try:
        return int(text) if knob.kind == "int" else float(text)
    except ValueError:
        return text


def _run(config: TrainConfig, program: str, *, as_json: bool, threads: int | None, path: Path | None) -> int:
    from trainers import checkpoint  # torch, which --help and a bad setting need not wait for
    from trainers.datasets import DatasetUnavailableError
    from trainers.loop import DeviceUnavailableError, NotFiniteError, OtherRunError, Training

    try:
        training = Training(config, threads=threads)
        if path is not None and path.exists():
            state = checkpoint.load(path)
            saved = state.get("config") or state.get("configuration") or {}  # the latter where the service has saved it
            if others := _other_settings(saved, config):
                print(f"{program}: {path} is of another configuration: {others}", file=sys.stderr)
                return 2
            try:
                training.load_state_dict(state["training"])
            except OtherRunError as error:
                print(f"{program}: {path}: {error}", file=sys.stderr)
                return 2
        if training.epochs_done >= config.epochs:
            print(f"{program}: {path}: all {config.epochs} epochs are done", file=sys.stderr)
        elif not as_json:
            print(_header(config), flush=True)
        while training.epochs_done < config.epochs:
            result = training.next_result()
            # What is cut between the two is trained and printed again; the other way round its line would be lost.
            print(_json_line(result) if as_json else _table_line(config, result), flush=True)
            if path is not None:
                checkpoint.save({"config": config.to_mapping(), "training": training.state_dict()}, path)
    except InvalidTrainConfigError as error:
        _print_problems(error, program)
        return 2
    except (
        NotFiniteError,
        DatasetUnavailableError,
        DeviceUnavailableError,
        checkpoint.DamagedCheckpointError,
    ) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


def _other_settings(saved: Mapping[str, object], config: TrainConfig) -> str:
    """What a checkpoint's configuration has otherwise, but for the device: the service says "cpu" without a GPU."""
    own = {name: value for name, value in config.to_mapping().items() if name != "device"}
    others = [name for name in own if saved.get(name) != own[name]]
    more = f"; and {len(others) - _MOST_NAMED} others" if len(others) > _MOST_NAMED else ""
    said = (f"{name} is {saved.get(name)!r} there and {own[name]!r} here" for name in others[:_MOST_NAMED])
    return "; ".join(said) + more


def _json_line(result: EpochResult) -> str:
    return json.dumps({"epoch": result.epoch, **result.metrics})


def _header(config: TrainConfig) -> str:
    return "  ".join(("epoch", *(f"{name:>{_width(name)}}" for name in _columns(config))))


def _table_line(config: TrainConfig, result: EpochResult) -> str:
    cells = [f"{result.metrics[name]:>{_width(name)}.4g}" for name in _columns(config)]
    line = "  ".join((f"{result.epoch:>5}", *cells))
    once = set(reported_metrics(config.to_mapping())) - set(epoch_metrics(config.to_mapping()))
    at_the_end = [f"{name} {value:.4g}" for name, value in result.metrics.items() if name in once]
    return "\n".join((line, *at_the_end))


def _columns(config: TrainConfig) -> list[str]:
    return [name for name in _COLUMNS if name in epoch_metrics(config.to_mapping())]


def _width(name: str) -> int:
    return max(len(name), 9)


if __name__ == "__main__":
    sys.exit(main())
