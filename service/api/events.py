"""What happens to a study, as server-sent events: resumed after the last one seen, without a gap or a duplicate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.answers import STREAM_END
from service.api.problems import documented
from service.api.requests import Studies, StudyId
from service.api.streams import APlace, TheAccess
from service.errors import (
    InvalidRequestError,
    StoreUnavailableError,
    StudyNotFoundError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from service.store.studies import StudyStore
from service.study import Event, Study, StudyState
from service.webhook import STUDY_STATE

POLL_S = 0.25
LOOK_S = 1.0
"""Time between two looks at the study itself: its events tell its state too, but not who begins to read after them."""
BATCH = 500
MAX_EVENT_ID = 2**63 - 1

router = APIRouter(tags=["events"])
log = logging.getLogger(__name__)


def _known_study(study_id: StudyId, studies: Studies) -> Study:
    """A study that is there: what is not must be a 404 before the stream begins."""
    return studies.get(study_id)


@router.get(
    "/studies/{study_id}/events",
    response_class=EventSourceResponse,
    responses=documented(StudyNotFoundError, InvalidRequestError, TooManyRequestsError),
    dependencies=[APlace],
)
async def stream_events(
    request: Request,
    study: Annotated[Study, Depends(_known_study)],
    studies: Studies,
    access: TheAccess,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_EVENT_ID, description="sent by a client that comes back")
    ] = None,
    after: Annotated[int, Query(ge=0, le=MAX_EVENT_ID, description="the last event that is known already")] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """The study's events from the first one on; the stream ends, with `stream.end`, once the study has ended.

    The id of each is that of the event, its name the event's kind, its data the event as JSON. It breaks off where the
    caller's access ends.
    """
    seen = after if last_event_id is None else last_event_id
    ended, looked_at = study.state.is_final, time.monotonic()
    while not request.app.state.stopping.is_set():
        try:
            await access.check()
            if time.monotonic() - looked_at >= LOOK_S:
                ended = (await run_in_threadpool(studies.get, study.id)).state.is_final
                looked_at = time.monotonic()
            batch = await run_in_threadpool(_news, studies, study.id, seen)
        except (StoreUnavailableError, StudyNotFoundError, UnauthenticatedError) as error:
            log.warning("the event stream of study %s breaks off: %s", study.id, error)
            return
        for event in batch:
            yield ServerSentEvent(id=str(event.id), event=event.kind, data=event)
            seen = event.id
            ended = _has_ended(event, before=ended)
        if ended and not batch:
            yield ServerSentEvent(event=STREAM_END, data={})
            return
        if not batch:
            await asyncio.sleep(POLL_S)


def _news(studies: StudyStore, study_id: str, seen: int) -> list[Event]:
    return studies.events(study_id, after=seen, limit=BATCH)


def _has_ended(event: Event, *, before: bool) -> bool:
    """Whether the study has ended with this event, if it had before."""
    return StudyState(event.data["state"]).is_final if event.kind == STUDY_STATE else before
