"""The controller: the loop that makes what runs match what the store says. One leads; others wait for its lease.

It starts a driver for every queued study, declares drivers lost whose lease ran out, ends cancelled studies whose
driver does not, and runs the exporter to MLflow in a thread of its own, so that neither delays the other.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from service.errors import SamstudyError, ServiceUnavailableError, StoreUnavailableError
from service.settings import Settings
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.reconciling import DriverClaim, ReconcilingStore
from service.store.studies import StudyStore
from service.tracking.exporter import Exporter
from service.tuning.jobs import DriverJobs

logger = logging.getLogger(__name__)

_LEASE_NAME = "controller"
_MAX_DRIVER_LOSSES = 5
_LONGEST_BACKOFF_S = 15.0


class Controller:
    """One controller; `holder` names it in the lease by which it leads."""

    def __init__(
        self,
        store: ReconcilingStore,
        jobs: DriverJobs,
        config: Settings,
        *,
        holder: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._config = config
        self._holder = holder
        self._clock = clock
        self._leads_until = float("-inf")

    @property
    def leads(self) -> bool:
        """Whether this controller surely leads: its lease, counted from before it asked for it, has not run out."""
        return self._clock() < self._leads_until

    def reconcile(self) -> None:
        """One look at the store. Raises StoreUnavailableError."""
        asked_at = self._clock()
        if not self._store.lead(_LEASE_NAME, self._holder, self._config.lease_s):
            self._leads_until = float("-inf")
            return
        self._leads_until = asked_at + self._config.lease_s
        for claim in self._store.overdue_drivers():
            self._replace(claim)
        self._end_overdue_cancels()
        self._start_queued()

    def resign(self) -> None:
        """Gives up the lead, so that another controller can take it at once."""
        self._leads_until = float("-inf")
        self._store.give_up_lead(_LEASE_NAME, self._holder)

    def _replace(self, claim: DriverClaim) -> None:
        """Declares a driver lost; its job is stopped first, in case it is merely silent and holds its workers."""
        try:
            self._jobs.stop(claim)
        except ServiceUnavailableError as error:
            logger.warning("study %s: %s", claim.study_id, error)
        study = self._store.lose_driver(claim, max_losses=_MAX_DRIVER_LOSSES)
        if study is not None:
            logger.warning("study %s lost driver %d; it is %s", claim.study_id, claim.driver_attempt, study.state)

    def _end_overdue_cancels(self) -> None:
        for cancel in self._store.cancelling():
            if (self._store.now() - cancel.requested_at).total_seconds() < self._config.cancel_grace_s:
                continue
            claim = DriverClaim(cancel.study_id, cancel.driver_attempt)
            try:
                self._jobs.stop(claim)
            except ServiceUnavailableError as error:
                logger.warning("study %s cannot be cancelled yet: %s", claim.study_id, error)
                continue
            self._store.cancel_now(claim)

    def _start_queued(self) -> None:
        queued = self._store.queued()
        if not queued:
            return
        try:
            self._jobs.check()
        except ServiceUnavailableError as error:
            self._store.set_waiting_reason(queued, str(error))
            return
        for study_id in queued:
            claim = self._store.claim(study_id, self._config.startup_lease_s)
            if claim is None:
                continue
            try:
                self._jobs.start(claim)
                logger.info("study %s: driver %d submitted", study_id, claim.driver_attempt)
            except ServiceUnavailableError as error:
                self._store.give_back(claim, str(error))


def run_controller(config: Settings) -> None:
    """Runs a controller until SIGTERM or SIGINT. Raises StoreUnavailableError where the schema is not current."""
    database = Database(config.store_url)
    database.check_schema()
    holder = f"{socket.gethostname()}:{os.getpid()}"
    jobs = DriverJobs(config.ray_jobs_url, token=config.ray_auth_token.get_secret_value())
    controller = Controller(ReconcilingStore(database), jobs, config, holder=holder)
    exporter = Exporter(
        ExportStore(database),
        StudyStore(database),
        config.mlflow_url,
        min_interval_s=config.export_interval_s,
    )
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def must_stop() -> bool:
        return stopping.is_set() or not controller.leads

    def export() -> None:
        while controller.leads and exporter.export_pending(must_stop).more:
            pass

    exporting = threading.Thread(target=_repeat, args=(export, stopping, config.poll_s), name="exporter", daemon=True)
    exporting.start()
    logger.info("controller %s runs", holder)
    _repeat(controller.reconcile, stopping, config.poll_s)
    exporting.join(timeout=config.lease_s)
    try:
        controller.resign()
    except StoreUnavailableError as error:
        logger.warning("%s", error)


def _repeat(action: Callable[[], object], stopping: threading.Event, period_s: float) -> None:
    """Does it again and again until told to stop; after an error less and less often, until it works again."""
    pause_s = period_s
    while not stopping.is_set():
        try:
            action()
            pause_s = period_s
        except SamstudyError as error:
            pause_s = min(2 * pause_s, _LONGEST_BACKOFF_S)
            logger.warning("%s; again in %.1f s", error, pause_s)
        except Exception:  # the outermost runner: a defect in one round must not end all the others
            pause_s = min(2 * pause_s, _LONGEST_BACKOFF_S)
            logger.exception("unexpected; again in %.1f s", pause_s)
        stopping.wait(pause_s)
