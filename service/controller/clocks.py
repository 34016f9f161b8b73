"""The time of a lease, which runs out while the machine of its holder sleeps."""

from __future__ import annotations

import time


def since_boot_s() -> float:
    """Seconds, those in which the machine slept among them; unlike the time of day nobody sets them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def asleep_since_boot_s() -> float:
    """Seconds in which the machine slept, since it was started."""
    return since_boot_s() - time.monotonic()
