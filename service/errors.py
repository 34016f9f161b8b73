"""The errors a user can meet. Each knows its HTTP status and a stable `code`; one handler in the API renders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing wrong with a request: the path of the field, such as `search_space.rho.low`, and the rule broken."""

    field: str
    message: str


class SamstudyError(Exception):
    """Root of every error that is an answer rather than a defect.

    status: the HTTP status that it answers with. code: stable, for programs. title: the same for every occurrence.
    """

    status = 500
    code = "internal"
    title = "Internal error"

    def __init__(self, detail: str, *, problems: Sequence[FieldProblem] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = tuple(problems)


class InvalidSpecError(SamstudyError):
    """A study spec that breaks rules; `problems` has every one of them."""

    status = 422
    code = "invalid_spec"
    title = "The study spec is not valid"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        lines = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        super().__init__(lines, problems=problems)


class InvalidRequestError(SamstudyError):
    """A request whose path, query or body cannot be read."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"


class StudyNotFoundError(SamstudyError):
    """No study has this id."""

    status = 404
    code = "study_not_found"
    title = "No such study"

    def __init__(self, study_id: str) -> None:
        super().__init__(f"no study has the id {study_id!r}")


class ConfigurationNotFoundError(SamstudyError):
    """The study has no configuration with this id."""

    status = 404
    code = "configuration_not_found"
    title = "No such configuration"

    def __init__(self, study_id: str, configuration_id: str) -> None:
        super().__init__(f"study {study_id!r} has no configuration {configuration_id!r}")


class TrialNotFoundError(SamstudyError):
    """The study has no trial with this id."""

    status = 404
    code = "trial_not_found"
    title = "No such trial"

    def __init__(self, study_id: str, trial_id: str) -> None:
        super().__init__(f"study {study_id!r} has no trial {trial_id!r}")


class SearchSpaceNotFoundError(SamstudyError):
    """No named search space has this name."""

    status = 404
    code = "search_space_not_found"
    title = "No such search space"


class IdempotencyConflictError(SamstudyError):
    """The Idempotency-Key was used before, with another body."""

    status = 409
    code = "idempotency_conflict"
    title = "The Idempotency-Key belongs to another request"


class InvalidTransitionError(SamstudyError):
    """The study or trial is in a state from which this cannot be done."""

    status = 409
    code = "invalid_transition"
    title = "Not possible in this state"


class LeaseLostError(SamstudyError):
    """Another driver has taken the study over: whatever this one reports is refused (fencing)."""

    status = 409
    code = "lease_lost"
    title = "The study has another driver now"


class StoreUnavailableError(SamstudyError):
    """The database does not answer, or its schema is not the one this version needs."""

    status = 503
    code = "store_unavailable"
    title = "The study store is not available"


class ServiceUnavailableError(SamstudyError):
    """What the command or the client talks to does not answer."""

    status = 503
    code = "service_unavailable"
    title = "The service does not answer"
