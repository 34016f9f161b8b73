"""What the routes read from a request: the store, ids, the JSON body."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Depends, Path, Request

from search_spaces.checking import shown
from service.api.problems import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError
from service.settings import Settings
from service.store.database import Database
from service.store.studies import StudyStore

MAX_BODY_BYTES = 1024 * 1024
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL's text cannot hold a NUL, so that nothing with one can name anything."""

OWNER = "local"
"""Owner of every study while the API is open to whoever reaches its loopback address."""


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _studies(request: Request) -> StudyStore:
    return StudyStore(request.app.state.database)


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


TheDatabase = Annotated[Database, Depends(_database)]
Studies = Annotated[StudyStore, Depends(_studies)]
TheSettings = Annotated[Settings, Depends(_settings)]
StudyId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]
ConfigurationId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]
TrialId = Annotated[str, Path(max_length=80, pattern=NO_NUL)]


async def json_body(request: Request) -> object:
    """The body as plain data, whatever it says; what it must say is the spec's business.

    Raises UnsupportedMediaTypeError, BodyTooLargeError and MalformedBodyError.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        given = f"got {media_type!r}" if media_type else "and the request says nothing"
        raise UnsupportedMediaTypeError(f"Content-Type must be application/json, {given}")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise BodyTooLargeError(f"the body must be at most {MAX_BODY_BYTES:,} bytes")
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique_pairs)
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"the body must be UTF-8, and byte {error.start:,} is not") from error
    except json.JSONDecodeError as error:
        raise MalformedBodyError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise MalformedBodyError("the body is nested too deeply") from error
    except ValueError as error:
        raise MalformedBodyError(str(error)) from error


JsonBody = Annotated[object, Depends(json_body)]


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return mapping
