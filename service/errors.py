"""The errors a user can meet. Each knows its HTTP status and a stable `code`; one handler in the API renders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROBLEMS = 100
"""Of one spec that are told one by one; nobody reads more, and an answer has an end."""


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
        if len(problems) > MAX_PROBLEMS:
            more = len(problems) - MAX_PROBLEMS
            problems = [*problems[:MAX_PROBLEMS], FieldProblem("spec", f"and {more:,} problems more like these")]
        lines = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        super().__init__(lines, problems=problems)


class InvalidRequestError(SamstudyError):
    """A request whose path, query or body cannot be read."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"


class MalformedBodyError(SamstudyError):
    """The body is not JSON."""

    status = 400
    code = "malformed_json"
    title = "The body is not JSON"


class BodyTooLargeError(SamstudyError):
    """The body is larger than any spec."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"


class BodyTooSlowError(SamstudyError):
    """The rest of the body did not come."""

    status = 408
    code = "body_too_slow"
    title = "The body did not come in time"


class UnsupportedMediaTypeError(SamstudyError):
    """The body is declared as something else than JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "The body must be JSON"


class StudyNotFoundError(SamstudyError):
    """No study has this id; or_name: nor has one this name."""

    status = 404
    code = "study_not_found"
    title = "No such study"

    def __init__(self, study_id: str, *, or_name: bool = False) -> None:
        super().__init__(f"no study has the id {'or the name ' * or_name}{study_id!r}")


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


class AttemptNotFoundError(SamstudyError):
    """The trial has no attempt with this number."""

    status = 404
    code = "attempt_not_found"
    title = "No such attempt"


class CheckpointNotFoundError(SamstudyError):
    """The trial has no checkpoint, or none of its best epoch."""

    status = 404
    code = "checkpoint_not_found"
    title = "No such checkpoint"


class SearchSpaceNotFoundError(SamstudyError):
    """No named search space has this name."""

    status = 404
    code = "search_space_not_found"
    title = "No such search space"


class WebhookNotFoundError(SamstudyError):
    """No webhook has this id."""

    status = 404
    code = "webhook_not_found"
    title = "No such webhook"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"no webhook has the id {webhook_id!r}")


class TooManyWebhooksError(SamstudyError):
    """Its owner has as many webhooks as one may have."""

    status = 409
    code = "too_many_webhooks"
    title = "Too many webhooks"


class KeyNotFoundError(SamstudyError):
    """No API key has this id."""

    status = 404
    code = "key_not_found"
    title = "No such key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no key has the id {key_id!r}")


class UnauthenticatedError(SamstudyError):
    """The request has no key, or none that is valid."""

    status = 401
    code = "unauthenticated"
    title = "A valid key is needed"


class ForbiddenError(SamstudyError):
    """The key is valid, and its role may not do this."""

    status = 403
    code = "forbidden"
    title = "The key's role may not do this"


class TooManyRequestsError(SamstudyError):
    """More than a caller may ask for in a minute, or have under way at a time."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests"
    retry_after_s: int | None = None
    """When it may be tried again, where that is known: sent as Retry-After."""


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


class VersionConflictError(SamstudyError):
    """Somebody else has changed the study since the caller read it."""

    status = 412
    code = "version_conflict"
    title = "The study has changed meanwhile"


class PreconditionRequiredError(SamstudyError):
    """A change must say which version of the study it is meant for."""

    status = 428
    code = "precondition_required"
    title = "Say which version of the study is to be changed"


class NotEnoughResultsError(SamstudyError):
    """What was asked for cannot be told from so few results, or from ones that are all the same."""

    status = 409
    code = "not_enough_results"
    title = "Not enough results yet"


class InvalidPointError(SamstudyError):
    """The point is not one of the study's search space."""

    status = 422
    code = "invalid_point"
    title = "The point is not in the search space"


class ConfigurationExistsError(SamstudyError):
    """The study has this point already."""

    status = 409
    code = "configuration_exists"
    title = "The study has this point already"


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


class BackupDamagedError(SamstudyError):
    """The file is not exactly what a backup wrote, or never was one."""

    status = 422
    code = "backup_damaged"
    title = "The backup is damaged"


class RestoreRefusedError(SamstudyError):
    """The store, or this version, cannot take the backup as it is."""

    status = 409
    code = "restore_refused"
    title = "The backup cannot be restored here"


class StorageUnavailableError(SamstudyError):
    """The storage of checkpoints and logs does not answer."""

    status = 503
    code = "storage_unavailable"
    title = "The storage is not available"


class ServiceUnavailableError(SamstudyError):
    """What the command or the client talks to does not answer."""

    status = 503
    code = "service_unavailable"
    title = "The service does not answer"


class ServiceSilentError(ServiceUnavailableError):
    """Nobody answers there, or not in time: to ask something else would only take as long again."""


class StoppingError(SamstudyError):
    """The process that was asked ends before the answer is there; another one, or the next, can be asked."""

    status = 503
    code = "stopping"
    title = "The service is being stopped"
