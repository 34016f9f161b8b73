"""The files of a study's parent run: its spec, its results as a table, its surface as a picture and as a page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

import yaml

from service.analysis.aggregation import ConfigurationResult, Summary, best
from service.analysis.labelling import figure_title
from service.analysis.plots import heat_map_html, heat_map_png, profile_html, profile_png
from service.analysis.profile import profile
from service.analysis.surface import in_order_of_interest, surface
from service.spec import StudySpec
from service.study import Scalar, Study, TrialState


def spec_files(study: Study) -> dict[str, bytes]:
    """The spec as it was accepted, in both forms in which it can be submitted again."""
    return {
        "spec.yaml": yaml.safe_dump(study.spec, sort_keys=False, allow_unicode=True).encode(),
        "spec.json": _json(study.spec),
    }


def result_files(study: Study, spec: StudySpec, results: Sequence[ConfigurationResult]) -> dict[str, bytes]:
    """What the study found, by file name."""
    files = {"configurations.csv": configurations_csv(results).encode()}
    winner = best(results, spec.objective.mode)
    if winner:
        files["best_configuration.json"] = _json(winner.model_dump(mode="json"))
    return files | _figures(study, spec, results)


def _figures(study: Study, spec: StudySpec, results: Sequence[ConfigurationResult]) -> dict[str, bytes]:
    """The objective over the first two parameters, or over the only one."""
    metric, mode, parameters = spec.objective.metric, spec.objective.mode, spec.space.parameters
    title = figure_title(study.name, at=spec.objective.at)
    x, *others = in_order_of_interest(parameters)
    if not others:
        line = profile(results, metric=metric, mode=mode, name=x, parameter=parameters[x])
        return {f"{x}.png": profile_png(line, title=title), f"{x}.html": profile_html(line, title=title).encode()}
    y = others[0]
    shown = surface(results, metric=metric, mode=mode, parameters=parameters, x=x, y=y)
    return {
        f"{x}_{y}.png": heat_map_png(shown, title=title, metric=metric),
        f"{x}_{y}.html": heat_map_html(shown, title=title, metric=metric).encode(),
    }


def configurations_csv(results: Sequence[ConfigurationResult]) -> str:
    """One line for each configuration: point, trials by state, objective, its value for each seed, every metric.

    What ends in `_confirmed_mean` and its like, and the seeds after it, is over fresh seeds.
    """
    names = _union([list(result.configuration.point) for result in results])
    seeds = sorted({seed for result in results for seed in result.by_seed})
    fresh_seeds = sorted(
        {seed for result in results for seed in (*result.confirmed_by_seed, *result.confirmed_missing_by_seed)}
    )
    confirming = ["confirming_trials", *_columns("objective_confirmed")] if fresh_seeds else []
    metrics = _union([list(result.metrics) for result in results])
    confirmed_metrics = _union([list(result.confirmed_metrics) for result in results])
    states = [state for state in TrialState if any(state in result.trial_states for result in results)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["number", "id", *names, "complete", *(f"trials_{state.lower()}" for state in states)]
        + [*_columns("objective"), *(f"objective_seed_{seed}" for seed in seeds)]
        + [*confirming, *(f"objective_seed_{seed}" for seed in fresh_seeds)]
        + [column for metric in metrics for column in _columns(metric)]
        + [column for metric in confirmed_metrics for column in _columns(f"{metric}_confirmed")]
    )
    for result in results:
        row: list[Scalar | None] = [result.configuration.number, result.configuration.id]
        row += [result.configuration.point.get(name) for name in names]
        row += [result.complete, *(result.trial_states.get(state, 0) for state in states)]
        row += [*_cells(result.objective), *(result.by_seed.get(seed) for seed in seeds)]
        row += [*((result.confirming_trials, *_cells(result.confirmed)) if fresh_seeds else ())]
        row += [result.confirmed_by_seed.get(seed) for seed in fresh_seeds]
        row += [cell for metric in metrics for cell in _cells(result.metrics.get(metric))]
        row += [cell for metric in confirmed_metrics for cell in _cells(result.confirmed_metrics.get(metric))]
        writer.writerow(row)
    return out.getvalue()


def _columns(name: str) -> list[str]:
    return [f"{name}_{part}" for part in ("mean", "std", "n", "low", "high")]


def _cells(known: Summary | None) -> list[float | None]:
    return [known.mean, known.std, known.n, known.low, known.high] if known else [None] * 5


def _union(lists: Sequence[Sequence[str]]) -> list[str]:
    return list({name: None for names in lists for name in names})


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
