"""The driver: the process that runs one study's Tuner, as a Ray Job: `python -m service.tuning.driver STUDY ATTEMPT`.

It begins by reading everything that the store knows of the study, so starting a study, going on after a crash and
extending a study are the same thing. It writes only while the study is its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

# Tune reads these when it is imported: no loggers of its own (they import torch and write files that nobody reads),
# no check of metrics (the spec's own check is stricter, and a failed trial reports none).
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
os.environ["TUNE_WARN_THRESHOLD_S"] = "5"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "2"

import ray
from ray import tune
from ray.train.constants import _get_ray_train_session_dir
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import TrialScheduler

from service import logs
from service.errors import LeaseLostError, StoreUnavailableError
from service.settings import Settings, settings
from service.spec import StudySpec, accepted_spec
from service.store.database import Database, sqlite_file
from service.store.driving import DrivingStore
from service.store.snapshots import Known
from service.study import StudyState
from service.trial_checkpoints import TrialCheckpoints
from service.tuning.algorithms import algorithm_for
from service.tuning.capacity import waiting_reason
from service.tuning.decisions import Ending, IssuedTrial, Leaving
from service.tuning.idle_workers import IdleWorkers
from service.tuning.orders import TrialOrder, order_for_trial
from service.tuning.patience import patiently
from service.tuning.progress import StudyProgress
from service.tuning.recorder import Recorder
from service.tuning.schedulers import scheduler_for, why_stopped
from service.tuning.searcher import StudyCallback, StudySearcher, StudyStopper
from service.tuning.trial import StudyTrial

logger = logging.getLogger(__name__)

_PATIENCE_S = 600.0
"""How long a driver waits for the store where it cannot do without; after that the next one goes on in its place."""


def drive(study_id: str, driver_attempt: int, config: Settings) -> list[Path]:
    """Runs the study to its end, or until it leaves it; answers the folders that nobody needs any more.

    Raises LeaseLostError where another driver takes it over, StoreUnavailableError where the store is away for long.
    """
    store = DrivingStore(Database(config.store_url), study_id, driver_attempt)
    snapshot = patiently(store.snapshot, patience_s=_PATIENCE_S)
    spec = accepted_spec(snapshot.study.spec)
    progress = StudyProgress(spec, snapshot, algorithm_for(spec, leg=len(snapshot.configurations)), store)

    def why_nothing_trains() -> str | None:
        if progress.is_training or progress.is_pausing:
            return progress.waiting_reason
        if progress.is_about_to_end:
            return None
        return waiting_reason(spec.resources_per_trial, has_no_share=progress.has_no_share)

    recorder = Recorder(
        store,
        lease_s=config.lease_s,
        heartbeat_s=config.heartbeat_s,
        waiting_reason=why_nothing_trains,
        stuck_after_s=config.startup_lease_s,
    )

    last_attempts = {trial.id: trial.attempt for trial in snapshot.trials}

    def order_for(issued: IssuedTrial) -> TrialOrder:
        last_attempts[issued.trial_id] = issued.attempt
        return order_for_trial(spec, study_id, issued, storage_uri=config.storage_uri)

    def tidy_checkpoints(trial_id: str) -> None:
        attempt = last_attempts.get(trial_id, 0)
        has_started = progress.has_started(trial_id, attempt)  # else the next driver gives its number once more
        if spec.checkpoint.every_epochs and has_started:
            checkpoints = TrialCheckpoints(config.storage_uri, study_id, trial_id)
            checkpoints.tidy(spec.checkpoint.keep, up_to_attempt=attempt)

    patiently(recorder.start, patience_s=_PATIENCE_S)
    with _handing_over(recorder, store):
        idle_workers = IdleWorkers()
        searcher = StudySearcher(progress, recorder, order_for, idle_workers)
        scheduler = scheduler_for(spec, snapshot, searcher.issued, idle_workers)
        del snapshot  # nobody reads it any more, and a large study's takes much memory
        callback = StudyCallback(
            searcher,
            progress,
            recorder,
            metric=spec.objective.metric,
            why_stopped=lambda trial_id: why_stopped(scheduler, trial_id),
            tidy_checkpoints=tidy_checkpoints,
            trial_grace_s=config.trial_grace_s,
        )
        ray.init(address="auto", log_to_driver=False, configure_logging=False)
        _run_tuner(spec, study_id, searcher, scheduler, callback)
        recorder.close()
        ending = searcher.ending
        if ending is None:
            raise RuntimeError(f"Tune stopped study {study_id} although there was more to run")
        leftovers = _leftovers(study_id)  # while the study is still this driver's: the next one has folders of its own
        state = patiently(partial(_end, store, ending, progress.known), patience_s=_PATIENCE_S)
    recorder.settle()  # now that no lease is needed any more
    if isinstance(ending, Leaving):
        logger.info("driver %d leaves study %s: %s", driver_attempt, study_id, state)
        return leftovers
    if state is not ending.state:
        logger.info("study %s was to end as %s; its user wants it %s", study_id, ending, state)
    if not state.is_final:
        return leftovers
    for trial_id in progress.open_trials():  # the study's end has cancelled them
        tidy_checkpoints(trial_id)
    logger.info("study %s ended: %s", study_id, ending)
    return leftovers


def _run_tuner(
    spec: StudySpec, study_id: str, searcher: StudySearcher, scheduler: TrialScheduler, callback: StudyCallback
) -> None:
    needed = {"cpu": spec.resources_per_trial.cpu, "gpu": spec.resources_per_trial.gpu}
    with tempfile.TemporaryDirectory(prefix="samstudy-") as scratch:
        Tuner(
            tune.with_resources(StudyTrial, needed),
            tune_config=TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True),
            run_config=RunConfig(
                name=study_id,
                storage_path=scratch,  # Tune's own snapshots are not part of recovery
                checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[callback],
                stop=StudyStopper(searcher),
                verbose=0,
            ),
        ).fit()


def _end(store: DrivingStore, ending: Ending | Leaving, known: Known) -> StudyState:
    """Ends the study, or leaves it; answers what has become of it."""
    if isinstance(ending, Leaving):
        return store.leave()
    return store.finish(ending.state, ending.reason, ending.error, known=known)


@contextmanager
def _handing_over(recorder: Recorder, store: DrivingStore) -> Iterator[None]:
    """Where SIGTERM ends the process, as when Ray stops the job, the next driver can go on at once.

    What was reported until then is recorded before the lease is given up. The handler makes a SystemExit of it, as does
    Ray's own, which `ray.init` puts in its place.
    """
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
    try:
        yield
    except SystemExit:
        logger.warning("asked to end: another driver goes on with the study")
        recorder.close()
        with suppress(LeaseLostError):  # it had just ended the study, or left it
            patiently(store.give_up_lease, patience_s=_PATIENCE_S)
        raise


def _leftovers(study_id: str) -> list[Path]:
    """What Tune has written into Ray's session, also for the study's drivers before: it grows with each trial.

    Nobody reads it, and Ray removes it only with the whole session.
    """
    return list(Path(_get_ray_train_session_dir()).glob(f"*/{study_id}"))


def main(arguments: Sequence[str]) -> int:
    """The process's entry point; its exit status tells Ray whether the job succeeded."""
    study_id, driver_attempt = arguments
    config = settings()
    logs.configure(config.log_format, config.log_level, study_id=study_id, driver_attempt=int(driver_attempt))
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # it looks for files that Tune does not write here
    file = sqlite_file(config.store_url)
    if file is not None and not file.exists():  # to look for it would make an empty one
        logger.error("%s is not there: Ray's nodes need the SAMSTUDY_ variables of the controller", file)
        return 1
    try:
        for folder in drive(study_id, int(driver_attempt), config):  # when nobody waits for this driver any more
            shutil.rmtree(folder, ignore_errors=True)
    except (LeaseLostError, StoreUnavailableError) as error:
        logger.error("%s", error)  # the message says it all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
