"""A study's version in HTTP's words: its ETag, and the If-Match that a change must carry."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Header

from service.errors import FieldProblem, InvalidRequestError, PreconditionRequiredError
from service.study import Study

ETAG: dict[str, Any] = {
    "ETag": {"description": "the study's version, for If-Match", "schema": {"type": "string"}, "example": '"3"'}
}
"""The header in OpenAPI."""

_VERSION = re.compile(r'"([0-9]{1,9})"')


def etag(study: Study) -> str:
    """Names what users have made of the study so far; what the service does to it changes nothing here."""
    return f'"{study.version}"'


def expected_version(
    if_match: Annotated[
        str | None,
        Header(max_length=100, description="ETag of the study as it was read, or * for whatever it is by now"),
    ] = None,
) -> int | None:
    """The version that the caller has seen; None for any. Raises PreconditionRequiredError, InvalidRequestError."""
    if if_match is None:
        raise PreconditionRequiredError(
            'send If-Match with the ETag that the study was read with, such as If-Match: "3", or * to change it as '
            "it is by then"
        )
    if if_match.strip() == "*":
        return None
    match = _VERSION.fullmatch(if_match.strip())
    if match is None:
        message = f'must be * or the ETag of the study, such as "3" with its quotes, got {if_match!r}'
        raise InvalidRequestError(message, problems=[FieldProblem("If-Match", message)])
    return int(match[1])


ExpectedVersion = Annotated[int | None, Depends(expected_version)]
