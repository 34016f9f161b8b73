"""The page of an experiment, and the index of those that have been run, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import yaml

from service.reproduction import ExperimentName, Scale
from service.reproduction.catalog import experiment as experiment_of
from service.reproduction.experiment import Experiment, Report, StudyResults
from service.reproduction.markdown import listed, paragraph, table
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
        paragraph(f"**How much of the published setting this is**: {experiment.extent}. It took {_took(results)}."),
        "## What came out",
        report.body,
        *_failures(results),
        "## How it was run",
        table(["", ""], _facts(results, command, provenance), left=2),
        *(_spec(part, study) for part, study in results.items()),
    ]
    return "\n\n".join(parts) + "\n"


def pages_in(folder: Path) -> dict[str, str]:
    """The texts of the experiments' pages that are in the folder, by the experiment's name."""
    paths = [folder / f"{stem}.md" for name in ExperimentName for stem in _stems(name)]
    return {path.stem: path.read_text() for path in paths if path.is_file()}


def index(present: Mapping[str, str]) -> str:
    """The index of a folder with these pages, by name: what each leaves out, and how long it took as its page says."""
    rows = []
    for name in ExperimentName:
        links = [f"[{stem}]({stem}.md){_time_on(present[stem])}" for stem in _stems(name) if stem in present]
        extent = experiment_of(name, Scale.SMALL).extent
        rows.append([_WHAT[name], f"`samstudy reproduce {name}`", extent, " · ".join(links) or "not run yet"])
    head = ["the paper has", "command", "how much of it `--scale small` is", "what came out here, and how long it took"]
    return f"{_INDEX_HEAD}\n{table(head, rows, left=4)}\n{_INDEX_FOOT}"


def _stems(name: ExperimentName) -> tuple[str, str]:
    return str(name), f"{name}-{Scale.PAPER}"


def _time_on(page: str) -> str:
    """Such as `, 13 min`; empty for a page that does not say it."""
    found = re.search(r"^\| took \| ([^(|]+?) \(", page, re.MULTILINE)
    return f", {found[1]}" if found else ""


def _took(results: Mapping[str, StudyResults]) -> str:
    studies = list(results.values())
    began = min(study.study.started_at or study.study.created_at for study in studies)
    return _duration(_seconds(began, max(study.ended_at for study in studies)))


def _facts(results: Mapping[str, StudyResults], command: str, provenance: Provenance) -> list[list[str]]:
    trials = [trial for study in results.values() for trial in study.trials]
    training_s = sum(_seconds(trial.started_at, trial.finished_at) for trial in trials)
    ended = max(study.ended_at for study in results.values())
    return [
        ["command", f"`{command}`"],
        ["ended", f"{ended:%Y-%m-%d}"],
        ["took", f"{_took(results)} ({len(trials)} trials, {_duration(training_s)} of training)"],
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
`--scale small`, the default, fits two CPU cores. The figures are the whole of what was published, at either scale; the
table has other data and a smaller network. `--scale paper` is the published table but for what its page says, and needs
GPUs. The times are those of the pages, each of which names its machine. A command that was cut off goes on where it
was, and one that has ended answers with what was found, as long as the spec, the version and the sources of what trains
are the same; `--fresh` starts anew.

The authors' notebook has one more run, which is not of Unified SAM and has no command here: SGD, without an ascent, on
logistic regression (n = 200, d = 10, regulariser 1/n, Gaussian rows), with the step sizes of two earlier papers. A
problem of that size and regulariser is `dataset: logistic`, on which a study compares anything.
"""
