"""Every error as `application/problem+json` (RFC 9457): what the service refuses, what it cannot find, its defects."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from search_spaces.checking import shown
from service.answers import Problem, ProblemField
from service.errors import (
    FieldProblem,
    InvalidRequestError,
    SamstudyError,
    StoreUnavailableError,
    TooManyRequestsError,
)
from service.spec_reading import field_name

MEDIA_TYPE = "application/problem+json"

logger = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed"}


def install(app: FastAPI) -> None:
    """Makes the application answer every error with a problem document."""
    app.add_exception_handler(SamstudyError, _render)
    app.add_exception_handler(RequestValidationError, _render)
    app.add_exception_handler(HTTPException, _render)


def answer(error: SamstudyError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The error as its problem document.

    What is wrong with the store may be said in the database's own words, which name its address: where others than the
    users of this machine ask, the log alone has them.
    """
    detail = error.detail
    if isinstance(error, StoreUnavailableError) and not scope["app"].state.tells_of_the_store:
        logger.warning("%s", detail)
        detail = "the study store is not available: the log of the API says why"
    return _response(
        error.status,
        error.code,
        error.title,
        detail,
        error.problems,
        request_id=scope.get("request_id"),
        headers=headers,
    )


def unexpected(request_id: str) -> Response:
    """The answer to a request that met a defect: nothing about it, except where the log tells more."""
    detail = f"the service met an unexpected error; its log has the details under the request id {request_id}"
    return _response(SamstudyError.status, SamstudyError.code, SamstudyError.title, detail, request_id=request_id)


def documented(*errors: type[SamstudyError]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that raises these, for its OpenAPI description."""
    by_status: dict[int, list[type[SamstudyError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "; ".join(f"{error.title} (`{error.code}`)" for error in raised),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status, raised in sorted(by_status.items())
    }


async def _render(request: Request, error: Exception) -> Response:
    match error:
        case SamstudyError():
            return answer(error, request.scope, _retry_after(error))
        case RequestValidationError():
            found = (_field_problem(detail) for detail in error.errors())
            problems = list(dict.fromkeys(found))  # what two dependencies read is reported by both
            said = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
            return answer(InvalidRequestError(said, problems=problems), request.scope)
        case HTTPException():
            title = HTTPStatus(error.status_code).phrase
            code = _CODES.get(error.status_code, title.lower().replace(" ", "_"))
            detail = f"{request.method} {request.url.path}: {title.lower()}"
            headers = {**(error.headers or {}), **_right_methods(request, error.status_code)}
            return _response(
                error.status_code, code, title, detail, request_id=request.scope.get("request_id"), headers=headers
            )
    raise error


def _retry_after(error: SamstudyError) -> dict[str, str]:
    if isinstance(error, TooManyRequestsError) and error.retry_after_s is not None:
        return {"Retry-After": str(error.retry_after_s)}
    return {}


def _right_methods(request: Request, status: int) -> dict[str, str]:
    """The header of a 405 with the methods of every route of this path: the router names those of the first alone."""
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return {}
    right = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return {"Allow": ", ".join(right)}


def _field_problem(detail: Mapping[str, Any]) -> FieldProblem:
    """What is wrong with the field and, unless it came in a header, which may hold a secret, what it was given as."""
    place, *path = detail["loc"]
    message = str(detail["msg"])
    if place in ("query", "path") and detail["type"] != "missing" and ", got " not in message:
        message = f"{message}, got {shown(detail['input'])}"
    return FieldProblem(field_name(tuple(path) or (place,)), message)


def _response(
    status: int,
    code: str,
    title: str,
    detail: str,
    problems: Sequence[FieldProblem] = (),
    *,
    request_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    problem = Problem(
        type=f"urn:samstudy:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        errors=[ProblemField(field=problem.field, message=problem.message) for problem in problems],
        request_id=request_id,
    )
    content = json.dumps(problem.model_dump(), ensure_ascii=True)  # a detail may quote what UTF-8 cannot encode
    return Response(content, status, dict(headers or {}), media_type=MEDIA_TYPE)
