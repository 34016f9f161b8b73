"""A study's trials as one table to take away, and its runs in MLflow written anew."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, BinaryIO, cast

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Query, Request, Response

from service.analysis.trial_tables import ColumnKind, TableFormat, csv_table, json_table, point_kinds, write_parquet
from service.api.places import Places
from service.api.problems import documented
from service.api.rate_limit import asker_of
from service.api.requests import Studies, StudyId, TheDatabase
from service.api.streams import BreakingOffResponse, TheAccess, while_allowed
from service.api.versions import GivenVersion
from service.errors import InvalidSpecError, StudyNotFoundError, TooManyRequestsError, VersionConflictError
from service.spec import stored_space
from service.store.exporting import ExportStore
from service.store.studies import StudyStore
from service.study import Study

router = APIRouter(prefix="/studies/{study_id}", tags=["exports"])

_MEDIA_TYPES = {"csv": "text/csv", "json": "application/json", "parquet": "application/vnd.apache.parquet"}
_IN_MEMORY_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_EACH, _OF_ALL = 2, 6


class ExportsBusyError(TooManyRequestsError):
    """As many exports as may be are being answered; sent with Retry-After."""

    retry_after_s = 5


class ExportResponse(BreakingOffResponse):
    """A table while it is written, or a file while it is read."""

    read_within_s = 60.0


class Exports:
    """The exports under way of one API process, and the checkpoints that are being taken home.

    threads: those that write them, of which a Parquet file takes one for seconds; the other requests have their own.
    """

    def __init__(self) -> None:
        self.threads = CapacityLimiter(1)
        self._places = Places(each=_EACH, of_all=_OF_ALL)

    @contextmanager
    def one_more(self, asker: str) -> Iterator[None]:
        """Raises ExportsBusyError where the caller has as many as one may have, or all together have."""
        if not self._places.take(asker):
            raise ExportsBusyError(
                f"at most {_EACH} exports at a time, checkpoints among them, are answered to one key, or to one "
                f"address without keys, and {_OF_ALL} to all: try again in {ExportsBusyError.retry_after_s} s"
            )
        try:
            yield
        finally:
            self._places.leave(asker)


async def _place(request: Request) -> AsyncIterator[CapacityLimiter]:
    """Held until the answer has ended, or its reader is gone: the threads that write it."""
    exports: Exports = request.app.state.exports
    with exports.one_more(asker_of(request.scope)):
        yield exports.threads


APlaceOfExport = Depends(_place)


@router.get(
    "/export",
    response_class=Response,
    responses={
        200: {"description": "the table", "content": {media_type: {} for media_type in _MEDIA_TYPES.values()}},
        **documented(StudyNotFoundError, ExportsBusyError),
    },
)
def export_study(
    study_id: StudyId,
    studies: Studies,
    access: TheAccess,
    threads: Annotated[CapacityLimiter, APlaceOfExport],
    table_format: Annotated[TableFormat, Query(alias="format")] = "csv",
) -> ExportResponse:
    """One row for each trial: ids, purpose, seed, point, state, attempts, epochs, objective, its last metrics.

    An answer that breaks off is no whole table: CSV and JSON are written while the trials are read.
    """
    study = studies.get(study_id)
    return ExportResponse(
        while_allowed(_content(studies, study, table_format), access, threads),
        media_type=_MEDIA_TYPES[table_format],
        headers={"Content-Disposition": f'attachment; filename="{study.id}-trials.{table_format}"'},
    )


@router.post("/export-again", status_code=202, responses=documented(StudyNotFoundError, VersionConflictError))
def export_again(study_id: StudyId, if_version: GivenVersion, studies: Studies, database: TheDatabase) -> Study:
    """Has the study's runs in MLflow written anew: those that are gone are made again, those there are completed."""
    studies.get(study_id)
    ExportStore(database).forget(study_id, if_version=if_version)
    return studies.get(study_id)


def _content(studies: StudyStore, study: Study, table_format: TableFormat) -> Iterator[bytes]:
    if table_format == "json":
        return json_table(studies.trial_rows(study.id))
    points, metrics = _points(studies, study), studies.metric_names(study.id)
    if table_format == "csv":
        return csv_table(studies.trial_rows(study.id), list(points), metrics)
    return _parquet(studies, study, points, metrics)


def _parquet(studies: StudyStore, study: Study, points: dict[str, ColumnKind], metrics: list[str]) -> Iterator[bytes]:
    """A Parquet file begins to make sense at its end, so it is written whole first, to disk where it is large."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
        write_parquet(studies.trial_rows(study.id), points, metrics, cast(BinaryIO, file))
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _points(studies: StudyStore, study: Study) -> dict[str, ColumnKind]:
    try:
        return point_kinds(stored_space(study.spec).parameters)
    except InvalidSpecError:  # accepted by an older version, whose rules were others
        names = {name: None for found in studies.configurations(study.id) for name in found.point}
        return dict.fromkeys(names, str)
