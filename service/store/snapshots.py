"""What a driver learns from the store: its whole study as it begins, and the user's wishes at every heartbeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.spec_sections import Budget
from service.study import Configuration, Intent, Study, Trial


@dataclass(frozen=True, slots=True)
class Instructions:
    """What a driver hears at every heartbeat.

    budget: of the spec, which its user may have changed. slots: how many trials may train at once, None for no limit.
    last_configuration: number of the study's newest configuration, which a user may have enqueued.
    """

    intent: Intent
    budget: Mapping[str, Any]
    slots: int | None
    last_configuration: int


@dataclass(frozen=True, slots=True)
class Known:
    """What a driver knew of its user's wishes when it decided to end the study."""

    budget: Budget
    last_configuration: int

    @classmethod
    def of(cls, spec: Mapping[str, Any], last_configuration: int) -> Known:
        """From the study's spec, as it is stored."""
        return cls(stored_budget(spec["budget"]), last_configuration)


def stored_budget(stored: Mapping[str, Any]) -> Budget:
    """The budget of a study that a driver has, without what this version does not know of it.

    In the midst of an upgrade the API may be of a newer version, whose limits are in the budget with the first change
    of it: the driver goes on by those that it knows, and is no loss.
    """
    return Budget.model_validate({name: limit for name, limit in stored.items() if name in Budget.model_fields})


@dataclass(frozen=True, slots=True)
class EpochValue:
    """The objective's metric, as one epoch of a trial reported it. A large study has a million of them."""

    trial_id: str
    epoch: int
    value: float


@dataclass(frozen=True, slots=True)
class StudySnapshot:
    """All that a driver needs to go on where the one before stopped.

    epoch_values: of the epochs that have one, in the order in which they were recorded. lost_attempts, trained_s,
    attempts_s: as in `Spent`. read_at: by the store's clock, whatever this machine's says.
    """

    study: Study
    configurations: list[Configuration]
    trials: list[Trial]
    epoch_values: list[EpochValue]
    lost_attempts: dict[str, int]
    trained_s: dict[str, float]
    attempts_s: float
    read_at: datetime = field(compare=False)

    @property
    def known(self) -> Known:
        """What it says of the user's wishes."""
        return Known.of(self.study.spec, max((one.number for one in self.configurations), default=0))
