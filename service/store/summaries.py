"""What the trials of a configuration say together, kept in its row, so that no reader has to read all trials."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, select, update

from service.analysis.aggregation import summarise
from service.store import tables
from service.study import Purpose, TrialState


def summarise_configurations(connection: Connection, configuration_ids: Collection[str]) -> None:
    """Brings these configurations' summaries up to date with their trials; the caller holds the study's lock."""
    table = tables.trials
    columns = (table.c.configuration_id, table.c.purpose, table.c.state, table.c.objective)
    rows = connection.execute(
        select(*columns).where(table.c.configuration_id.in_(configuration_ids)).order_by(table.c.seed)
    ).all()
    for configuration_id in configuration_ids:
        trials = [row for row in rows if row.configuration_id == configuration_id]
        search = [row for row in trials if row.purpose == Purpose.SEARCH]
        values = _objectives(search)
        connection.execute(
            update(tables.configurations)
            .where(tables.configurations.c.id == configuration_id)
            .values(
                complete=bool(search) and len(values) == len(search),
                **_columns("objective", values),
                **_columns("confirmed", _objectives([row for row in trials if row.purpose == Purpose.CONFIRM])),
            )
        )


def _objectives(trials: Collection[Any]) -> list[float]:
    return [
        row.objective
        for row in trials
        if row.state == TrialState.SUCCEEDED and row.objective is not None and math.isfinite(row.objective)
    ]


def _columns(name: str, values: list[float]) -> dict[str, float | None]:
    known = summarise(values) if values else None
    return {
        f"{name}_mean": known.mean if known else None,
        f"{name}_std": known.std if known else None,
        f"{name}_n": len(values),
    }
