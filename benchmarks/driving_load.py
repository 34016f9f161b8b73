"""Drivers that write results at a fixed rate, each a process, as ten studies at a time would."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event, Semaphore
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.filled_store import a_spec
from service.errors import LeaseLostError, SamstudyError
from service.spec import parse_spec
from service.store import tables
from service.store.database import Database
from service.store.driving import DrivingStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import AttemptStarted, EpochReported, Report, TrialEnded
from service.store.studies import NewStudy, StudyStore
from service.study import TrialState

EPOCHS = 10
_HEARTBEAT_S = 1.0
_LEASE_S = 60.0
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Driven:
    """What the drivers have done. writes_s: how long each of their transactions took, from when it was due."""

    sent: int
    found: int
    writes_s: list[float]
    errors: list[str]


@dataclass(frozen=True, slots=True)
class _Pace:
    """What one driver writes."""

    results_per_s: float
    metrics: list[str]


class Drivers:
    """Processes that record results into studies of their own."""

    def __init__(self, url: str, *, drivers: int, results_per_s: float, metrics: Sequence[str]) -> None:
        """results_per_s: of all drivers together."""
        self._url = url
        context = multiprocessing.get_context("spawn")
        self._answers: Queue[Any] = context.Queue()
        self._ready, self._begin, self._end = context.Semaphore(0), context.Event(), context.Event()
        self._studies = [self._study(number) for number in range(drivers)]
        pace = _Pace(results_per_s / drivers, list(metrics))
        self._processes = [
            context.Process(
                target=_drive, args=(url, study, pace, self._ready, self._begin, self._end, self._answers), daemon=True
            )
            for study in self._studies
        ]

    def start(self) -> None:
        """Returns once all are ready: on few cores it takes them a while to import what they need."""
        for process in self._processes:
            process.start()
        give_up_at = time.monotonic() + _PATIENCE_S
        for _ in self._processes:
            if not self._ready.acquire(timeout=max(0.0, give_up_at - time.monotonic())):
                raise SystemExit("a driver does not start")

    def begin(self) -> None:
        """Lets them write."""
        self._begin.set()

    def stop(self) -> Driven:
        """Returns once each has ended, with what the store holds of what it wrote."""
        self._end.set()
        answers = [self._answers.get(timeout=_PATIENCE_S) for _ in self._processes]
        for process in self._processes:
            process.join(_PATIENCE_S)
        return Driven(
            sent=sum(sent for sent, _, _ in answers),
            found=self._found(),
            writes_s=[seconds for _, writes_s, _ in answers for seconds in writes_s],
            errors=[error for _, _, error in answers if error],
        )

    def _study(self, number: int) -> str:
        spec = parse_spec(a_spec(f"driven-{number}", trials=10_000, epochs=EPOCHS))
        database = Database(self._url)
        try:
            new = NewStudy(spec.name, "", spec.labels, spec.to_mapping(), "operator", str(number))
            return StudyStore(database).create(new)[0].id
        finally:
            database.dispose()

    def _found(self) -> int:
        """Results of these studies in the store."""
        trials, results = tables.trials, tables.results
        query = select(func.count()).select_from(results.join(trials, trials.c.id == results.c.trial_id))
        database = Database(self._url)
        try:
            with database.reading() as connection:
                return int(connection.execute(query.where(trials.c.study_id.in_(self._studies))).scalar_one())
        finally:
            database.dispose()


def _drive(
    url: str, study_id: str, pace: _Pace, ready: Semaphore, may_begin: Event, must_end: Event, answers: Queue[Any]
) -> None:
    database = Database(url)
    writes_s: list[float] = []
    error = None
    try:
        claim = ReconcilingStore(database).claim(study_id, _LEASE_S)
        if claim is None:
            raise LeaseLostError(f"study {study_id} cannot be claimed")
        ready.release()
        may_begin.wait()
        _record(DrivingStore(database, study_id, claim.driver_attempt), pace, must_end, writes_s)
    except (SamstudyError, SQLAlchemyError) as raised:
        error = f"{study_id}: {raised!r}"
        ready.release()  # where it has not come so far
    finally:
        answers.put((len(writes_s), writes_s, error))
        database.dispose()


def _record(store: DrivingStore, pace: _Pace, must_end: Event, writes_s: list[float]) -> None:
    """One trial after the other, a transaction for each epoch, and the heartbeats between them."""
    begin = beat_at = time.perf_counter()
    number, waiting = 0, list[str]()
    while not must_end.is_set():
        due = begin + len(writes_s) / pace.results_per_s
        if time.perf_counter() >= beat_at:
            store.heartbeat(_LEASE_S)
            beat_at += _HEARTBEAT_S
        if not waiting:
            number += 1
            point = {"lambda": 0.5, "rho": number / 1e6}
            _, trials = store.add_configuration(point, str(number), (0, 1), last_known=number - 1)
            waiting = [trial.id for trial in trials]
        epoch = 1 + len(writes_s) % EPOCHS
        time.sleep(max(0.0, due - time.perf_counter()))
        reports: list[Report] = [] if epoch > 1 else [AttemptStarted(waiting[0], 1, "node-1")]
        reports.append(EpochReported(waiting[0], 1, epoch, dict.fromkeys(pace.metrics, 1 / (1 + len(writes_s)))))
        if epoch == EPOCHS:
            reports.append(TrialEnded(waiting.pop(0), 1, TrialState.SUCCEEDED, 0.5))
        store.record(reports)
        writes_s.append(time.perf_counter() - due)
