"""Tune's view of a trial of ours: one result per step, in a worker process that outlives the trial.

This module is imported by the driver too, so torch comes with the first order, in the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from service.tuning.orders import TrialOrder

if TYPE_CHECKING:
    from service.tuning.execution import TrialExecution


class StudyTrial(tune.Trainable):
    """Runs whatever trial it is given; `reuse_actors` gives it the next one without importing torch again.

    An exception out of here means that the worker is at fault: errors of the training are results. An order is begun
    with its first step, because Tune drops a worker that it has made for a trial where another one is free first; both
    would write into one log.
    """

    def setup(self, config: dict[str, Any]) -> None:
        from service.tuning.execution import TrialExecution

        self._begin: Callable[[], TrialExecution] = partial(TrialExecution, TrialOrder.from_tune_config(config))
        self._execution: TrialExecution | None = None
        self._folder = Path(self.logdir)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        if self._execution is None:  # another worker may have begun with this trial, and have the same folder
            return
        self._execution.close()
        with suppress(OSError):
            self._folder.rmdir()  # one for each trial, which Tune leaves behind on every node, and nothing is in it

    def step(self) -> dict[str, Any]:
        self._execution = self._execution or self._begin()
        return self._execution.next_result().to_tune_result()
