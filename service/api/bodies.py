"""What requests carry beside specs: changes of a study, points to try."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from search_spaces.checking import StrictModel
from search_spaces.parameters import ScalarField
from service.spec_sections import Confirm, Description, Labels
from service.store.changing import StudyChanges


class NewPoint(StrictModel):
    """A point of the search space to be tried."""

    point: dict[str, ScalarField] = Field(
        description="a value for each parameter that is active there", examples=[{"lambda": 0.5, "rho": 0.1}]
    )


class StudyPatch(StrictModel):
    """What is to change of a study; what is left out stays."""

    budget: dict[str, Any] = Field(
        default_factory=dict,
        description="limits of the spec's budget; null is no limit; those left out stay",
        examples=[{"max_trials": 120}],
    )
    confirm: Confirm = Field(
        default_factory=lambda: Confirm(seeds=(0,)),  # not read where it is left out
        description="the whole section: it replaces the one before, on a study that no driver runs. One that has ended "
        "goes on with what it has not confirmed yet; the seeds it has confirmed with must stay",
        examples=[{"top_k": 3, "seeds": [100, 101, 102]}],
    )
    labels: Labels = Field(default_factory=dict, description="all of them: they replace those before")
    description: Description = Field(default_factory=str, description="the whole of it: it replaces the one before")

    def changes(self) -> StudyChanges:
        """The same for the store."""
        given = self.model_fields_set
        return StudyChanges(
            budget=self.budget,
            confirm=self.confirm if "confirm" in given else None,
            labels=self.labels if "labels" in given else None,
            description=self.description if "description" in given else None,
        )


def body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What OpenAPI says of a body that a route reads raw, so that every problem comes in one answer."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
