"""A trial's checkpoint to take home: its weights, and all that a training goes on from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from service.api.access import Access
from service.api.exports import APlaceOfExport, ExportResponse, ExportsBusyError
from service.api.problems import documented
from service.api.requests import Studies, StudyId, TheSettings, TrialId
from service.api.storage_reads import StorageReader, TheStorage
from service.api.streams import BrokenOffError, TheAccess
from service.errors import (
    CheckpointNotFoundError,
    StorageUnavailableError,
    StoreUnavailableError,
    StudyNotFoundError,
    TrialNotFoundError,
    UnauthenticatedError,
)
from service.spec_sections import WhichCheckpoint
from service.study import Study
from service.trial_checkpoints import Checkpoint, TrialCheckpoints, best_of

EPOCH_HEADER = "Samstudy-Epoch"

_LOOKS = 3
"""How often it looks for one: a trial that trains removes those that it has passed."""

router = APIRouter(tags=["trials"])


@router.get(
    "/studies/{study_id}/trials/{trial_id}/checkpoint",
    response_class=Response,
    responses={
        200: {
            "description": "the file; an answer shorter than its Content-Length is no whole one",
            "content": {"application/octet-stream": {}},
            "headers": {
                EPOCH_HEADER: {"description": "the epoch after which it was saved", "schema": {"type": "integer"}}
            },
        },
        **documented(
            StudyNotFoundError,
            TrialNotFoundError,
            CheckpointNotFoundError,
            ExportsBusyError,
            StorageUnavailableError,
            StoreUnavailableError,
        ),
    },
    dependencies=[APlaceOfExport],
)
async def read_checkpoint(
    study_id: StudyId,
    trial_id: TrialId,
    studies: Studies,
    settings: TheSettings,
    access: TheAccess,
    storage: TheStorage,
    which: Annotated[
        WhichCheckpoint,
        Query(description="of the newest epoch that has one, or of the best one where checkpoint.keep has it"),
    ] = "latest",
) -> ExportResponse:
    """A checkpoint of the trial as it lies in the storage; `samstudy train --checkpoint` goes on from it.

    `trainers.checkpoint.load(FILE)["training"]["model"]` has the weights.
    """
    study = await run_in_threadpool(studies.get, study_id)
    await run_in_threadpool(studies.trial, study_id, trial_id)

    @retry(retry=retry_if_exception_type(FileNotFoundError), stop=stop_after_attempt(_LOOKS), reraise=True)
    def open_it() -> tuple[Checkpoint, int, Iterator[bytes]] | None:
        there = TrialCheckpoints(settings.storage_uri, study_id, trial_id)
        found = there.found()
        wanted = best_of(found) if which == "best" else found
        return (wanted[0], *there.opened(wanted[0])) if wanted else None

    try:
        opened = await storage.read(open_it)
    except (OSError, ValueError) as error:
        raise StorageUnavailableError(f"the checkpoint cannot be read: {error}") from error
    if opened is None:
        raise CheckpointNotFoundError(f"trial {trial_id!r} has no such checkpoint: {_why_none(study, which)}")
    checkpoint, size_bytes, blocks = opened
    return ExportResponse(
        _sent(blocks, storage, access),
        media_type="application/octet-stream",
        headers={
            EPOCH_HEADER: str(checkpoint.epoch),
            "Content-Length": str(size_bytes),
            "Content-Disposition": f'attachment; filename="{trial_id}-epoch-{checkpoint.epoch}.ckpt"',
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        },
    )


async def _sent(blocks: Iterator[bytes], storage: StorageReader, access: Access) -> AsyncIterator[bytes]:
    try:
        async for block in storage.each(blocks):
            await access.check()
            yield block
    except (OSError, StoreUnavailableError, UnauthenticatedError) as error:
        raise BrokenOffError(str(error)) from error


def _why_none(study: Study, which: WhichCheckpoint) -> str:
    """What the study's spec, by whichever version's rules, says of it."""
    section = study.spec.get("checkpoint", {})
    keep = section.get("keep", "latest")
    if section.get("every_epochs") == 0:
        return "checkpoint.every_epochs is 0"
    if which == "best" and "best" not in keep:
        return f"checkpoint.keep is {keep}, and saves none for being the best"
    if keep == "none":
        return "checkpoint.keep is none, which leaves nothing of a trial that has ended"
    return "none was saved yet, or writing it has failed (the trial's attempts[].warning says so)"
