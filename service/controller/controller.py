"""The controller: one look at the store after the other, and what each does."""

from __future__ import annotations

from collections.abc import Callable

from service.controller.cancels import Cancels
from service.controller.clocks import asleep_since_boot_s, since_boot_s
from service.controller.guarded_jobs import GuardedJobs
from service.controller.leadership import Leadership
from service.controller.lost_drivers import LostDrivers
from service.controller.sharing import Sharing
from service.controller.starts import Starts
from service.controller.study_queue import StudyQueue
from service.giving_way import GivingWay
from service.settings import Settings
from service.store.reconciling import ReconcilingStore
from service.tuning.jobs import DriverJobs


class Controller:
    """One controller; `holder` names it in the lease by which it leads.

    clock: like `since_boot_s`, because a lease runs out while the machine of its holder sleeps. asleep: like
    `asleep_since_boot_s`.
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
        self._jobs = GuardedJobs(jobs)
        self.leadership = Leadership(store, holder, lease_s=config.lease_s, clock=clock)
        giving_way = GivingWay(config.node_grace_s)
        self._starts = Starts(store, self._jobs, lease_s=config.startup_lease_s, clock=clock)
        self._lost_drivers = LostDrivers(
            store, self._jobs, self.leadership, giving_way, lease_s=config.lease_s, clock=clock, asleep=asleep
        )
        self._cancels = Cancels(store, self._jobs, grace_s=config.cancel_grace_s, clock=clock)
        self._queue = StudyQueue(
            store,
            self._jobs,
            self._starts,
            giving_way,
            max_running=config.max_running_studies,
            room_interval_s=config.share_interval_s,
            clock=clock,
        )
        self._sharing = Sharing(store, self._jobs, interval_s=config.share_interval_s, clock=clock)

    def reconcile(self) -> None:
        """One look at the store, and where it leads, what that look asks for. Raises StoreUnavailableError."""
        with self.leadership.looking() as leads:
            if leads:
                self._look()

    def stood_still(self, seconds: float) -> None:
        """Hears for how long its process did nothing, because the machine slept or the process was stopped."""
        self._lost_drivers.stood_still(seconds)

    def _look(self) -> None:
        self._jobs.reset()
        self._starts.confirm_living(term=self.leadership.term)
        overdue, cancelling = self._lost_drivers.overdue(), self._store.cancelling()
        self._lost_drivers.replace(overdue, cancelling)
        self._cancels.carry_out(cancelling, overdue)
        self._lost_drivers.end_left_behind()
        self._queue.start_next()
        self._sharing.tell()
