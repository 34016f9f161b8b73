"""The worker that Tune keeps for a study's next trial: given back where the study may have no other one.

Tune leaves a worker without a trial in place, since the next trial may want it, and takes the cluster for its own. Of
several studies, one whose share has fallen would so hold a place that another one's trials wait for, for ever.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""How long a worker has to end, while Tune handles no other events; it is waited for again at the next call."""


class IdleWorkers:
    """The workers of one driver that have no trial.

    Tune has no public name for them: it is its controller that keeps and ends them, which schedulers are told of.
    """

    def __init__(self) -> None:
        self._controller: Any = None

    def are_kept_by(self, tune_controller: Any) -> None:
        """Hears of Tune's controller."""
        self._controller = tune_controller

    def give_back(self) -> None:
        """Ends them, where there are any. To be called in Tune's own thread, while it asks for a trial."""
        controller = self._controller
        if controller is None or controller._pending_trials:  # one of these takes the worker in this very step
            return
        if controller._actor_cache.num_cached_objects:
            logger.info("a worker without a trial is given back: other studies have its place")
            controller._cleanup_cached_actors(force_all=True)
        if controller._running_trials or controller._paused_trials:
            return  # Tune goes on with its step, and hears of the worker's end
        workers, give_up_at = controller._actor_manager, time.monotonic() + _PATIENCE_S
        while any(map(workers.is_actor_started, controller._stopping_actors)) and time.monotonic() < give_up_at:
            workers.next(timeout=0.1)  # without a trial Tune asks for one, again and again, and hears of nothing else


class Watched(TrialScheduler):
    """A scheduler that tells of the controller. To be inherited from before the scheduler of Tune's."""

    def __init__(self, idle_workers: IdleWorkers, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._idle_workers = idle_workers

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._idle_workers.are_kept_by(tune_controller)
        super().on_trial_add(tune_controller, trial)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its schedulers for a recovery of its own; ours goes through the store."""
        return {}


class InOrder(Watched, FIFOScheduler):
    """Every trial trains to its last epoch."""
