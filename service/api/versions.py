"""A study's version in HTTP's words: its ETag, and the If-Match that a change must carry."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Header, Request

from search_spaces.checking import shown
from service.api.requests import Studies, StudyId
from service.errors import FieldProblem, InvalidRequestError, PreconditionRequiredError, VersionConflictError
from service.study import Study

ETAG: dict[str, Any] = {
    "ETag": {"description": "the study's version, for If-Match", "schema": {"type": "string"}, "example": '"3"'}
}
"""The header in OpenAPI."""

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
"""A list of entity tags (RFC 9110, 8.8.3), in which empty elements mean nothing (5.6.1)."""


def etag(study: Study) -> str:
    """Names what users have made of the study so far; what the service does to it changes nothing here."""
    return f'"{study.version}"'


IfMatch = Annotated[
    str | None,
    Header(
        max_length=1_000,
        description="ETag of the study as it was read, or several of which one must match, or * for whatever it is "
        "by now",
    ),
]


def _given_version(study_id: StudyId, studies: Studies, request: Request, if_match: IfMatch = None) -> int | None:
    """The version that the caller has seen, which is the study's now; None for any, or where none is given.

    A change hands it on to the store, which looks again once it holds the study: another may have come in between.
    Raises InvalidRequestError, StudyNotFoundError, VersionConflictError.
    """
    if if_match is None:
        return None
    if_match = ", ".join(request.headers.getlist("If-Match"))  # which may be split over lines (RFC 9110, 5.3)
    if if_match.strip() == "*":
        return None
    if not _TAGS.fullmatch(if_match):
        message = f'must be * or the ETag of the study, such as "3" with its quotes, got {shown(if_match)}'
        raise InvalidRequestError(message, problems=[FieldProblem("If-Match", message)])
    study = studies.get(study_id)
    if etag(study) not in re.findall(_TAG, if_match):  # a weak tag never matches (RFC 9110, 13.1.1)
        raise VersionConflictError(
            f"study {study_id!r} has the ETag {etag(study)} by now, and If-Match has {shown(if_match)}: read it again"
        )
    return study.version


GivenVersion = Annotated[int | None, Depends(_given_version)]
"""Of a change that need not say which version it is meant for."""


def _required_version(version: GivenVersion, if_match: IfMatch = None) -> int | None:
    """Raises what GivenVersion does, and PreconditionRequiredError."""
    if if_match is None:
        raise PreconditionRequiredError(
            'send If-Match with the ETag that the study was read with, such as If-Match: "3", or * to change it as '
            "it is by then"
        )
    return version


RequiredVersion = Annotated[int | None, Depends(_required_version)]
"""Of a change that must say which."""
