"""Removes what deleted studies have left outside the store: checkpoints, logs, runs in MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from service import logs
from service.errors import StoreUnavailableError
from service.storage import delete_study_files
from service.store.removals import Removal, RemovalStore
from service.tracking.leftovers import LeftRuns
from service.tracking.server import RefusedError, TrackingUnavailableError

logger = logging.getLogger(__name__)

_SETTLING_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0


class Remover:
    """Carries removals out, each again until nothing is left of its study.

    Whatever was under way when a study was deleted may still add something: a call to MLflow that is answered late, an
    exporter in the middle of a run. So the last look comes `settling_s` after the deletion, and finds nothing.
    """

    def __init__(
        self,
        store: RemovalStore,
        runs: LeftRuns,
        storage_uri: str,
        *,
        settling_s: float = _SETTLING_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, monotonic."""
        self._store = store
        self._runs = runs
        self._storage_uri = storage_uri
        self._settling_s = settling_s
        self._clock = clock
        self._next_look_at: dict[str, float] = {}
        self._pause_s: dict[str, float] = {}

    def carry_out(self, must_stop: Callable[[], bool] = lambda: False) -> None:
        """One look at what is to be removed. Raises StoreUnavailableError; what else goes wrong is kept in the store.

        must_stop: asked before each study.
        """
        for removal in self._store.pending():
            if must_stop():
                return
            if self._clock() < self._next_look_at.get(removal.study_id, float("-inf")):
                continue
            said = {"study_id": removal.study_id}
            try:
                found_something = self._remove(removal)
            except (TrackingUnavailableError, RefusedError, OSError, ValueError) as error:
                pause_s = self._fail(removal, error)
                message = "study %s cannot be removed yet: %s; again in %.0f s"
                logger.warning(message, removal.study_id, error, pause_s, extra=said)
                continue
            except StoreUnavailableError:
                raise
            except Exception as error:  # the outermost runner of one removal: the others must go on
                pause_s = self._fail(removal, error)
                message = "unexpected: study %s cannot be removed; again in %.0f s"
                logger.exception(message, removal.study_id, pause_s, extra=said)
                continue
            if found_something or removal.age_s < self._settling_s:
                self._look_again_in(removal.study_id, max(1.0, self._settling_s - removal.age_s))
                continue
            self._store.done(removal.study_id)
            self._next_look_at.pop(removal.study_id, None)
            self._pause_s.pop(removal.study_id, None)
            logger.info("study %s: nothing is left of it", removal.study_id, extra=said)

    def _remove(self, removal: Removal) -> bool:
        """Whether there was anything left."""
        files_found = delete_study_files(self._storage_uri, removal.study_id)
        act = self._runs.delete if removal.delete_runs else self._runs.end
        runs_found = act(removal.study_id, removal.experiment_id)
        return files_found or runs_found

    def _fail(self, removal: Removal, error: Exception) -> float:
        """Keeps what went wrong; seconds until the next try."""
        pause_s = self._pause_s.get(removal.study_id, _FIRST_PAUSE_S)
        self._look_again_in(removal.study_id, pause_s)
        self._pause_s[removal.study_id] = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._store.failed(removal.study_id, logs.redacted(str(error)) or type(error).__name__)
        return pause_s

    def _look_again_in(self, study_id: str, seconds: float) -> None:
        self._next_look_at[study_id] = self._clock() + seconds
