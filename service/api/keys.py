"""API keys, for admins: made, listed, revoked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from service.access import ApiKey, NewKey
from service.answers import CreatedKey, KeyList
from service.api.problems import documented
from service.api.requests import NO_NUL, AnAdmin, JsonBody, TheDatabase, read_as
from service.errors import (
    BodyTooLargeError,
    ForbiddenError,
    InvalidRequestError,
    KeyNotFoundError,
    MalformedBodyError,
    UnsupportedMediaTypeError,
)
from service.store.keys import KeyStore

router = APIRouter(prefix="/keys", tags=["keys"])

_BODY = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewKey"}}}}


@router.post(
    "",
    status_code=201,
    responses=documented(
        MalformedBodyError, ForbiddenError, BodyTooLargeError, UnsupportedMediaTypeError, InvalidRequestError
    ),
    openapi_extra={"requestBody": _BODY},
)
def create_key(_admin: AnAdmin, body: JsonBody, database: TheDatabase) -> CreatedKey:
    """Makes a key. Its token is in this answer and nowhere else; the first key locks the service for who has none."""
    key, token = KeyStore(database).create(read_as(NewKey, body))
    return CreatedKey(**dict(key), token=token.text)


@router.get("", responses=documented(ForbiddenError))
def list_keys(_admin: AnAdmin, database: TheDatabase) -> KeyList:
    """Every key, the newest first, revoked ones too, without their secrets."""
    return KeyList(keys=KeyStore(database).all())


@router.delete("/{key_id}", responses=documented(ForbiddenError, KeyNotFoundError, InvalidRequestError))
def revoke_key(
    _admin: AnAdmin, key_id: Annotated[str, Path(max_length=80, pattern=NO_NUL)], database: TheDatabase
) -> ApiKey:
    """Makes a key open nothing from now on. Revoking it again changes nothing."""
    return KeyStore(database).revoke(key_id)
