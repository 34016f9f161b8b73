"""The OpenAPI document: what FastAPI cannot see for itself, added once."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.access import NewKey
from service.answers import Problem
from service.api.access import METRICS, PROBES
from service.api.bodies import NewPoint, StudyPatch
from service.api.problems import MEDIA_TYPE, documented
from service.errors import (
    BodyTooLargeError,
    BodyTooSlowError,
    ForbiddenError,
    SamstudyError,
    StoreUnavailableError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from service.spec import StudySpec
from service.study import Event
from service.webhook import STUDY_STATE, NewWebhook, StudyStateMessage

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}

_WEBHOOK = {
    "summary": "A study of the webhook's owner has changed its state",
    "description": "Signed as Standard Webhooks 1.0 has it, in order and at least once: it is sent again unless a 2xx "
    "takes it within 10 s.",
    "parameters": [
        {"name": name, "in": "header", "required": True, "description": what, "schema": {"type": "string"}}
        for name, what in {
            "webhook-id": "the message's id, the same in every attempt",
            "webhook-timestamp": "Unix time of this attempt",
            "webhook-signature": "`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`",
        }.items()
    ],
    "requestBody": {
        "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="StudyStateMessage")}}}
    },
    "responses": {"2XX": {"description": "taken"}},
}

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
    """The document with what FastAPI does not see among its schemas, and 422 and 500 as the problems they are."""
    _, definitions = models_json_schema(
        [
            *((model, "validation") for model in _RAW_BODIES),
            *((model, "serialization") for model in (Problem, Event, StudyStateMessage)),
        ],
        ref_template=_REFERENCE,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    document["components"].setdefault("securitySchemes", {})["key"] = _KEY_SCHEME
    document["webhooks"] = {STUDY_STATE: {"post": _WEBHOOK}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            for response in responses.values():
                for content in response.get("content", {}).values():
                    if content.pop("itemSchema", None):  # a word of OpenAPI 3.2 in a document of 3.1
                        content["schema"] = {"type": "string"}
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
