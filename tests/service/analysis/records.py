"""Configurations and trials as the store would hand them out, for the tests of what is made of them."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any

from service.analysis.aggregation import ConfigurationResult, aggregate
from service.study import Configuration, Origin, Purpose, Scalar, Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LAMBDAS: tuple[Scalar, ...] = ("1-1/t", 1.0, "1/t", 0.5, 0.0)
RHOS = (0.2, 0.1)


def configuration(number: int, **point: Scalar) -> Configuration:
    return Configuration(
        id=f"s-{number}", study_id="s", number=number, point=point, origin=Origin.SEARCH, created_at=NOW
    )


def trial(
    of: Configuration,
    seed: int,
    objective: float | None,
    state: TrialState = TrialState.SUCCEEDED,
    *,
    purpose: Purpose = Purpose.SEARCH,
    **metrics: float,
) -> Trial:
    return Trial(
        id=f"{of.id}-{seed}",
        study_id="s",
        configuration_id=of.id,
        number=1,
        seed=seed,
        purpose=purpose,
        state=state,
        attempt=1,
        epochs_done=1,
        metrics=metrics,
        objective=objective,
        error=None,
        note=None,
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        mlflow_run_id=None,
    )


def results(points: list[dict[str, Any]], objectives: list[float]) -> list[ConfigurationResult]:
    """One configuration for each point, with seeds 0 and 1; the second is better by 0.01."""
    configurations = [configuration(number, **point) for number, point in enumerate(points, 1)]
    trials = [
        trial(of, seed, value + 0.01 * seed)
        for of, value in zip(configurations, objectives, strict=True)
        for seed in (0, 1)
    ]
    return aggregate(configurations, trials)


def grid(**others: list[Scalar]) -> list[dict[str, Any]]:
    """Five λ × two ρ × these."""
    rest = [dict(zip(others, values, strict=True)) for values in product(*others.values())]
    return [{"lambda": lam, "rho": rho, **other} for lam, rho, other in product(LAMBDAS, RHOS, rest)]
