"""The API over a store of 1,000 studies and 100,000 trials, asked 50 times a second, alone and while ten drivers write.

    python -m benchmarks.api_load [--stores sqlite postgresql] [--seconds 60]

On SQLite and on a PostgreSQL server of its own (Debian's package `postgresql`). Needs the extras `load` and `postgres`,
four minutes for each store, and 3 GB of disk in the temporary folder. Exits with 1 where a request failed, a result
was lost, the API's memory was not flat, or the API alone missed a target of time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.driving_load import Driven, Drivers
from benchmarks.filled_store import LARGE_STUDY, OWNERS, FilledStore, Size, a_spec, fill
from benchmarks.processes import KINDS, api, as_autovacuum_leaves_it, empty_database
from service.store.database import Database
from trainers.config import defaults
from trainers.metrics import epoch_metrics

RATE = 50.0
DRIVERS = 10
RESULTS_PER_S = 100.0
READ_P99_MS = 50.0
POST_P99_MS = 150.0
FLAT = 0.02
"""By how much of itself the API's memory may grow from the second third of the load to the last: caches fill first."""
CALLERS = 50
WARM_UP_S = 10.0
"""Of the load, left out of the figures: the first requests compile what the others use."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one run of the load has measured. rss_mib: of the API, at each second of the load."""

    answers: list[dict[str, Any]]
    rss_mib: list[float]
    cpu_s: float
    driven: Driven | None


def main() -> None:
    """Prints a table for each store."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--stores", nargs="+", choices=KINDS, default=KINDS)
    arguments.add_argument("--seconds", type=float, default=60.0, help="of load that is measured, for each store")
    arguments.add_argument("--rate", type=float, default=RATE, help="requests a second")
    arguments.add_argument("--trials", type=int, default=Size().trials, help="in the store")
    options = arguments.parse_args()
    size = Size(trials=options.trials, trials_of_the_large_one=options.trials // 10)
    sound = True
    for store in options.stores:
        with tempfile.TemporaryDirectory(prefix="samstudy-load-") as folder, empty_database(store, Path(folder)) as url:
            began = time.monotonic()
            database = Database(url)
            filled = fill(database, size)
            database.dispose()
            as_autovacuum_leaves_it(url)
            print(f"\n{store}: filled in {time.monotonic() - began:.0f} s", flush=True)
            for drive in (False, True):
                loaded = load(url, filled, Path(folder), rate=options.rate, seconds=options.seconds, drive=drive)
                print(f"\n{store}, {f'while {DRIVERS} drivers write' if drive else 'the API alone'}")
                sound &= report(loaded)
    sys.exit(0 if sound else 1)


def load(url: str, filled: FilledStore, folder: Path, *, rate: float, seconds: float, drive: bool) -> Loaded:
    """Asks an API process over this store, and has drivers write into it meanwhile."""
    with api(url, folder) as (process, address):
        out = folder / "answers.json"
        plan = {
            "url": f"{address}/api/v1",
            "tokens": filled.tokens,
            "admin_token": filled.admin_token,
            "studies": filled.studies,
            "large_study": LARGE_STUDY,
            "large_owner": OWNERS[0],
            "spec": a_spec("posted", trials=90, epochs=10),
            "rate": rate,
            "seconds": seconds + WARM_UP_S,
            "seed": 0,
            "out": str(out),
        }
        metrics = epoch_metrics({**defaults(), "dataset": "digits"})
        drivers = Drivers(url, drivers=DRIVERS, results_per_s=RESULTS_PER_S, metrics=metrics) if drive else None
        if drivers:
            drivers.start()
            drivers.begin()
        used_before = process.cpu_times()
        rss_mib = _ask(plan, folder, process)
        used = process.cpu_times()
        driven = drivers.stop() if drivers else None
        cpu_s = used.user + used.system - used_before.user - used_before.system
        return Loaded(json.loads(out.read_text()), rss_mib, cpu_s, driven)


def report(loaded: Loaded) -> bool:
    """Prints what was measured; whether all of it is as it should be."""
    begin = min(answer["due_s"] for answer in loaded.answers) + WARM_UP_S
    measured = [answer for answer in loaded.answers if answer["due_s"] >= begin]
    kinds = sorted({answer["kind"] for answer in measured})
    print("| request | n | p50 ms | p95 | p99 | max | KiB |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in kinds:
        _row(kind, [answer for answer in measured if answer["kind"] == kind])
    reads = [answer for answer in measured if not answer["kind"].startswith("post")]
    posts = [answer for answer in measured if answer["kind"].startswith("post")]
    read_p99, post_p99 = _row("every read", reads), _row("every POST", posts)
    failed = [answer for answer in loaded.answers if not 200 <= answer["status"] < 300]
    late = max(answer["late_s"] for answer in measured)
    rss = loaded.rss_mib[round(WARM_UP_S) :]
    print(
        f"{len(loaded.answers)} requests, {len(failed)} failed {sorted({answer['status'] for answer in failed})}; "
        f"the generator was at most {1000 * late:.1f} ms late"
    )
    thirds = [statistics.fmean(rss[third * len(rss) // 3 : (third + 1) * len(rss) // 3]) for third in range(3)]
    print(f"API: RSS {' → '.join(f'{mib:.0f}' for mib in thirds)} MiB in thirds, {loaded.cpu_s:.1f} s of CPU")
    load_average = ", ".join(f"{load:.1f}" for load in psutil.getloadavg())
    print(f"machine: {os.cpu_count()} cores, {platform.machine()}, load average {load_average}", flush=True)
    sound = not failed and thirds[2] < (1 + FLAT) * thirds[1]
    if loaded.driven is None:
        sound &= read_p99 < READ_P99_MS and post_p99 < POST_P99_MS
    else:
        driven = loaded.driven
        sound &= driven.sent == driven.found and not driven.errors
        writes = [1000 * seconds for seconds in driven.writes_s]
        print(
            f"{DRIVERS} drivers recorded {driven.sent} results, the store has {driven.found}; from when one was due: "
            f"p50 {_percentile(writes, 50):.1f} ms, p99 {_percentile(writes, 99):.1f}, max {max(writes):.1f}"
        )
        for error in driven.errors:
            print(error)
    return sound


def _row(kind: str, answers: Sequence[dict[str, Any]]) -> float:
    """Prints a line of the table; its p99 in milliseconds."""
    times = [1000 * answer["seconds"] for answer in answers]
    p50, p95, p99 = (_percentile(times, percent) for percent in (50, 95, 99))
    size_kib = statistics.fmean(answer["bytes"] for answer in answers) / 1024
    print(f"| {kind} | {len(times)} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {max(times):.1f} | {size_kib:.1f} |")
    return p99


def _percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that this percentage of all values does not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def _ask(plan: dict[str, Any], folder: Path, process: psutil.Process) -> list[float]:
    """Runs locust over the plan; the API's memory meanwhile, in MiB, once a second."""
    (folder / "plan.json").write_text(json.dumps(plan))
    Path(plan["out"]).unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("arrivals.py")), "--headless"]
    command += ["--users", str(CALLERS), "--spawn-rate", str(CALLERS), "--only-summary", "--loglevel", "WARNING"]
    environment = os.environ | {"ARRIVALS": str(folder / "plan.json")}
    log = folder / "locust.log"
    with log.open("wb") as out:
        locust = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    rss_mib = []
    give_up_at = time.monotonic() + 2 * plan["seconds"] + 60
    while locust.poll() is None:
        if time.monotonic() > give_up_at:
            locust.kill()
        rss_mib.append(process.memory_info().rss / 2**20)
        time.sleep(1.0)
    if not Path(plan["out"]).exists():
        raise SystemExit(log.read_text()[-4_000:])
    return rss_mib


if __name__ == "__main__":
    main()
