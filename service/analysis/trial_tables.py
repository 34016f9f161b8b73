"""A study's trials as one table, one row each: CSV, JSON or Parquet, a few rows in memory at a time."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple

from search_spaces.parameters import CategoricalParameter, FloatParameter, Parameter
from service.study import Scalar

TableFormat = Literal["csv", "json", "parquet"]
ColumnKind = type[bool] | type[int] | type[float] | type[str]

POINT, METRIC = "point.", "metric."
"""Before the names of parameters and of metrics in flat tables: some are called the same."""

_ROWS_AT_A_TIME = 1_000


class TrialRow(NamedTuple):
    """One trial. attempts: how many it has had. metrics: of its last epoch."""

    trial_id: str
    number: int
    configuration_id: str
    configuration_number: int
    origin: str
    purpose: str
    seed: int
    point: dict[str, Scalar]
    state: str
    attempts: int
    epochs_done: int
    objective: float | None
    metrics: dict[str, float]
    note: str | None
    started_at: datetime | None
    finished_at: datetime | None
    mlflow_run_id: str | None


def point_kinds(parameters: Mapping[str, Parameter]) -> dict[str, ColumnKind]:
    """What the column of each parameter holds: text where its values are not of one kind, such as 0.5 and 1/t."""
    return {name: _kind(parameter) for name, parameter in parameters.items()}


def csv_table(rows: Iterable[TrialRow], points: Sequence[str], metrics: Sequence[str]) -> Iterator[bytes]:
    """UTF-8 with a line of names first; an empty cell is a value that is not there."""
    columns = [*_columns(points, metrics)]
    yield _lines([columns])
    for chunk in _chunks(rows):
        yield _lines([_text(value) for value in _flat(row, points, metrics)] for row in chunk)


def json_table(rows: Iterable[TrialRow]) -> Iterator[bytes]:
    """An array of objects, `point` and `metrics` being objects in them."""
    opened = False
    for chunk in _chunks(rows):
        lines = ",\n".join(json.dumps(_plain(row), ensure_ascii=False) for row in chunk)
        yield (f",\n{lines}" if opened else f"[{lines}").encode()
        opened = True
    yield b"]\n" if opened else b"[]\n"


def write_parquet(
    rows: Iterable[TrialRow], points: Mapping[str, ColumnKind], metrics: Sequence[str], file: BinaryIO
) -> None:
    """The table into the file, in groups of rows; null is a value that is not there."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    moment = pyarrow.timestamp("us", tz="UTC")
    of_fixed = {"number": int, "configuration_number": int, "seed": int, "attempts": int, "epochs_done": int}
    types = {name: moment if name.endswith("_at") else kinds[of_fixed.get(name, str)] for name in _FIXED}
    types["objective"] = kinds[float]
    types |= {f"{POINT}{name}": kinds[kind] for name, kind in points.items()}
    types |= {f"{METRIC}{name}": kinds[float] for name in metrics}
    schema = pyarrow.schema([(name, types[name]) for name in _columns(list(points), metrics)])
    with ParquetWriter(file, schema) as writer:
        for chunk in _chunks(rows):
            shaped = [
                row._replace(point={k: _as(points[k], v) for k, v in row.point.items() if k in points}) for row in chunk
            ]
            columns = zip(*(_flat(row, list(points), metrics) for row in shaped), strict=True)
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


_FIXED = [name for name in TrialRow._fields if name not in ("point", "metrics")]


def _columns(points: Sequence[str], metrics: Sequence[str]) -> Iterator[str]:
    """In the order of TrialRow, the parameters in the place of `point`, the metrics in that of `metrics`."""
    for name in TrialRow._fields:
        match name:
            case "point":
                yield from (f"{POINT}{parameter}" for parameter in points)
            case "metrics":
                yield from (f"{METRIC}{metric}" for metric in metrics)
            case _:
                yield name


def _flat(row: TrialRow, points: Sequence[str], metrics: Sequence[str]) -> Iterator[Any]:
    for field, value in zip(TrialRow._fields, row, strict=True):
        match field:
            case "point":
                yield from (row.point.get(name) for name in points)
            case "metrics":
                yield from (row.metrics.get(name) for name in metrics)
            case _:
                yield value


def _plain(row: TrialRow) -> dict[str, Any]:
    return {
        **{
            name: _text(value) if isinstance(value, datetime) else _finite(value)
            for name, value in row._asdict().items()
        },
        "metrics": {name: _finite(value) for name, value in row.metrics.items()},
    }


def _finite(value: Any) -> Any:
    """JSON has no other numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _chunks(rows: Iterable[TrialRow]) -> Iterator[list[TrialRow]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _ROWS_AT_A_TIME)):
        yield chunk


def _kind(parameter: Parameter) -> ColumnKind:
    if not isinstance(parameter, CategoricalParameter):
        return float if isinstance(parameter, FloatParameter) else int
    found = {type(choice) for choice in parameter.choices}
    if len(found) == 1:
        return found.pop()
    return float if found == {int, float} else str


def _as(kind: ColumnKind, value: Scalar) -> Scalar:
    return str(value) if kind is str else float(value) if kind is float else value
