"""What the trials of a configuration say together, kept in its row, so that no reader has to read all trials."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from service.analysis.aggregation import summarise
from service.analysis.counting import counted, is_whole
from service.store import tables
from service.store.records import in_parts
from service.study import Purpose


def summarise_configurations(connection: Connection, configuration_ids: Collection[str]) -> None:
    """Brings these configurations' summaries up to date with their trials; the caller holds the study's lock."""
    table, configurations = tables.trials, tables.configurations
    columns = (table.c.configuration_id, table.c.purpose, table.c.state, table.c.objective)
    for some in in_parts(sorted(configuration_ids)):
        trials: dict[str, list[Any]] = {configuration_id: [] for configuration_id in some}
        of_these = select(*columns).where(table.c.configuration_id.in_(some))
        for row in connection.execute(of_these.order_by(table.c.seed)):
            trials[row.configuration_id].append(row)
        summaries = [{"id_": configuration_id, **_summary(rows)} for configuration_id, rows in trials.items()]
        columns_of: dict[str, Any] = {name: bindparam(name) for name in summaries[0] if name != "id_"}
        connection.execute(
            update(configurations).where(configurations.c.id == bindparam("id_")).values(columns_of), summaries
        )


def _summary(trials: Collection[Any]) -> dict[str, Any]:
    search = [row for row in trials if row.purpose == Purpose.SEARCH]
    return {
        "complete": is_whole(search),
        **_columns("objective", counted(search)),
        **_columns("confirmed", counted(row for row in trials if row.purpose == Purpose.CONFIRM)),
    }


def _columns(name: str, values: list[float]) -> dict[str, float | None]:
    known = summarise(values) if values else None
    return {
        f"{name}_mean": known.mean if known else None,
        f"{name}_std": known.std if known else None,
        f"{name}_n": len(values),
    }
