"""The controller: the loop that makes what runs match what the store says. One leads; others wait for its lease.

It starts drivers for queued studies, declares drivers lost whose lease ran out, ends cancelled studies whose driver
does not, and tells running studies their shares of the cluster. Its process is in `service.controlling`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from service import logs
from service.errors import ServiceSilentError, ServiceUnavailableError, StoreUnavailableError
from service.giving_way import GivingWay
from service.settings import Settings
from service.shares import Usage, fair_shares
from service.store.reconciling import DriverClaim, PendingCancel, QueuedStudy, ReconcilingStore
from service.store.watching import CONTROLLER_LEASE
from service.tuning.jobs import DriverJobs

logger = logging.getLogger(__name__)

_MAX_DRIVER_LOSSES = 5
_FIRST_START_PAUSE_S, _LONGEST_START_PAUSE_S = 1.0, 60.0
_CANCEL_PAUSE_S, _LONGEST_WAIT_FOR_JOB_S = 2.0, 600.0
"""Between two looks at drivers that do not end; after how long one whose lease is over is taken for gone."""

_JOB_ENDS_WITHIN_S = 15.0  # Ray kills a driver that has not left within 3 s of being asked to

_LONGEST_LOOK_S = 60.0  # at the store; one that takes longer hangs, and somebody else is to lead

_STOOD_STILL = 0.5  # of a lease: a driver that stood still as long has too little left of its own to be judged by


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A start that the cluster refused, and when the next one is due, `pause_s` after it."""

    again_at: float
    pause_s: float


@dataclass(slots=True)
class _Overdue:
    """A driver without a lease. since: when that was seen. asked_at: when the cluster first took note of its end.

    is_told: whether the log says that the cluster does not.
    """

    since: float
    asked_at: float | None = None
    is_told: bool = False


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
        self._leading = threading.Lock()
        self.term = 0
        self._silence: ServiceSilentError | None = None
        self._looking_since: float | None = None
        self._share_again_at = float("-inf")
        self._usage = Usage()
        self._cancel_again_at = float("-inf")
        self._refusals: dict[str, _Refusal] = {}
        self._turns: Counter[str] = Counter()  # the higher, the later the owner's last study was started
        self._giving_way = GivingWay(config.node_grace_s)
        self._asked_to_leave: frozenset[DriverClaim] = frozenset()
        self._room_again_at = float("-inf")
        self._starts_unconfirmed = False
        self._in_contact_since: float | None = None
        self._overdue: dict[DriverClaim, _Overdue] = {}
        self._left_behind: dict[DriverClaim, float] = {}

    @property
    def leads(self) -> bool:
        """Whether this controller surely leads: its lease, counted from before it asked for it, has not run out."""
        return self._clock() < self._leads_until

    def keep_lead(self) -> bool:
        """Takes or renews the lease; whether it leads. Raises StoreUnavailableError."""
        with self._leading:
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
            return leads

    def reconcile(self) -> None:
        """One look at the store. Raises StoreUnavailableError."""
        self._looking_since = self._clock()
        try:
            if self.keep_lead():
                self._look()
        finally:
            self._looking_since = None

    def hold_lead(self) -> None:
        """Keeps the lead, for a thread beside the one of `reconcile`: not for one that hangs in a look for good."""
        since = self._looking_since
        if since is None or self._clock() - since < _LONGEST_LOOK_S:
            self.keep_lead()

    def _look(self) -> None:
        self._silence = None
        self._confirm_starts()
        overdue, cancelling = self._overdue_drivers(), self._store.cancelling()
        self._overdue = {claim: self._overdue.get(claim) or _Overdue(self._clock()) for claim in overdue}
        being_cancelled = {cancel.study_id for cancel in cancelling}
        for claim in overdue:
            if claim.study_id in being_cancelled:
                continue
            with logs.about(study_id=claim.study_id, driver_attempt=claim.driver_attempt):
                self._replace(claim)
        self._end_cancelled(cancelling, overdue)
        self._end_left_behind()
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
        self._starts_unconfirmed = False  # before it is read: the next term may begin meanwhile
        try:
            unconfirmed = self._store.unconfirmed_starts()
            for start in unconfirmed:
                if start.lives:
                    self._store.confirm_start(start.claim)
        except StoreUnavailableError:
            self._starts_unconfirmed = True
            raise
        self._starts_unconfirmed |= bool(unconfirmed)

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
        """Declares a driver lost once its job has ended: it may be merely silent, and hold its workers.

        Until then the study is not done with it, whatever its user asks for meanwhile. A job that does not end is not
        waited for long, since the store refuses what its driver says; where the cluster does not answer it is, since no
        other driver could be started.
        """
        now, overdue = self._clock(), self._overdue[claim]
        has_ended, give_up_at = False, overdue.since + _LONGEST_WAIT_FOR_JOB_S
        try:
            with self._asking():
                has_ended = self._jobs.stop(claim)
            overdue.asked_at = now if overdue.asked_at is None else overdue.asked_at
            give_up_at = overdue.asked_at + _JOB_ENDS_WITHIN_S
        except ServiceUnavailableError as error:
            if not overdue.is_told:
                overdue.is_told = True
                logger.warning("study %s: its driver is silent, and %s", claim.study_id, error)
        if not has_ended and now < give_up_at:
            return
        was_asked = (
            self._giving_way.lacks(claim.study_id) is not None
        )  # also where it was killed before it could give its lease up
        study = self._store.lose_driver(claim, max_losses=_MAX_DRIVER_LOSSES, was_asked=was_asked)
        if study is not None:
            logger.warning("study %s lost driver %d; it is %s", claim.study_id, claim.driver_attempt, study.state)
            if not has_ended:
                self._left_behind[claim] = now

    def _end_left_behind(self) -> None:
        """Goes on asking for the end of jobs whose drivers are lost, for a while: they may hold workers."""
        for claim, since in list(self._left_behind.items()):
            try:
                with self._asking():
                    has_ended = self._jobs.stop(claim)
            except ServiceUnavailableError:
                has_ended = False
            if has_ended or self._clock() - since > _LONGEST_WAIT_FOR_JOB_S:
                del self._left_behind[claim]

    def _end_cancelled(self, cancelling: list[PendingCancel], overdue: list[DriverClaim]) -> None:
        """Ends cancelled studies whose driver does not, each once its job has ended: nothing may outlive a cancel.

        Where the cluster cannot say so for long, a driver without a lease is taken for gone. overdue: those.
        """
        if self._clock() < self._cancel_again_at:
            return
        for cancel in cancelling:
            age_s = (self._store.now() - cancel.requested_at).total_seconds()
            if 0 <= age_s < self._config.cancel_grace_s:
                continue
            claim = DriverClaim(cancel.study_id, cancel.driver_attempt)
            said = {"study_id": claim.study_id, "driver_attempt": claim.driver_attempt}
            has_ended = False
            try:
                with self._asking():
                    has_ended = self._jobs.stop(claim)
            except ServiceUnavailableError as error:
                logger.warning("study %s cannot be cancelled yet: %s", claim.study_id, error, extra=said)
            if not has_ended:
                self._cancel_again_at = self._clock() + _CANCEL_PAUSE_S
                if claim not in overdue or age_s < _LONGEST_WAIT_FOR_JOB_S:
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
            with self._asking():
                self._jobs.check()
        except ServiceUnavailableError as error:
            self._store.set_waiting_reason([study.study_id for study in queued], logs.redacted(str(error)))
            return
        running = Counter(study.demand.owner for study in self._store.driven())
        while queued and running.total() < self._config.max_running_studies and self._silence is None:
            study = min(queued, key=lambda study: self._rank(study, running))  # of equal ones the oldest
            queued.remove(study)
            if self._start(study.study_id):
                self._giving_way.started(study.study_id)
                running[study.owner] += 1
                self._turns[study.owner] = max(self._turns.values(), default=0) + 1
        if queued and self._silence is not None:
            self._store.set_waiting_reason([study.study_id for study in queued], logs.redacted(str(self._silence)))
        elif queued:
            self._make_room(queued)
            self._say_why(queued, running.total())

    def _rank(self, study: QueuedStudy, running: Counter[str]) -> tuple[bool, int, int]:
        """Of the studies that wait, the one with the least is started next. running: studies, by their owners."""
        makes_room = self._giving_way.lacks(study.study_id) is not None
        return makes_room, running[study.owner], self._turns[study.owner]

    def _make_room(self, waiting: Sequence[QueuedStudy]) -> None:
        """Asks drivers of studies that no node holds to end, for studies that wait and could run.

        A driver that is asked gives its lease up, and its study is queued again; until then it is asked at every look.
        """
        if self._clock() < self._room_again_at:
            return
        self._room_again_at = self._clock() + self._config.share_interval_s
        driven = self._store.driven()
        if all(study.demand.running for study in driven) and not self._giving_way.makes_any_room:
            self._giving_way.all_train()
            return
        try:
            with self._asking():
                nodes = self._jobs.nodes()
            needs = self._store.needs([study.study_id for study in waiting])
            leaving = self._giving_way.leaving(driven, needs, nodes, now=self._clock())
            for claim in leaving:
                if claim not in self._asked_to_leave:
                    said = {"study_id": claim.study_id, "driver_attempt": claim.driver_attempt}
                    logger.info("study %s makes room for one that could run", claim.study_id, extra=said)
                with self._asking():
                    self._jobs.stop(claim)
            self._asked_to_leave = frozenset(leaving)
        except ServiceUnavailableError as error:
            logger.warning("studies that no node holds keep their places: %s", error)

    def _say_why(self, waiting: Sequence[QueuedStudy], running: int) -> None:
        """Why they have no driver: there are as many as may be, or it makes room for others."""
        full = f"{running} studies run, as many as may at a time; it is among the {len(waiting)} that wait"
        reasons: defaultdict[str, list[str]] = defaultdict(list)
        for study in waiting:
            lacks = self._giving_way.lacks(study.study_id)
            makes_room = f"{lacks}; meanwhile it lets studies run that the cluster can hold"
            reasons[makes_room if lacks else full].append(study.study_id)
        for reason, study_ids in reasons.items():
            self._store.set_waiting_reason(study_ids, reason)

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
            with self._asking():
                self._jobs.start(claim)
        except ServiceUnavailableError as error:
            if not self._store.give_back(claim, logs.redacted(str(error))):
                message = "study %s: driver %d is there, though its start was not answered: %s"
                logger.warning(message, study_id, claim.driver_attempt, error, extra=said)
                self._refusals.pop(study_id, None)
                return True
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

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around a call to the cluster: after one that it lets wait in vain, the look asks it nothing more.

        Each call takes its time, and the store's own matters must not wait for them all.
        """
        if self._silence is not None:
            raise self._silence
        try:
            yield
        except ServiceSilentError as error:
            self._silence = error
            raise

    def _share(self) -> None:
        """Tells the running studies their shares, now and then: the cluster or what they want may have changed."""
        if self._clock() < self._share_again_at:
            return
        self._share_again_at = self._clock() + self._config.share_interval_s
        studies = self._store.driven()
        if len(studies) < 2 and all(study.slots is None for study in studies):
            return
        try:
            with self._asking():
                nodes = self._jobs.nodes()
        except ServiceUnavailableError as error:
            logger.warning("shares stay as they are: %s", error)
            return
        demands = [study.demand for study in studies]
        self._usage.count(demands, nodes, now=self._clock())
        shares = fair_shares(demands, nodes, self._usage)
        before = {study.demand.study_id: study.slots for study in studies}
        changed = {study_id: slots for study_id, slots in shares.items() if slots != before[study_id]}
        if changed:
            self._store.set_slots(changed)
