"""The OpenAPI document: what FastAPI cannot see for itself, added once."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.access import NewKey
from service.answers import Problem
from service.api.access import METRICS, PROBES
from service.api.bodies import NewPoint, StudyPatch
from service.api.problems import MEDIA_TYPE, BodyTooLargeError, BodyTooSlowError, documented
from service.errors import (
    ForbiddenError,
    SamstudyError,
    StoreUnavailableError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from service.spec import StudySpec
from service.webhook import NewWebhook

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}

_RAW_BODIES = (StudySpec, StudyPatch, NewPoint, NewKey, NewWebhook)
"""What bodies are that routes read raw, so that every problem comes in one answer."""

_KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `samstudy keys create`. None is needed on loopback until the first one is made.",
}


def install(app: FastAPI) -> None:
    """Makes the application describe the body that it reads raw and the problems that it answers with."""
    described_by_fastapi = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(described_by_fastapi())
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with StudySpec and Problem among its schemas, and 422 and 500 as the problems they are."""
    _, definitions = models_json_schema(
        [*((model, "validation") for model in _RAW_BODIES), (Problem, "serialization")], ref_template=_REFERENCE
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    document["components"].setdefault("securitySchemes", {})["key"] = _KEY_SCHEME
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            _describe_surroundings(path, operation)
            if "HTTPValidationError" in str(responses.get("422")):
                responses["422"] = {"description": "The request is not valid (`invalid_request`)", "content": _PROBLEM}
            responses["default"] = {"description": "Any other problem", "content": _PROBLEM}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _describe_surroundings(path: str, operation: dict[str, Any]) -> None:
    """What Authentication, RateLimit and BodyLimit do around the route; the first of them asks the store for keys."""
    refusals: list[type[SamstudyError]] = [BodyTooSlowError, BodyTooLargeError, TooManyRequestsError]
    if path not in PROBES:
        operation["security"] = [{"key": []}, {}] if path == METRICS else [{"key": []}]
        refusals += [UnauthenticatedError, ForbiddenError, StoreUnavailableError]
    for status, response in documented(*refusals).items():
        operation["responses"].setdefault(str(status), response)
