"""How fast results reach MLflow: the real exporter, a real server, from a store that MLflow shows nothing of yet.

    python -m benchmarks.export_rate [--stores sqlite postgresql] [--trials 300] [--epochs 10]

The databases hold the store and MLflow's runs. Counts the points in MLflow's own table afterwards; exits with 1 where
one is missing or the rate is below 500 a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil
from sqlalchemy import create_engine, func, select, text

from benchmarks.filled_store import Size, fill
from benchmarks.processes import KINDS, Kind, empty_database, mlflow
from service.store import tables
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.studies import StudyStore
from service.tracking.exporter import Exporter

METRICS_PER_S = 500.0


def main() -> None:
    """Prints the rate for each store."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--stores", nargs="+", choices=KINDS, default=KINDS)
    arguments.add_argument("--trials", type=int, default=300)
    arguments.add_argument("--epochs", type=int, default=10)
    options = arguments.parse_args()
    size = Size(
        studies=5,
        trials=options.trials,
        trials_of_the_large_one=options.trials // 2,
        epochs=options.epochs,
        confirmed=2,
    )
    sound = [_exports_in_time(store, size) for store in options.stores]
    sys.exit(0 if all(sound) else 1)


def _exports_in_time(store: Kind, size: Size) -> bool:
    with tempfile.TemporaryDirectory(prefix="samstudy-export-") as name:
        folder = Path(name)
        (folder / "mlflow").mkdir()
        with empty_database(store, folder) as url, empty_database(store, folder / "mlflow") as theirs:
            database = Database(url)
            fill(database, size)
            points = _forget(database)
            with mlflow(theirs, folder / "mlflow") as address:
                exporter = Exporter(ExportStore(database), StudyStore(database), address, min_interval_s=0.0)
                began = time.monotonic()
                while ExportStore(database).behind():
                    report = exporter.export_pending()
                    if report.refused:
                        raise SystemExit(f"not exported: {report.refused}")
                elapsed_s = time.monotonic() - began
            database.dispose()
            found = _points(theirs)
    rate = points / elapsed_s
    load_average = ", ".join(f"{load:.1f}" for load in psutil.getloadavg())
    print(
        f"{store}: {points} metrics of {size.trials} trials of {size.epochs} epochs in {elapsed_s:.1f} s, "
        f"{rate:.0f} metrics/s, {size.trials / elapsed_s:.1f} trials/s; MLflow has {found} of them; "
        f"load average {load_average}",
        flush=True,
    )
    return found == points and rate >= METRICS_PER_S


def _forget(database: Database) -> int:
    """Makes MLflow lack every study; how many points it lacks."""
    with database.reading() as connection:
        studies = list(connection.execute(select(tables.studies.c.id)).scalars())
        points = sum(len(metrics) for metrics in connection.execute(select(tables.results.c.metrics)).scalars())
    for study in studies:
        ExportStore(database).forget(study)
    return points


def _points(mlflow_url: str) -> int:
    """Points in the child runs that MLflow has; the parent runs have metrics of their own."""
    engine = create_engine(mlflow_url)
    runs = "SELECT run_uuid FROM tags WHERE key = 'samstudy.trial_id'"
    with engine.connect() as connection:
        found = connection.execute(
            select(func.count()).select_from(text("metrics")).where(text(f"run_uuid IN ({runs})"))
        )
        count = int(found.scalar_one())
    engine.dispose()
    return count


if __name__ == "__main__":
    main()
