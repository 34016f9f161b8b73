"""The controller: the loop that makes what runs match what the store says. One leads; others wait for its lease.

It starts drivers for queued studies, declares drivers lost whose lease ran out, ends cancelled studies whose driver
does not, and tells running studies their shares of the cluster. The exporter to MLflow and other slow work run in
threads of their own, so that none delays the others.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from service import logs
from service.errors import SamstudyError, ServiceUnavailableError, StoreUnavailableError
from service.notifying.sender import Sender, SenderOptions
from service.removing import Remover
from service.settings import Settings
from service.shares import fair_shares
from service.store.database import Database
from service.store.delivering import DeliveringStore
from service.store.exporting import ExportStore, Lead
from service.store.reconciling import DriverClaim, PendingCancel, ReconcilingStore
from service.store.removals import RemovalStore
from service.store.studies import StudyStore
from service.store.tidying import TidyingStore
from service.store.watching import CONTROLLER_LEASE
from service.tidying import Tidier
from service.tracking.exporter import Exporter
from service.tracking.leftovers import LeftRuns
from service.tuning.jobs import DriverJobs

logger = logging.getLogger(__name__)

_MAX_DRIVER_LOSSES = 5
_LONGEST_BACKOFF_S = 15.0
_FIRST_START_PAUSE_S, _LONGEST_START_PAUSE_S = 1.0, 60.0
_CANCEL_PAUSE_S, _LONGEST_CANCEL_S = 2.0, 600.0
"""Between two looks at drivers that do not end; after how long one whose lease is over is taken for gone."""

_STOOD_STILL = 0.5  # of a lease: a driver that stood still as long has too little left of its own to be judged by

_STOPPING_S = 4.0  # for what is under way when the process is to end; what does not end in it is done again


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A start that the cluster refused, and when the next one is due, `pause_s` after it."""

    again_at: float
    pause_s: float


def since_boot_s() -> float:
    """Seconds, those in which the machine slept among them; unlike the time of day nobody sets them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def asleep_since_boot_s() -> float:
    """Seconds in which the machine slept, since it was started."""
    return since_boot_s() - time.monotonic()


class Controller:
    """One controller; `holder` names it in the lease by which it leads.

    term: how often it has begun to lead; between two terms others may have led. clock: like `since_boot_s`, because a
    lease runs out while the machine of its holder sleeps. asleep: like `asleep_since_boot_s`.
    """

    def __init__(
        self,
        store: ReconcilingStore,
        jobs: DriverJobs,
        config: Settings,
        *,
        holder: str,
        clock: Callable[[], float] = since_boot_s,
        asleep: Callable[[], float] = asleep_since_boot_s,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._config = config
        self._holder = holder
        self._clock = clock
        self._asleep = asleep
        self._asleep_s = asleep()  # when it last judged drivers
        self._leads_until = float("-inf")
        self.term = 0
        self._share_again_at = float("-inf")
        self._cancel_again_at = float("-inf")
        self._refusals: dict[str, _Refusal] = {}
        self._starts_unconfirmed = False
        self._in_contact_since: float | None = None

    @property
    def leads(self) -> bool:
        """Whether this controller surely leads: its lease, counted from before it asked for it, has not run out."""
        return self._clock() < self._leads_until

    def reconcile(self) -> None:
        """One look at the store. Raises StoreUnavailableError."""
        asked_at = self._clock()
        try:
            leads = self._store.lead(CONTROLLER_LEASE, self._holder, self._config.lease_s)
        except StoreUnavailableError:
            self._in_contact_since = None
            raise
        if self._in_contact_since is None:
            self._in_contact_since = self._clock()
        if leads and not self.leads:
            self.term += 1
            self._starts_unconfirmed = True
        self._leads_until = asked_at + self._config.lease_s if leads else float("-inf")
        if not leads:
            return
        self._confirm_starts()
        overdue, cancelling = self._overdue_drivers(), self._store.cancelling()
        being_cancelled = {cancel.study_id for cancel in cancelling}
        for claim in overdue:
            if claim.study_id in being_cancelled:
                continue
            with logs.about(study_id=claim.study_id, driver_attempt=claim.driver_attempt):
                self._replace(claim)
        self._end_cancelled(cancelling, overdue)
        self._start_queued()
        self._share()

    def stood_still(self, seconds: float) -> None:
        """Hears how long the machine has slept or the process was stopped: drivers beside it may have been, too."""
        if seconds > _STOOD_STILL * self._config.lease_s:
            logger.warning("the controller stood still for %.0f s; drivers have time to renew their leases", seconds)
            self._in_contact_since = None

    def resign(self) -> None:
        """Gives up the lead, so that another controller can take it at once."""
        self._leads_until = float("-inf")
        self._store.give_up_lead(CONTROLLER_LEASE, self._holder)

    def _confirm_starts(self) -> None:
        """Tells of drivers that live although the controller which started them could not say so any more."""
        if not self._starts_unconfirmed:
            return
        unconfirmed = self._store.unconfirmed_starts()
        for start in unconfirmed:
            if start.lives:
                self._store.confirm_start(start.claim)
        self._starts_unconfirmed = bool(unconfirmed)

    def _overdue_drivers(self) -> list[DriverClaim]:
        """Drivers whose lease ran out while they could have renewed it.

        While the store did not answer they could not, nor while the machine slept; back again, they get the time of a
        lease, or what they have still to report, finished trials among it, would be refused.
        """
        for claim in self._store.shorten_leases(self._config.lease_s):
            said = {"study_id": claim.study_id, "driver_attempt": claim.driver_attempt}
            message = "study %s: the store's clock went back; driver %d has %.0f s to renew its lease"
            logger.warning(message, claim.study_id, claim.driver_attempt, self._config.lease_s, extra=said)
        asleep_s = self._asleep()
        if asleep_s - self._asleep_s > _STOOD_STILL * self._config.lease_s:  # perhaps in the midst of this look
            self.stood_still(asleep_s - self._asleep_s)
        self._asleep_s = asleep_s
        since = self._in_contact_since
        just_back = since is None or self._clock() - since < self._config.lease_s
        return self._store.overdue_drivers(given_up=just_back)

    def _replace(self, claim: DriverClaim) -> None:
        """Declares a driver lost; its job is stopped first, in case it is merely silent and holds its workers."""
        try:
            self._jobs.stop(claim)
        except ServiceUnavailableError as error:
            logger.warning("study %s: %s", claim.study_id, error)
        study = self._store.lose_driver(claim, max_losses=_MAX_DRIVER_LOSSES)
        if study is not None:
            logger.warning("study %s lost driver %d; it is %s", claim.study_id, claim.driver_attempt, study.state)

    def _end_cancelled(self, cancelling: list[PendingCancel], overdue: list[DriverClaim]) -> None:
        """Ends cancelled studies whose driver does not, each once its job has ended: nothing may outlive a cancel.

        Where the cluster cannot say so for long, a driver without a lease is taken for gone. overdue: those.
        """
        if self._clock() < self._cancel_again_at:
            return
        answers = True
        for cancel in cancelling:
            age_s = (self._store.now() - cancel.requested_at).total_seconds()
            if 0 <= age_s < self._config.cancel_grace_s:
                continue
            claim = DriverClaim(cancel.study_id, cancel.driver_attempt)
            said = {"study_id": claim.study_id, "driver_attempt": claim.driver_attempt}
            has_ended = False
            try:
                has_ended = answers and self._jobs.stop(claim)
            except ServiceUnavailableError as error:
                answers = False  # nor will it to the next question, and each takes its time
                logger.warning("study %s cannot be cancelled yet: %s", claim.study_id, error, extra=said)
            if not has_ended:
                self._cancel_again_at = self._clock() + _CANCEL_PAUSE_S
                if claim not in overdue or age_s < _LONGEST_CANCEL_S:
                    continue
                message = "study %s is cancelled although its job may be there: its driver has been silent for long"
                logger.warning(message, claim.study_id, extra=said)
            self._store.cancel_now(claim)

    def _start_queued(self) -> None:
        everyone = self._store.queued()
        self._refusals = {
            study.study_id: refusal for study in everyone if (refusal := self._refusals.get(study.study_id))
        }
        queued = [study for study in everyone if not self._rests(study.study_id)]
        if not queued:
            return
        try:
            self._jobs.check()
        except ServiceUnavailableError as error:
            self._store.set_waiting_reason([study.study_id for study in queued], logs.redacted(str(error)))
            return
        running = Counter(study.demand.owner for study in self._store.driven())
        while queued and running.total() < self._config.max_running_studies:
            study = min(queued, key=lambda study: running[study.owner])  # of equal ones the oldest
            queued.remove(study)
            if self._start(study.study_id):
                running[study.owner] += 1
        if queued:
            reason = f"{running.total()} studies run, as many as may at a time; it is among the {len(queued)} that wait"
            self._store.set_waiting_reason([study.study_id for study in queued], reason)

    def _rests(self, study_id: str) -> bool:
        """Whether the study's last start was refused so lately that another one would only be refused too."""
        refusal = self._refusals.get(study_id)
        return refusal is not None and self._clock() < refusal.again_at

    def _start(self, study_id: str) -> bool:
        claim = self._store.claim(study_id, self._config.startup_lease_s)
        if claim is None:
            return False
        self._starts_unconfirmed = True
        said = {"study_id": study_id, "driver_attempt": claim.driver_attempt}
        try:
            self._jobs.start(claim)
        except ServiceUnavailableError as error:
            self._store.give_back(claim, logs.redacted(str(error)))
            before = self._refusals.get(study_id)
            pause_s = min(2 * before.pause_s, _LONGEST_START_PAUSE_S) if before else _FIRST_START_PAUSE_S
            self._refusals[study_id] = _Refusal(self._clock() + pause_s, pause_s)
            message = "study %s: driver %d cannot be started: %s; again in %.0f s"
            logger.warning(message, study_id, claim.driver_attempt, error, pause_s, extra=said)
            return False
        self._refusals.pop(study_id, None)
        self._store.confirm_start(claim)
        logger.info("study %s: driver %d submitted", study_id, claim.driver_attempt, extra=said)
        return True

    def _share(self) -> None:
        """Tells the running studies their shares, now and then: the cluster or what they want may have changed."""
        if self._clock() < self._share_again_at:
            return
        self._share_again_at = self._clock() + self._config.share_interval_s
        studies = self._store.driven()
        if len(studies) < 2 and all(study.slots is None for study in studies):
            return
        try:
            nodes = self._jobs.nodes()
        except ServiceUnavailableError as error:
            logger.warning("shares stay as they are: %s", error)
            return
        shares = fair_shares([study.demand for study in studies], nodes)
        before = {study.demand.study_id: study.slots for study in studies}
        changed = {study_id: slots for study_id, slots in shares.items() if slots != before[study_id]}
        if changed:
            self._store.set_slots(changed)


def run_controller(config: Settings) -> None:
    """Runs a controller until SIGTERM or SIGINT. Raises StoreUnavailableError where the schema is not current.

    It ends soon after, whoever does not answer: what is under way has `_STOPPING_S`. Where a thread hangs longer the
    process ends with it, for it must not go on once another controller leads.
    """
    database = Database(config.store_url)
    database.check_schema()
    # Containers that share the host's network have its name, and each of them may be process 1.
    holder = f"{socket.gethostname()}-{secrets.token_hex(4)}:{os.getpid()}"
    jobs = DriverJobs(config.ray_jobs_url, token=config.ray_auth_token.get_secret_value())
    controller = Controller(ReconcilingStore(database), jobs, config, holder=holder)
    exporter = Exporter(
        ExportStore(database, Lead(CONTROLLER_LEASE, holder)),
        StudyStore(database),
        config.mlflow_url,
        min_interval_s=config.export_interval_s,
    )
    sender = Sender(
        DeliveringStore(database),
        study_url=lambda study_id: f"{config.api_url}/api/v1/studies/{study_id}",
        options=SenderOptions(allow_private=config.allow_private_webhooks),
    )
    remover = Remover(RemovalStore(database), LeftRuns(config.mlflow_url), config.storage_uri)
    tidier = Tidier(TidyingStore(database), config.storage_uri)
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def must_stop() -> bool:
        return stopping.is_set() or not controller.leads

    exporting_since = 0

    def export() -> None:
        nonlocal exporting_since
        if controller.leads and controller.term != exporting_since:
            exporting_since = controller.term
            exporter.start_over()
        while controller.leads and exporter.export_pending(must_stop).more:
            pass

    actions = {
        "reconciler": controller.reconcile,
        "exporter": export,
        "sender": lambda: sender.send_due(must_stop),
        "remover": lambda: remover.carry_out(must_stop),
        "tidier": lambda: tidier.tidy(must_stop),
    }
    hearing = {"reconciler": {"stood_still": controller.stood_still}}
    threads = [
        threading.Thread(
            target=_repeat, args=(action, stopping, config.poll_s), kwargs=hearing.get(name), name=name, daemon=True
        )
        for name, action in actions.items()
    ]
    for thread in threads:
        thread.start()
    logger.info("controller %s runs", holder)
    stopping.wait()
    give_up_at = time.monotonic() + _STOPPING_S
    for thread in threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    sender.wait(max(0.0, give_up_at - time.monotonic()))
    hanging = [thread.name for thread in threads if thread.is_alive()]
    if hanging:
        logger.warning("the process ends before what is under way: %s", ", ".join(hanging))
    resigning = threading.Thread(target=_resign, args=(controller,), daemon=True)  # the store may be silent too
    resigning.start()
    resigning.join(_STOPPING_S)
    if hanging or resigning.is_alive():
        os._exit(0)


def _resign(controller: Controller) -> None:
    try:
        controller.resign()
    except StoreUnavailableError as error:
        logger.warning("%s", error)


def _repeat(
    action: Callable[[], object],
    stopping: threading.Event,
    period_s: float,
    *,
    stood_still: Callable[[float], None] = lambda _: None,
    clock: Callable[[], float] = since_boot_s,
) -> None:
    """Does it again and again until told to stop; after an error less and less often, until it works again.

    stood_still: hears after each pause how much longer it was than meant.
    """
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
        began = clock()
        stopping.wait(pause_s)
        stood_still(clock() - began - pause_s)
