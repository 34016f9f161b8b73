"""Which configuration is better, in SQL over the summaries that each has in its row; `analysis.aggregation.rank` says
the same of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, case, func

from service.spec_sections import Mode
from service.store import records, tables
from service.store.paging import SortKey
from service.study import Configuration, Study

_columns = tables.configurations.c


def by_objective(mode: Mode) -> list[SortKey]:
    """The best first: complete ones, then those with any objective, by mean, spread and number."""
    return [
        SortKey(_flag(_columns.complete.is_(False)), int),
        SortKey(_flag(_columns.objective_mean.is_(None)), int),
        SortKey(func.coalesce(_columns.objective_mean, 0.0), float, descending=mode == "max"),
        SortKey(_flag(_columns.objective_std.is_(None)), int),
        SortKey(func.coalesce(_columns.objective_std, 0.0), float),
        SortKey(_columns.number, int),
    ]


def best_configuration(connection: Connection, study: Study) -> Configuration | None:
    """The best as `analysis.aggregation.best` has it; None where no trial has an objective."""
    objective = study.spec["objective"]
    if study.spec.get("confirm"):
        most = [_columns.confirmed_n.desc()]  # a mean over fewer fresh seeds than another's has not the same say
        confirmed = _first(connection, study, _columns.confirmed_n > 0, "confirmed", objective["mode"], most)
        if confirmed is not None:
            return confirmed
    complete = _first(connection, study, _columns.complete.is_(True), "objective", objective["mode"], [])
    if complete is not None:
        return complete
    most = [_columns.objective_n.desc()]
    return _first(connection, study, _columns.objective_n > 0, "objective", objective["mode"], most)


def most_seeds_first(mode: Mode) -> list[ColumnElement[Any]]:
    """By how many seeds have an objective, then by mean, spread and number, as the best are chosen to be confirmed."""
    return [_columns.objective_n.desc(), *_order("objective", mode)]


def _first(
    connection: Connection,
    study: Study,
    condition: ColumnElement[bool],
    name: Literal["objective", "confirmed"],
    mode: Mode,
    before: Sequence[ColumnElement[Any]],
) -> Configuration | None:
    row = connection.execute(
        records.selected(tables.configurations, Configuration)
        .where(_columns.study_id == study.id, condition)
        .order_by(*before, *_order(name, mode))
        .limit(1)
    ).one_or_none()
    return None if row is None else records.as_record(Configuration, row)


def _order(name: Literal["objective", "confirmed"], mode: Mode) -> list[ColumnElement[Any]]:
    mean, std = _columns[f"{name}_mean"], _columns[f"{name}_std"]
    return [mean.desc() if mode == "max" else mean.asc(), _flag(std.is_(None)), std, _columns.number]


def _flag(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)
