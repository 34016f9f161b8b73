"""Tidies up after studies that have ended: of their trials' checkpoints stays what `checkpoint.keep` says.

Drivers do that as each trial ends. What is left is of drivers that died before they came to it, of trials that were
cancelled without one, of workers that were still on their way out, and of attempts that the store never heard of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from service.spec_sections import Checkpoint
from service.store.tidying import TidyingStore, UntidyStudy
from service.trial_checkpoints import TrialCheckpoints

logger = logging.getLogger(__name__)

_SETTLING_S = 10.0
_PAUSE_S = 60.0


class Tidier:
    """Looks once at each study, `settling_s` after its end, and again where the storage did not do its part."""

    def __init__(
        self,
        store: TidyingStore,
        storage_uri: str,
        *,
        settling_s: float = _SETTLING_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, monotonic."""
        self._store = store
        self._storage_uri = storage_uri
        self._settling_s = settling_s
        self._clock = clock
        self._again_at: dict[str, float] = {}

    def tidy(self, must_stop: Callable[[], bool] = lambda: False) -> None:
        """One look at the store. must_stop: asked before each trial. Raises StoreUnavailableError."""
        for study in self._store.untidy(ended_for_s=self._settling_s):
            if must_stop():
                return
            if self._clock() >= self._again_at.get(study.study_id, float("-inf")) and self._tidied(study, must_stop):
                self._store.done(study)

    def _tidied(self, study: UntidyStudy, must_stop: Callable[[], bool]) -> bool:
        """Tidies up, unless the study goes on by now; False where it was stopped, or the storage did not do its part.

        Only what was there before the study was seen at this same end once more is removed: with many trials that
        takes minutes, in which it may be reopened and its trials save anew.
        """
        said: dict[str, str] = {"study_id": study.study_id}
        surplus: dict[str, list[str]] = {}
        try:
            checkpoint = Checkpoint.model_validate(study.spec["checkpoint"])
            for said["trial_id"] in self._store.trial_ids(study) if checkpoint.every_epochs else ():
                if must_stop():
                    return False
                surplus[said["trial_id"]] = self._checkpoints(**said).surplus(checkpoint.keep)
            if self._store.is_at_that_end(study):
                for said["trial_id"], paths in surplus.items():
                    if must_stop():
                        return False
                    if paths:
                        self._checkpoints(**said).remove(paths)
        except (OSError, ValueError) as error:
            logger.warning("study %s is tidied up later: %s", study.study_id, error, extra=said)
            self._again_at[study.study_id] = self._clock() + _PAUSE_S
            return False
        self._again_at.pop(study.study_id, None)
        return True

    def _checkpoints(self, study_id: str, trial_id: str) -> TrialCheckpoints:
        return TrialCheckpoints(self._storage_uri, study_id, trial_id)
