"""The page of an experiment, and the index of those that have been run, as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import yaml

from service.reproduction import ExperimentName, Scale
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.markdown import listed, table
from service.reproduction.provenance import Provenance

INDEX = "README.md"


def page(
    experiment: Experiment,
    report: Report,
    results: Mapping[str, StudyResults],
    *,
    command: str,
    provenance: Provenance,
) -> str:
    """What came out, what was run, and on what."""
    parts = [
        f"# {experiment.title}",
        experiment.about,
        "## What came out",
        report.body,
        *_failures(results),
        "## How it was run",
        table(["", ""], _facts(results, command, provenance), left=2),
        *(_spec(part, study) for part, study in results.items()),
    ]
    return "\n\n".join(parts) + "\n"


def index(present: Collection[str]) -> str:
    """The index of the folder. present: the names of the files in it."""
    rows = []
    for name in ExperimentName:
        found = [stem for stem in (str(name), f"{name}-{Scale.PAPER}") if f"{stem}.md" in present]
        links = " · ".join(f"[{stem}]({stem}.md)" for stem in found)
        rows.append([_WHAT[name], f"`samstudy reproduce {name}`", links or "not run yet"])
    return f"{_INDEX_HEAD}\n{table(['the paper has', 'command', 'what came out here'], rows, left=3)}\n{_INDEX_FOOT}"


def _facts(results: Mapping[str, StudyResults], command: str, provenance: Provenance) -> list[list[str]]:
    studies = list(results.values())
    began = min(study.study.started_at or study.study.created_at for study in studies)
    ended = max(study.ended_at for study in studies)
    trials = [trial for study in studies for trial in study.trials]
    training_s = sum(_seconds(trial.started_at, trial.finished_at) for trial in trials)
    return [
        ["command", f"`{command}`"],
        ["ended", f"{ended:%Y-%m-%d}"],
        ["took", f"{_duration(_seconds(began, ended))} ({len(trials)} trials, {_duration(training_s)} of training)"],
        ["machine", provenance.machine],
        ["versions", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())],
        ["studies", ", ".join(f"{part}: `{study.study.id}`" for part, study in results.items())],
    ]


def _failures(results: Mapping[str, StudyResults]) -> list[str]:
    missing = [f"{study.not_succeeded} of “{part}”" for part, study in results.items() if study.not_succeeded]
    return [f"Trials that did not succeed, and so are not in the numbers above: {listed(missing)}."] if missing else []


def _spec(part: str, results: StudyResults) -> str:
    """The spec without what every spec has by default, as it can be submitted again."""
    spec = results.spec()
    plain = spec.model_dump(mode="json", exclude_defaults=True, exclude={"labels"})
    for name, parameter in spec.space.parameters.items():
        plain["search_space"][name] = {"type": parameter.type, **plain["search_space"][name]}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return f"The spec of “{part}”:\n\n```yaml\n{text}```"


def _seconds(began: datetime | None, ended: datetime | None) -> float:
    return (ended - began).total_seconds() if began and ended else 0.0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


_WHAT = {
    ExperimentName.LAMBDA_SWEEP: "λ = 0, 0.1, …, 1 with full gradients",
    ExperimentName.CONSTANT_VS_DECREASING: "constant against decreasing steps",
    ExperimentName.IMPORTANCE: "uniform against importance sampling",
    ExperimentName.LAMBDA_RHO: "λ × ρ for deep networks",
}

_INDEX_HEAD = """\
# The paper's experiments, reproduced

What D. Oikonomou and N. Loizou report in “Sharpness-Aware Minimization: General Analysis and Improved Rates” (ICLR
2025, arXiv 2503.02225), run by this project. Each command submits its studies through the service (through the one
that runs, else through one of its own), and writes a page, a picture and an interactive page here and into MLflow. The
numbers and the sentences about them come from the results; nobody has edited them.
"""

_INDEX_FOOT = """
`--scale small`, the default, takes minutes on two CPU cores: the synthetic problems are those of the paper, the steps
fewer where a page says so, and the table is on other data with a smaller network. `--scale paper` is the published
setting; the table then needs GPUs. A command that was cut off goes on where it was; `--fresh` starts anew.
"""
