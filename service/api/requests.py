"""What the routes read from a request: the store, ids, the JSON body."""

from __future__ import annotations

import json
from typing import Annotated, TypeVar

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, ValidationError

from service.access import Principal, Role
from service.api.access import PRINCIPAL
from service.errors import (
    MAX_PROBLEMS,
    FieldProblem,
    ForbiddenError,
    InvalidRequestError,
    InvalidSpecError,
    MalformedBodyError,
    UnsupportedMediaTypeError,
)
from service.settings import Settings
from service.spec_reading import WHOLE_SPEC, plain_data, problems_of, unique_pairs
from service.store.database import Database
from service.store.lifecycle import LifecycleStore
from service.store.paging import MAX_TOKEN_LENGTH
from service.store.studies import StudyStore

MAX_BODY_BYTES = 1024 * 1024
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL's text cannot hold a NUL, so that nothing with one can name anything."""


Model = TypeVar("Model", bound=BaseModel)


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _principal(request: Request) -> Principal:
    principal: Principal = request.scope[PRINCIPAL]
    return principal


async def _admin(request: Request) -> Principal:
    principal: Principal = request.scope[PRINCIPAL]
    if principal.role is not Role.ADMIN:
        raise ForbiddenError(f"this needs the key of an admin, and the key's role is {principal.role}")
    return principal


async def _studies(request: Request) -> StudyStore:
    principal: Principal = request.scope[PRINCIPAL]
    return StudyStore(request.app.state.database, principal.scope)


async def _lifecycle(request: Request) -> LifecycleStore:
    principal: Principal = request.scope[PRINCIPAL]
    return LifecycleStore(request.app.state.database, principal.scope)


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


ThePrincipal = Annotated[Principal, Depends(_principal)]
AnAdmin = Annotated[Principal, Depends(_admin)]
TheDatabase = Annotated[Database, Depends(_database)]
Lifecycle = Annotated[LifecycleStore, Depends(_lifecycle)]
Studies = Annotated[StudyStore, Depends(_studies)]
TheSettings = Annotated[Settings, Depends(_settings)]
StudyId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]
ConfigurationId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]
TrialId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]
PageToken = Annotated[
    str | None,
    Query(
        max_length=MAX_TOKEN_LENGTH,
        description="next_page_token of the page before; only with the same filters and the same order",
    ),
]


async def json_body(request: Request) -> object:
    """The body as plain data, whatever it says; what it must say is the spec's business.

    It is whole and not too large: BodyLimit has seen to that. Raises UnsupportedMediaTypeError and MalformedBodyError.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        given = f"got {media_type!r}" if media_type else "and the request says nothing"
        raise UnsupportedMediaTypeError(f"Content-Type must be application/json, {given}")
    content = await request.body()
    try:
        return json.loads(content.decode(), object_pairs_hook=unique_pairs)
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"the body must be UTF-8, and byte {error.start:,} is not") from error
    except json.JSONDecodeError as error:
        raise MalformedBodyError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise MalformedBodyError("the body is nested too deeply") from error
    except ValueError as error:  # where a number is too long, Python adds what its programmer could do
        raise MalformedBodyError(str(error).partition("; use sys.")[0]) from error


async def optional_json_body(request: Request) -> object:
    """Like `json_body`; an empty mapping where the request has no body."""
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    return await json_body(request) if has_body else {}


JsonBody = Annotated[object, Depends(json_body)]
OptionalJsonBody = Annotated[object, Depends(optional_json_body)]


def read_as(model: type[Model], body: object) -> Model:
    """The body as this model. Raises InvalidRequestError with every problem and its field."""
    try:
        plain, problems = plain_data(body)
        if not problems:
            return model.model_validate(plain)
    except InvalidSpecError as error:
        problems = list(error.problems)
    except ValidationError as error:
        problems = problems_of(error, plain)[:MAX_PROBLEMS]
    problems = [FieldProblem(p.field if p.field != WHOLE_SPEC else "body", p.message) for p in problems]
    said = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    raise InvalidRequestError(said, problems=problems)
