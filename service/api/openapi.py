"""The OpenAPI document: what FastAPI cannot see for itself, added once."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.answers import Problem
from service.api.problems import MEDIA_TYPE
from service.spec import StudySpec

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}


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
        [(StudySpec, "validation"), (Problem, "serialization")], ref_template=_REFERENCE
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                responses["422"] = {"description": "The request is not valid (`invalid_request`)", "content": _PROBLEM}
            responses["default"] = {"description": "Any other problem", "content": _PROBLEM}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document
