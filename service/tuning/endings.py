"""How a study ends, and what is said of it: by a limit of its budget, or because nothing is left to do."""

from __future__ import annotations

from dataclasses import dataclass

from service.spec_sections import Budget
from service.study import Reason, StudyState, TrialState
from service.tuning.decisions import Ending
from service.tuning.trial_progress import TrialProgress


@dataclass(slots=True)
class TrialCounts:
    """How many trials a study has, and how many of them ended in which way. diverged: they are no failures."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    diverged: int = 0

    def add(self, trial: TrialProgress) -> None:
        """Counts one more trial, and how it has ended where it has."""
        self.total += 1
        self.end(trial)

    def end(self, trial: TrialProgress) -> None:
        """Counts how one of the trials has ended."""
        self.succeeded += trial.state is TrialState.SUCCEEDED
        self.failed += trial.state is TrialState.FAILED
        self.diverged += trial.has_diverged


def ending_over_budget(budget: Budget, counts: TrialCounts, *, wallclock_s: float, gpu_hours: float) -> Ending | None:
    """The end of a study that has gone beyond a limit of its budget; None where it has not.

    Out of time it has succeeded where one of its trials has.
    """
    most = budget.max_failed_trials
    if most is not None and counts.failed > most:
        said = f"{counts.failed} trial{'s' * (counts.failed > 1)} failed, and budget.max_failed_trials is {most}"
        return Ending(StudyState.FAILED, Reason.TOO_MANY_FAILURES, said)
    for name, limit, spent in (
        ("max_wallclock_s", budget.max_wallclock_s, wallclock_s),
        ("max_gpu_hours", budget.max_gpu_hours, gpu_hours),
    ):
        if limit is not None and spent > limit:
            said = f"no trial succeeded within budget.{name} of {limit:g}"
            return settled(Ending(StudyState.FAILED, Reason.BUDGET_EXHAUSTED, said), counts)
    return None


def settled(decided: Ending, counts: TrialCounts) -> Ending:
    """A decided end as it is once nothing runs any more: a trial may have succeeded since it was decided."""
    if decided.reason is Reason.BUDGET_EXHAUSTED and counts.succeeded:
        return Ending(StudyState.SUCCEEDED, Reason.BUDGET_EXHAUSTED)
    return decided


def natural_ending(counts: TrialCounts, *, has_reached_target: bool, is_exhausted: bool) -> Ending:
    """The end of a study that has nothing left to do. is_exhausted: whether no point of its space is left."""
    if has_reached_target:
        return Ending(StudyState.SUCCEEDED, Reason.TARGET_REACHED)
    reason = Reason.SPACE_EXHAUSTED if is_exhausted else Reason.MAX_TRIALS
    if counts.succeeded or not counts.total:
        return Ending(StudyState.SUCCEEDED, reason)
    reason = Reason.TOO_MANY_FAILURES if counts.failed else reason
    return Ending(StudyState.FAILED, reason, _why_none_succeeded(counts))


def _why_none_succeeded(counts: TrialCounts) -> str:
    total, failed, diverged = counts.total, counts.failed, counts.diverged
    everyone = "the only one" if total == 1 else f"all {total}"
    if failed == total:
        return "every trial failed"
    if diverged == total:
        return f"no trial succeeded: {everyone} diverged, so lr or rho is too large"
    if not failed + diverged:
        return f"no trial succeeded: {everyone} {'was' if total == 1 else 'were'} stopped early"
    parts = [f"{failed} failed" * bool(failed), f"{diverged} diverged" * bool(diverged)]
    others = "the others were stopped early" * (failed + diverged < total)
    return f"no trial succeeded: of {total}, {', '.join(part for part in (*parts, others) if part)}"
