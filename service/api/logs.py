"""What an attempt of a trial has printed, as plain text: what there is, or followed until the attempt has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from threading import Event
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from service.api.access import Access
from service.api.problems import documented
from service.api.requests import Studies, StudyId, TheSettings, TrialId
from service.api.storage_reads import StorageReader, TheStorage
from service.api.streams import APlaceOfFollower, BreakingOffResponse, BrokenOffError, Follow, TheAccess
from service.errors import (
    AttemptNotFoundError,
    InvalidRequestError,
    StorageUnavailableError,
    StoreUnavailableError,
    StudyNotFoundError,
    TooManyRequestsError,
    TrialNotFoundError,
    UnauthenticatedError,
)
from service.log_stream import LOG_ATTEMPT_HEADER, LOG_OFFSET_HEADER
from service.store.studies import StudyStore
from service.study import Attempt, AttemptState
from service.trial_logs import LogExtent, TrialLog

POLL_S = 0.5
GRACE_S = 3.0
"""How long a follower waits for the last words of an attempt that has ended, from a worker that may be gone."""

_MAX_OFFSET = 2**53 - 1
_HEADERS = {
    LOG_ATTEMPT_HEADER: {"description": "number of the attempt", "schema": {"type": "integer"}},
    LOG_OFFSET_HEADER: {"description": "offset of the answer's first byte in the log", "schema": {"type": "integer"}},
}

router = APIRouter(tags=["trials"])


@router.get(
    "/studies/{study_id}/trials/{trial_id}/logs",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "the log; it breaks off unfinished where more would have followed", "headers": _HEADERS},
        **documented(
            StudyNotFoundError,
            TrialNotFoundError,
            AttemptNotFoundError,
            InvalidRequestError,
            TooManyRequestsError,
            StorageUnavailableError,
            StoreUnavailableError,
        ),
    },
    dependencies=[APlaceOfFollower],
)
async def read_log(
    request: Request,
    study_id: StudyId,
    trial_id: TrialId,
    studies: Studies,
    settings: TheSettings,
    access: TheAccess,
    storage: TheStorage,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="by default the newest")] = None,
    follow: Follow = False,
    tail: Annotated[
        int | None, Query(ge=0, le=1_000_000, description="begin with so many of the last lines there are")
    ] = None,
    after: Annotated[
        int, Query(ge=0, le=_MAX_OFFSET, description="how many bytes of the log are known already; for resuming")
    ] = 0,
) -> Response:
    """What an attempt of a trial has printed, with the service's own lines; UTF-8 where the training printed UTF-8.

    An attempt that wrote nothing has an empty log.
    """
    found = await run_in_threadpool(_attempt, studies, study_id, trial_id, attempt)

    def open_it() -> tuple[TrialLog, LogExtent]:
        source = TrialLog(settings.storage_uri, study_id, found.trial_id, found.number)
        return source, source.extent()

    start = after
    try:
        source, extent = await storage.read(open_it)
        if tail is not None:
            async for offset in storage.each(source.seek_last_lines(extent, tail)):
                start = max(after, offset)
    except (OSError, ValueError) as error:
        raise StorageUnavailableError(f"the log cannot be read: {error}") from error

    def has_ended() -> bool:
        running = (one.number for one in studies.attempts(study_id, trial_id) if one.state is AttemptState.RUNNING)
        return found.number not in running

    reading = _Reading(source, storage, access)
    if follow:
        content = reading.followed(start, has_ended=has_ended, stopping=request.app.state.stopping)
    else:
        content = reading.whole(extent, start)
    headers = {
        LOG_ATTEMPT_HEADER: str(found.number),
        LOG_OFFSET_HEADER: str(start),
        "X-Accel-Buffering": "no",  # a proxy is to pass a followed log on as it comes
        "X-Content-Type-Options": "nosniff",  # what a training prints may look like a page
        "Cache-Control": "no-store",
    }
    return BreakingOffResponse(content, headers=headers, media_type="text/plain")


class _Reading:
    """A log while it is sent to a caller."""

    def __init__(self, source: TrialLog, storage: StorageReader, access: Access) -> None:
        self._source = source
        self._storage = storage
        self._access = access

    async def whole(self, extent: LogExtent, after: int) -> AsyncIterator[bytes]:
        """What there is from `after` on. Raises BrokenOffError."""
        try:
            async for block in self._storage.each(self._source.read(extent, after=after)):
                await self._access.check()
                yield block
        except (OSError, StoreUnavailableError, UnauthenticatedError) as error:
            raise BrokenOffError(str(error)) from error

    async def followed(self, after: int, *, has_ended: Callable[[], bool], stopping: Event) -> AsyncIterator[bytes]:
        """From `after` on, until the attempt has ended and its writer has said that this was all, or is silent."""
        silent_since: float | None = None
        while not stopping.is_set():
            begin = after
            try:
                await self._access.check()
                ended = await run_in_threadpool(has_ended)
                extent = await self._storage.read(self._source.extent)
            except (
                OSError,
                StoreUnavailableError,
                StudyNotFoundError,
                TrialNotFoundError,
                UnauthenticatedError,
            ) as error:
                raise BrokenOffError(str(error)) from error
            async for block in self.whole(extent, after):
                after += len(block)
                yield block
            if ended:
                now = time.monotonic()
                silent_since = now if silent_since is None or after > begin else silent_since
                if extent.is_finished or now - silent_since >= GRACE_S:
                    return
            if after == begin:
                await asyncio.sleep(POLL_S)
        raise BrokenOffError("the server stops")


def _attempt(studies: StudyStore, study_id: str, trial_id: str, number: int | None) -> Attempt:
    """This attempt of the trial, or the newest. Raises StudyNotFoundError, TrialNotFoundError, AttemptNotFoundError."""
    trial = studies.trial(study_id, trial_id)
    attempts = {attempt.number: attempt for attempt in studies.attempts(study_id, trial_id)}
    if not attempts:
        raise AttemptNotFoundError(f"trial {trial_id!r} has not been started yet: it is {trial.state}")
    wanted = max(attempts) if number is None else number
    if wanted not in attempts:
        known = ", ".join(map(str, sorted(attempts)))
        raise AttemptNotFoundError(f"trial {trial_id!r} has no attempt {wanted}; its attempts: {known}")
    return attempts[wanted]
