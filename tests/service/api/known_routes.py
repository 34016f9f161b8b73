"""What tests that walk over every route of the OpenAPI document have to know about each: parameters, bodies, rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.api.app import PREFIX

SPEC = {
    "name": "another",
    "train": {"dataset": "digits", "model": "mlp", "epochs": 3},
    "search_space": "paper_lambda_rho",
    "objective": {"metric": "val_accuracy", "mode": "max"},
}
WEBHOOK_URL = "https://203.0.113.7/the-owners-receiver"

BODIES: dict[str, object] = {
    "post /studies": SPEC,
    "patch /studies/{study_id}": {"description": "changed"},
    "post /studies/{study_id}/clone": {"name": "a-copy"},
    "post /studies/{study_id}/configurations": {"point": {"lambda": 0.5, "rho": 0.2}},
    "post /keys": {"owner": "mallory", "role": "user"},
    "post /webhooks": {"url": WEBHOOK_URL},
}
"""A sound body for each route that takes one."""

HEADERS = {"patch /studies/{study_id}": {"If-Match": "*"}}

QUERY = {"ids": "{study_id},{other_id}", "x": "lambda", "y": "rho"}
"""Of the query parameters that a route needs."""

OWNED = ("study_id", "webhook_id")
"""Path parameters that name something of an owner's."""

ADMINS_ONLY = ("/keys",)


@dataclass(frozen=True)
class Route:
    """An operation of the document. path: below the prefix. query: what it needs. is_open: without a key."""

    method: str
    path: str
    parameters: tuple[str, ...]
    query: tuple[str, ...]
    needs_body: bool
    is_open: bool

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_owned(self) -> bool:
        return any(parameter in OWNED for parameter in self.parameters) or "ids" in self.query

    @property
    def is_for_admins(self) -> bool:
        return self.path.startswith(ADMINS_ONLY)

    @property
    def changes(self) -> bool:
        return self.method != "get"

    def request(self, ids: Mapping[str, str]) -> dict[str, Any]:
        """How to ask for it, with these ids; what nobody has told this module about fails the test."""
        unknown = [name for name in self.parameters if name not in ids]
        unknown += [name for name in self.query if name not in QUERY]
        assert not unknown, f"known_routes.py does not know the parameters {unknown} of {self.name} yet"
        assert not self.needs_body or self.name in BODIES, f"known_routes.py has no body for {self.name} yet"
        prefix = "" if self.is_open else PREFIX
        request: dict[str, Any] = {"method": self.method.upper(), "url": prefix + self.path.format_map(ids)}
        request["params"] = {name: QUERY[name].format_map(ids) for name in self.query}
        request["headers"] = HEADERS.get(self.name, {})
        return {**request, "json": BODIES[self.name]} if self.name in BODIES else request


def routes_of(document: Mapping[str, Any]) -> list[Route]:
    """Every operation of the document."""
    return [
        Route(
            method,
            path.removeprefix(PREFIX),
            tuple(re.findall(r"{(\w+)}", path)),
            tuple(
                item["name"] for item in operation.get("parameters", ()) if item["in"] == "query" and item["required"]
            ),
            operation.get("requestBody", {}).get("required", False),
            "security" not in operation or {} in operation["security"],
        )
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
