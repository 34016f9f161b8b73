"""The controller's process: its loop, and threads for its lead and all slow work, so that none delays another.

What it projects into MLflow, delivers, removes and tidies it does as long as it leads.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from service.controller import Controller
from service.controller.clocks import since_boot_s
from service.controller.leadership import Leadership
from service.errors import SamstudyError, StoreUnavailableError
from service.notifying.sender import Sender, SenderOptions
from service.removing import Remover
from service.settings import Settings
from service.store.database import Database
from service.store.delivering import DeliveringStore
from service.store.exporting import ExportStore, Lead
from service.store.reconciling import ReconcilingStore
from service.store.removals import RemovalStore
from service.store.studies import StudyStore
from service.store.tidying import TidyingStore
from service.store.watching import CONTROLLER_LEASE
from service.tidying import Tidier
from service.tracking.exporter import Exporter
from service.tracking.leftovers import LeftRuns
from service.tuning.jobs import DriverJobs

logger = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 15.0
_STOPPING_S = 4.0  # for what is under way when the process is to end; what does not end in it is done again


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
    leadership = controller.leadership
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
        return stopping.is_set() or not leadership.leads

    exporting_since = 0

    def export() -> None:
        nonlocal exporting_since
        if leadership.leads and leadership.term != exporting_since:
            exporting_since = leadership.term
            exporter.start_over()
        while leadership.leads and exporter.export_pending(must_stop).more:
            pass

    actions = {
        "leader": leadership.hold,
        "reconciler": controller.reconcile,
        "exporter": export,
        "sender": lambda: sender.send_due(must_stop),
        "remover": lambda: remover.carry_out(must_stop),
        "tidier": lambda: tidier.tidy(must_stop),
    }
    hearing = {"reconciler": {"stood_still": controller.stood_still}}
    threads = [
        threading.Thread(
            target=repeat, args=(action, stopping, config.poll_s), kwargs=hearing.get(name), name=name, daemon=True
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
    resigning = threading.Thread(target=_resign, args=(leadership,), daemon=True)  # the store may be silent too
    resigning.start()
    resigning.join(_STOPPING_S)
    if hanging or resigning.is_alive():
        os._exit(0)


def repeat(
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


def _resign(leadership: Leadership) -> None:
    try:
        leadership.resign()
    except StoreUnavailableError as error:
        logger.warning("%s", error)
