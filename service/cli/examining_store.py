"""What `samstudy doctor` reads in the study store and tries on the storage; the service may be down meanwhile."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli.findings import Finding, Verdict, note, well, wrong
from service.errors import SamstudyError, StoreUnavailableError
from service.settings import Settings

if TYPE_CHECKING:
    from service.store.database import Database
    from service.store.watching import Sight, WatchingStore

LEAST_STORE_BYTES = 256 * 1024**2
MOST_SKEW_S = 2.0
MOST_IDLE_S = 600.0
MOST_LAG_S = 60.0
MOST_PENDING_S = 600.0

_STORAGE_TIMEOUT_S = 20.0
_STUDIES_SHOWN = 5
_START = "samstudy up starts everything on this machine, samstudy controller this process alone"


def missing_file(current: Settings) -> Path | None:
    """The file of a SQLite store that is not there yet; None also where nobody may look."""
    from service.store.database import sqlite_file

    file = sqlite_file(current.store_url)
    try:
        return file if file is not None and not file.exists() else None
    except OSError:
        return None


@contextmanager
def opened_store(current: Settings) -> Iterator[tuple[Database | None, list[Finding]]]:
    """The store where it can be read, and what is to be said of it. Looking at a SQLite store makes none."""
    from service.store.database import Database, sqlite_file

    if missing := missing_file(current):
        yield None, [wrong("store", f"{missing} is not there yet", "samstudy up (or samstudy migrate) makes it")]
        return
    file = sqlite_file(current.store_url)
    try:
        database = Database(current.store_url)
    except SamstudyError as error:
        yield None, [wrong("store", error.detail, "set SAMSTUDY_DATABASE_URL to the study store's address")]
        return
    try:
        findings = _store(database, file)
        yield (None if findings[0].verdict is Verdict.WRONG else database), findings
    finally:
        database.dispose()


def examine_work(store: WatchingStore) -> Iterator[Finding]:
    """Who leads, whose lease has run out, what waits and why, what MLflow and webhooks lack."""
    try:
        sight = store.look()
        yield _clock(sight)
        yield _controller(sight)
        yield from _drivers(sight)
        yield from _queue(sight, store)
        yield from _idle(sight, store)
        yield _export(sight)
        yield from _pending(sight)
        if sight.warned:
            said = f"{_count(sight.warned, 'running trial has', 'running trials have')} had a warning"
            yield note("trials", said, "samstudy show and the trials' logs say it: mostly a checkpoint not written")
    except StoreUnavailableError as error:
        yield wrong("store", error.detail, "look into the database's log")


def examine_storage(storage_uri: str) -> Finding:
    """Really writes: nothing else tells whether one can."""
    from service.storage import check_writable

    remedy = "set SAMSTUDY_STORAGE to a URI that drivers and workers can write to, with the access that it needs"
    outcome: list[Finding] = []

    def attempt() -> None:
        try:
            check_writable(storage_uri)
            outcome.append(well("storage", f"can be written to: {storage_uri}"))
        except (OSError, ValueError) as error:
            outcome.append(wrong("storage", f"{storage_uri}: {error}", remedy))

    trying = threading.Thread(target=attempt, daemon=True)
    trying.start()
    trying.join(_STORAGE_TIMEOUT_S)
    silent = wrong("storage", f"{storage_uri} does not answer within {_STORAGE_TIMEOUT_S:.0f} s", remedy)
    return outcome[0] if outcome else silent


def _store(database: Database, file: Path | None) -> list[Finding]:
    """The first finding is WRONG exactly where nothing can be read."""
    findings = [_schema(database, file)]
    if findings[0].verdict is Verdict.WELL:
        findings += _writing(database, file)
    if file and (free := shutil.disk_usage(file.parent).free) < LEAST_STORE_BYTES:
        said = f"{free / 1024**2:,.0f} MiB left on the disk of {file}"
        findings.append(wrong("store", said, "make room there: a full disk stops every study"))
    return findings


def _schema(database: Database, file: Path | None) -> Finding:
    try:
        database.check_schema()
    except StoreUnavailableError as error:
        if "newer version" in error.detail:
            remedy = "install the version of samstudy that the service runs, or a newer one"
        elif "samstudy migrate" in error.detail:
            remedy = "samstudy backup FILE, then samstudy migrate"
        elif file:
            remedy = "see that this user may read and write the file and its folder, and that the disk is not full"
        else:
            remedy = "start the database, or mend SAMSTUDY_DATABASE_URL"
        return wrong("store", error.detail, remedy)
    return well("store", f"answers ({f'SQLite, {file}' if file else 'PostgreSQL'}), and its schema is this version's")


def _writing(database: Database, file: Path | None) -> Iterator[Finding]:
    try:
        database.check_writable()
    except StoreUnavailableError as error:
        remedy = "make room, and let this user write to the store's file and its folder"
        yield wrong("store", error.detail, remedy if file else "make the database server take writes again")


def _clock(sight: Sight) -> Finding:
    skew_s = (sight.at - datetime.now(UTC)).total_seconds()
    if abs(skew_s) <= MOST_SKEW_S:
        return well("clock", "the store's and this machine's agree")
    said = f"the store's clock is {abs(skew_s):,.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    return note("clock", said, "run NTP on both; studies go by the store's clock, logs by the machines'")


def _controller(sight: Sight) -> Finding:
    lease = sight.controller
    if lease is not None and lease.seconds_left > 0:
        return well("controller", f"{lease.holder} leads")
    if lease is None:
        return wrong("controller", "none leads: queued studies do not start, and MLflow is not written", _START)
    said = f"none leads; {lease.holder} was the last one, its lease ran out {_duration(-lease.seconds_left)} ago"
    return wrong("controller", said, _START)


def _drivers(sight: Sight) -> Iterator[Finding]:
    if not sight.overdue_drivers:
        has = _count(sight.drivers, "study has a driver", "studies have a driver")
        yield well("drivers", f"{has}, none is overdue" if sight.drivers else "no study has one")
        return
    overdue_s = -(sight.driver_lease_s or 0.0)
    said = f"{sight.overdue_drivers} of {sight.drivers} overdue, the longest for {_duration(overdue_s)}"
    yield note("drivers", said, "a controller that leads replaces them within seconds; they go on from checkpoints")


def _queue(sight: Sight, store: WatchingStore) -> Iterator[Finding]:
    if not sight.queued.count:
        yield well("queue", "no study waits")
        return
    waiting = store.waiting_reasons(at_most=_STUDIES_SHOWN)
    for study_id, name, reason in waiting:
        yield note("queue", f"{study_id} ({name}) waits: {reason or 'no controller has looked at it yet'}")
    if sight.queued.count > len(waiting):
        said = f"{sight.queued.count - len(waiting):,} more wait, the oldest for {_duration(sight.queued.oldest_s)}"
        yield note("queue", said)


def _idle(sight: Sight, store: WatchingStore) -> Iterator[Finding]:
    """Studies whose drivers live and train nothing: mostly the cluster has no room, or they have no share."""
    if sight.idle.oldest_s <= MOST_IDLE_S:
        return
    for study_id, name, reason in store.waiting_reasons(at_most=_STUDIES_SHOWN, idle=True):
        yield note("idle", f"{study_id} ({name}) has a driver and trains nothing: {reason or 'it says no reason'}")
    said = f"{_count(sight.idle.count, 'study trains', 'studies train')} nothing, the longest for "
    remedy = "where nodes have room for it all the same: samstudy pause ID and resume ID give it another driver"
    yield note("idle", said + _duration(sight.idle.oldest_s), remedy)


def _export(sight: Sight) -> Finding:
    behind = sight.behind
    if not behind.count:
        return well("export", "MLflow shows every study as it is")
    said = f"MLflow lacks something of {_count(behind.count, 'study', 'studies')}, since {_duration(behind.oldest_s)}"
    if behind.oldest_s <= MOST_LAG_S:
        return well("export", said)
    return wrong("export", said, "see that MLflow answers, and look into the controller's log for what it refuses")


def _pending(sight: Sight) -> Iterator[Finding]:
    if sight.deliveries.oldest_s > MOST_PENDING_S:
        said = f"{sight.deliveries.count:,} messages wait, the oldest for {_duration(sight.deliveries.oldest_s)}"
        yield note("webhooks", said, "samstudy webhooks deliveries ID says what its receiver answers")
    if sight.removals.oldest_s > MOST_PENDING_S:
        said = f"{_count(sight.removals.count, 'deleted study has', 'deleted studies have')} left something behind, "
        said += f"the oldest for {_duration(sight.removals.oldest_s)}"
        yield note("removals", said, "look into the controller's log: the storage or MLflow does not let go of it")


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _duration(seconds: float) -> str:
    """Such as 41 s, 12 min, 3 h, 5 days."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
