"""The lease by which one of several controllers leads; the others wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import StoreUnavailableError
from service.store.reconciling import ReconcilingStore
from service.store.watching import CONTROLLER_LEASE

_LONGEST_LOOK_S = 60.0  # at the store; one that takes longer hangs, and somebody else is to lead


class Leadership:
    """The lead of one controller, kept by two threads: the one that looks at the store, and one beside it.

    holder: names the controller in the lease. lease_s: how long it leads without renewing it. clock: in seconds, and
    like `since_boot_s`.

    term: how often it has begun to lead; between two terms others may have led. in_contact_since: since when the store
    has answered without a break, by the clock; None: it does not.
    """

    def __init__(self, store: ReconcilingStore, holder: str, *, lease_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._holder = holder
        self._lease_s = lease_s
        self._clock = clock
        self._renewing = threading.Lock()
        self._leads_until = float("-inf")
        self._looking_since: float | None = None
        self.term = 0
        self.in_contact_since: float | None = None

    @property
    def leads(self) -> bool:
        """Whether this controller surely leads: its lease, counted from before it asked for it, has not run out."""
        return self._clock() < self._leads_until

    def renew(self) -> bool:
        """Takes or renews the lease; whether it leads. Raises StoreUnavailableError."""
        with self._renewing:
            asked_at = self._clock()
            try:
                leads = self._store.lead(CONTROLLER_LEASE, self._holder, self._lease_s)
            except StoreUnavailableError:
                self.break_contact()
                raise
            if self.in_contact_since is None:
                self.in_contact_since = self._clock()
            if leads and not self.leads:
                self.term += 1
            self._leads_until = asked_at + self._lease_s if leads else float("-inf")
            return leads

    @contextmanager
    def looking(self) -> Iterator[bool]:
        """Around one look at the store, which begins by renewing the lease; whether it leads.

        Raises StoreUnavailableError.
        """
        self._looking_since = self._clock()
        try:
            yield self.renew()
        finally:
            self._looking_since = None

    def hold(self) -> None:
        """Keeps the lead, for the thread beside: not for a look that hangs for good. Raises StoreUnavailableError."""
        since = self._looking_since
        if since is None or self._clock() - since < _LONGEST_LOOK_S:
            self.renew()

    def break_contact(self) -> None:
        """What was until now is no contact with the store: it begins when the lease is next renewed."""
        self.in_contact_since = None

    def resign(self) -> None:
        """Gives up the lead, so that another controller can take it at once. Raises StoreUnavailableError."""
        self._leads_until = float("-inf")
        self._store.give_up_lead(CONTROLLER_LEASE, self._holder)
