"""The text that a person reads first on a study's page in MLflow, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from service.analysis.aggregation import ConfigurationResult, best, rank
from service.analysis.labelling import Unit, lost_confirmation, ordering, symbol, unit_of, value_label
from service.spec import StudySpec
from service.study import Study, TrialState
from service.tracking.limits import MAX_TAG

_ROWS = 10


def summary(study: Study, spec: StudySpec, results: Sequence[ConfigurationResult]) -> str:
    """Description, state, best configuration and the ten best configurations as a table."""
    metric, mode = spec.objective.metric, spec.objective.mode
    known = [result for result in results if result.objective]
    unit = unit_of(metric, [result.objective for result in known if result.objective])
    parts = [study.description.strip()] if study.description.strip() else []
    parts.append(_state(study, results))
    winner = best(results, mode)
    if winner and winner.objective:
        point = ", ".join(
            f"{symbol(name)} = {value_label(value)}" for name, value in winner.configuration.point.items()
        )
        score = f"{unit.mean_and_std(winner.objective)} (n = {winner.objective.n})"
        if winner.confirmed:
            confirmed = f"{unit.mean_and_std(winner.confirmed)} (n = {_confirmed(winner, unit)[1]})"
            score = f"{confirmed} on seeds that the search never saw, {score} in the search"
        if lost := lost_confirmation(winner):
            score += f"{'' if winner.confirmed else ' in the search'}. Confirmation: {lost}."
        at = ", best epoch," if spec.objective.at == "best" else ""
        parts.append(f"**Best: {_escaped(point)}** – {_escaped(metric)}{unit.suffix}{at} {score}")
    if known:
        ranked = sorted(known, key=lambda result: rank(result, mode))
        parts.append(_table(ranked[:_ROWS], list(spec.space.parameters), metric, unit))
        shown = f"the best {_ROWS} of {len(known)}, " if len(known) > _ROWS else ""
        parts.append(f"Mean ± standard deviation over n seeds; {shown}{ordering(mode)}.")
    return _joined(parts)


def _state(study: Study, results: Sequence[ConfigurationResult]) -> str:
    counts = {state: sum(result.trial_states.get(state, 0) for result in results) for state in TrialState}
    trials = ", ".join(f"{count} {_words(state)}" for state, count in counts.items() if count) or "none yet"
    reason = f" ({_words(study.reason)})" if study.reason else ""
    return f"Study `{study.id}` – **{_words(study.state)}**{reason}. Trials: {trials}."


def _table(results: Sequence[ConfigurationResult], names: Sequence[str], metric: str, unit: Unit) -> str:
    are_confirmed = any(result.confirmed or lost_confirmation(result) for result in results)
    head = [*(symbol(name) for name in names), f"{metric}{unit.suffix}", "n", "95 % interval"]
    head += ["confirmed", "n"] if are_confirmed else []
    lines = [_row(head), _row(["---"] * len(names) + ["---:"] * (len(head) - len(names)))]
    for result in results:
        objective = result.objective
        if objective is None:
            continue
        interval = "–"
        if objective.low is not None and objective.high is not None:
            interval = f"{unit.number(objective.low)} – {unit.number(objective.high)}"
        values = [value_label(result.configuration.point.get(name)) for name in names]
        shown = [*values, unit.mean_and_std(objective), str(objective.n), interval]
        lines.append(_row([*shown, *(_confirmed(result, unit) if are_confirmed else ())]))
    return "\n".join(lines)


def _confirmed(result: ConfigurationResult, unit: Unit) -> tuple[str, str]:
    """The mean on fresh seeds and its n: 2/3 where a trial of three failed, or trains."""
    n = 0 if result.confirmed is None else result.confirmed.n
    mean = "–" if result.confirmed is None else unit.mean_and_std(result.confirmed)
    shown = f"{n}/{result.confirming_trials}" if n < result.confirming_trials else str(n)
    return (mean, shown if result.confirming_trials else "–")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if cell.startswith("---") else _escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\|*_`<[" else letter for letter in " ".join(text.split()))


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _joined(parts: Sequence[str]) -> str:
    """The parts, the last ones left out where they would not fit: half a table is none."""
    shown = parts[0][:MAX_TAG]
    for part in parts[1:]:
        if len(shown) + len(part) + 2 > MAX_TAG:
            break
        shown += f"\n\n{part}"
    return shown
