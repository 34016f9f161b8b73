"""What happens to a study, as server-sent events: resumed after the last one seen, without a gap or a duplicate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.answers import STREAM_END
from service.api.problems import documented
from service.api.requests import Studies, StudyId
from service.errors import InvalidRequestError, StoreUnavailableError, StudyNotFoundError
from service.store.studies import StudyStore
from service.study import Event

POLL_S = 0.25
BATCH = 500
MAX_EVENT_ID = 2**63 - 1

router = APIRouter(tags=["events"])
log = logging.getLogger(__name__)


def _known_study(study_id: StudyId, studies: Studies) -> str:
    """The id of a study that is there: what is not must be a 404 before the stream begins."""
    return studies.get(study_id).id


@router.get(
    "/studies/{study_id}/events",
    response_class=EventSourceResponse,
    responses=documented(StudyNotFoundError, InvalidRequestError),
)
async def stream_events(
    request: Request,
    study_id: Annotated[str, Depends(_known_study)],
    studies: Studies,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_EVENT_ID, description="sent by a client that comes back")
    ] = None,
    after: Annotated[int, Query(ge=0, le=MAX_EVENT_ID, description="the last event that is known already")] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """The study's events from the first one on; the stream ends, with `stream.end`, once the study has ended.

    The id of each is that of the event, its name the event's kind, its data the event as JSON.
    """
    seen = after if last_event_id is None else last_event_id
    while not request.app.state.stopping.is_set():
        try:
            ended, batch = await run_in_threadpool(_news, studies, study_id, seen)
        except (StoreUnavailableError, StudyNotFoundError) as error:
            log.warning("the event stream of study %s breaks off: %s", study_id, error)
            return
        for event in batch:
            yield ServerSentEvent(id=str(event.id), event=event.kind, data=event)
            seen = event.id
        if ended and not batch:
            yield ServerSentEvent(event=STREAM_END, data={})
            return
        if not batch:
            await asyncio.sleep(POLL_S)


def _news(studies: StudyStore, study_id: str, seen: int) -> tuple[bool, list[Event]]:
    """Whether the study had ended before the events were read, and the events after the last one seen."""
    ended = studies.get(study_id).state.is_final
    return ended, studies.events(study_id, after=seen, limit=BATCH)
