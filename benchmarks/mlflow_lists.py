"""The same questions to MLflow's search API, over as many runs, one after the other: lists, the best, a page, one run.

    python -m benchmarks.mlflow_lists [--stores sqlite postgresql] [--trials 100000]

Fills MLflow's tables by SQL with what the exporter would write (an experiment and a parent run for each study, a child
run for each trial), but for what these questions do not read: the history of the metrics, and most parameters. Asks
samstudy's API the same over its store. Takes some minutes for each store.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, MetaData, Table, create_engine, insert, select

from benchmarks.filled_store import LARGE_STUDY, OWNERS, Size, fill
from benchmarks.processes import KINDS, api, as_autovacuum_leaves_it, empty_database, mlflow
from service.store import tables
from service.store.database import Database

_AT_MOST_S = 30.0
_DEADLINE_S = 300.0
_AT_MOST = 50
_ROWS_AT_A_TIME = 5_000
_PARAMS = dict.fromkeys(("lr", "momentum", "batch_size", "epochs", "model", "dataset", "optimizer", "lambda"), "0.1")


def main() -> None:
    """Prints the median times of both for each store."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--stores", nargs="+", choices=KINDS, default=KINDS)
    arguments.add_argument("--trials", type=int, default=Size().trials)
    options = arguments.parse_args()
    size = Size(trials=options.trials, trials_of_the_large_one=options.trials // 10, epochs=1)
    for store in options.stores:
        with tempfile.TemporaryDirectory(prefix="samstudy-lists-") as name:
            folder = Path(name)
            (folder / "samstudy").mkdir()
            (folder / "mlflow").mkdir()
            with empty_database(store, folder / "samstudy") as url, empty_database(store, folder / "mlflow") as theirs:
                database = Database(url)
                filled = fill(database, size)
                database.dispose()
                with mlflow(theirs, folder / "mlflow"):
                    pass  # it makes its tables
                _copy(url, theirs)
                for one in (url, theirs):
                    as_autovacuum_leaves_it(one)
                with api(url, folder / "samstudy") as (_, address):
                    ours = _times(_ours(f"{address}/api/v1", filled.tokens[OWNERS[0]]))
                with mlflow(theirs, folder / "mlflow") as address:
                    other = _times(_theirs(address))
        print(f"\n{store}, {options.trials} trials in {size.studies} studies, medians in ms")
        print("| | samstudy | MLflow | ÷ |\n| --- | ---: | ---: | ---: |")
        for question, ms in ours.items():
            theirs_ms, above = (other[question], "") if other[question] < math.inf else (1000 * _DEADLINE_S, "> ")
            print(f"| {question} | {ms:.1f} | {above}{theirs_ms:.1f} | {above}{theirs_ms / ms:.1f} |", flush=True)


def _ours(url: str, token: str) -> dict[str, Callable[[], httpx.Response]]:
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=_DEADLINE_S)
    large = f"/studies/{LARGE_STUDY}"
    return {
        "an owner's newest 50 studies that succeeded": lambda: client.get("/studies?state=SUCCEEDED"),
        "100 of these trials": lambda: client.get(f"{large}/trials"),
        "one study": lambda: client.get(large),
        "the best of 10 % of all trials": lambda: client.get(f"{large}/best"),
    }


def _theirs(url: str) -> dict[str, Callable[[], httpx.Response]]:
    client = httpx.Client(base_url=f"{url}/api/2.0/mlflow", timeout=_DEADLINE_S)
    everywhere = [str(number) for number in range(1, Size().studies + 1)]

    def search(experiments: list[str], condition: str, order: str, at_most: int) -> httpx.Response:
        return client.post(
            "/runs/search",
            json={"experiment_ids": experiments, "filter": condition, "order_by": [order], "max_results": at_most},
        )

    parents = f"tags.`samstudy.owner` = '{OWNERS[0]}' and attributes.status = 'FINISHED'"
    best = "metrics.val_accuracy DESC"
    return {
        "an owner's newest 50 studies that succeeded": lambda: search(everywhere, parents, "start_time DESC", 50),
        "100 of these trials": lambda: search(["1"], "tags.`samstudy.trial` != ''", "start_time ASC", 100),
        "one study": lambda: client.get("/runs/get", params={"run_id": _run_id(LARGE_STUDY)}),
        "the best of 10 % of all trials": lambda: search(["1"], "tags.`samstudy.trial` != ''", best, 1),
    }


def _times(questions: dict[str, Callable[[], httpx.Response]]) -> dict[str, float]:
    """The median of each in milliseconds; each is asked twice before, or once in all where the answer takes long.

    inf is what has no answer in time. The server goes on working for it, so the dearest question comes last.
    """
    medians = {}
    for name, ask in questions.items():
        times = [_time_ms(ask)]
        give_up_at = time.monotonic() + _AT_MOST_S
        while (
            times[0] < 1000 * _AT_MOST_S
            and len(times) < 2 + _AT_MOST
            and (len(times) < 3 or time.monotonic() < give_up_at)
        ):
            times.append(_time_ms(ask))
        medians[name] = statistics.median(times[2:] or times)
    return medians


def _time_ms(ask: Callable[[], httpx.Response]) -> float:
    began = time.perf_counter()
    try:
        ask().raise_for_status()
    except httpx.ReadTimeout:
        return math.inf
    return 1000 * (time.perf_counter() - began)


def _run_id(name: str) -> str:
    return name.encode().hex()[:32].rjust(32, "0")


def _copy(store_url: str, mlflow_url: str) -> None:
    """Every study and trial of the store as a run of MLflow."""
    store, target = create_engine(store_url), create_engine(mlflow_url)
    theirs = MetaData()
    theirs.reflect(target)
    with store.connect() as connection:
        studies = connection.execute(select(tables.studies).order_by(tables.studies.c.created_at)).all()
    for number, study in enumerate(studies, 1):
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("runs", "tags", "params", "latest_metrics")}
        began_ms = round(study.created_at.timestamp() * 1000)
        experiment = {
            "experiment_id": number,
            "name": study.name,
            "artifact_location": f"mlflow-artifacts:/{number}",
            "lifecycle_stage": "active",
            "creation_time": began_ms,
            "last_update_time": began_ms,
        }
        parent = _run_id(study.id)
        identity = {"samstudy.study_id": study.id, "mlflow.user": study.owner}
        owner = {"samstudy.owner": study.owner, "samstudy.state": study.state, "mlflow.runName": study.name}
        _add(rows, number, parent, study.name, study.state, began_ms, {**identity, **owner}, {})
        with store.connect() as connection:
            query = select(tables.trials).where(tables.trials.c.study_id == study.id)
            for trial in connection.execute(query.order_by(tables.trials.c.number)):
                tags = {
                    **identity,
                    "samstudy.trial_id": trial.id,
                    "samstudy.trial": str(trial.number),
                    "samstudy.state": trial.state,
                    "samstudy.seed": str(trial.seed),
                    "mlflow.parentRunId": parent,
                    "mlflow.runName": trial.id,
                }
                _add(
                    rows,
                    number,
                    trial.mlflow_run_id,
                    trial.id,
                    trial.state,
                    began_ms + trial.number,
                    tags,
                    trial.metrics,
                )
        _insert(target, theirs.tables["experiments"], [experiment])
        for name, found in rows.items():
            _insert(target, theirs.tables[name], found)
    store.dispose()
    target.dispose()


def _add(
    rows: dict[str, list[dict[str, Any]]],
    experiment: int,
    run_id: str,
    name: str,
    state: str,
    began_ms: int,
    tags: dict[str, str],
    metrics: dict[str, float],
) -> None:
    """A run with its tags and its latest metrics."""
    rows["runs"].append(
        {
            "run_uuid": run_id,
            "name": name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "benchmark",
            "status": "FINISHED" if state in ("SUCCEEDED", "EARLY_STOPPED") else "FAILED",
            "start_time": began_ms,
            "end_time": began_ms + 60_000,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{experiment}/{run_id}/artifacts",
            "experiment_id": experiment,
        }
    )
    rows["tags"] += [{"key": key, "value": value, "run_uuid": run_id} for key, value in tags.items()]
    if metrics:
        rows["params"] += [{"key": key, "value": value, "run_uuid": run_id} for key, value in _PARAMS.items()]
    rows["latest_metrics"] += [
        {"key": key, "value": value, "timestamp": began_ms, "step": 10, "is_nan": False, "run_uuid": run_id}
        for key, value in metrics.items()
    ]


def _insert(engine: Engine, table: Table, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        for first in range(0, len(rows), _ROWS_AT_A_TIME):
            connection.execute(insert(table), rows[first : first + _ROWS_AT_A_TIME])


if __name__ == "__main__":
    main()
