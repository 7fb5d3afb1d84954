"""Every error this service raises on purpose, in one tree.

Pure. `code` is part of the contract with clients, `message` is for people.
Only handlers/replies.py turns errors into replies; only queue/attempt.py decides from them whether a job is retried.
"""

import math

from pipeline.texts import MAX_CAUSE_LENGTH, cause_of, clean, line_of
from pipeline.unreachable import is_unreachable as is_unreachable  # noqa: F401 - plugins import it from here

# The fields of each entry of an error's details.
DETAIL = ("field", "message")
MAX_MESSAGE_LENGTH = 1000
MAX_RETRY_AFTER_SECONDS = 86_400.0


class PipelineError(Exception):
    """Root of the tree: an error with the code, text and HTTP status that a client gets.

    details: a list of {"field", "message"}, or None.
    """

    code = "INTERNAL_ERROR"
    http_status = 500

    def __init__(self, message: str, *, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


def shown_to_client(error: PipelineError, otherwise: str) -> tuple[str, list[dict[str, str]] | None]:
    """Return the error's message and details, cleaned: plugins and clients may have put any text into them.

    otherwise: the message for an error without one.
    """
    message = clean(error.message)[:MAX_MESSAGE_LENGTH] if isinstance(error.message, str) else ""
    given = error.details if isinstance(error.details, (list, tuple)) else ()
    details = [{name: clean(detail[name]) for name in DETAIL} for detail in given if _is_detail(detail)]
    return message or otherwise, details or None


def _is_detail(detail: object) -> bool:
    return isinstance(detail, dict) and all(isinstance(detail.get(name), str) for name in DETAIL)


class ValidationError(PipelineError):
    """The request breaks the contract; details name each field."""

    code = "VALIDATION_ERROR"
    http_status = 400

    @classmethod
    def of(cls, field: str, detail: str, message: str | None = None) -> "ValidationError":
        """Return the error for one field. Without `message` the detail is the message too."""
        return cls(message or detail, details=[{"field": field, "message": detail}])

    def also(self, field: str, detail: str) -> "ValidationError":
        """Add a second fault, unless its detail is empty, and return the error."""
        if detail:
            self.details = [*(self.details or ()), {"field": field, "message": detail}]
        return self


class UnsupportedEncoding(ValidationError):
    """The body has a Content-Encoding that is not supported."""

    http_status = 415


class ExpectationFailed(ValidationError):
    """An Expect header has an unknown value."""

    http_status = 417


class IdempotencyKeyReused(ValidationError):
    """The same Idempotency-Key came with another payload."""

    http_status = 422


class Unauthorized(PipelineError):
    """No token, or an invalid one: "Authentication required" or "Invalid token"."""

    code = "UNAUTHORIZED"
    http_status = 401


class Forbidden(PipelineError):
    """The caller is known and may not do this."""

    code = "FORBIDDEN"
    http_status = 403


class NotFound(PipelineError):
    """It does not exist, or it belongs to another user: the reply is the same."""

    code = "NOT_FOUND"
    http_status = 404


class Conflict(PipelineError):
    """It exists, but its state does not allow this."""

    code = "CONFLICT"
    http_status = 409


class RateLimited(PipelineError):
    """The caller has reached a limit.

    retry_after_seconds: how long to wait.
    """

    code = "RATE_LIMITED"
    http_status = 429

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DependencyUnavailable(PipelineError):
    """Redis, the store, the storage or the AI service cannot be reached; the cause is chained, never shown.

    retry_after_seconds: the Retry-After of the reply, and how long a plugin that raises it is not called. None: the
        client gets 5 s, and single calls probe the plugin.
    asked_seconds: the given value, or None.
    """

    code = "UNAVAILABLE"
    http_status = 503

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.asked_seconds = _seconds(retry_after_seconds)
        self.retry_after_seconds = 5 if self.asked_seconds is None else max(1, math.ceil(self.asked_seconds))


class OutcomeUnknown(DependencyUnavailable):
    """A write got no answer. It may have been carried out, or may still be."""


class ConfigurationError(PipelineError):
    """The service cannot start as configured; the message says what to change."""


class JobError(PipelineError):
    """A job's work failed; the message, cut to MAX_MESSAGE_LENGTH, is stored with the asset and shown to its owner.

    usage: a pipeline.hooks.Usage, the cost of an AI provider's call although its answer is useless; None when it cost
        nothing, or the cost is unknown.
    """

    # Whether the work was tried, see RetryableJobError.
    spends_attempt = True

    def __init__(self, message: str, *, usage: object | None = None) -> None:
        super().__init__(clean(message)[:MAX_MESSAGE_LENGTH])
        self.usage = usage


class RetryableJobError(JobError):
    """A retry may help: connection errors, timeouts, 5xx, 408, 429, unreadable replies.

    retry_after_seconds: the least delay that the other side asked for, or None.
    spends_attempt: True when the work was tried, False when it was not, because the other side could not be asked.
        None: False with a retry_after_seconds or if no connection was made, else True. An attempt that is not spent
        holds the provider: it is not asked for retry_after_seconds or, without these, asked by single probes only.
    max_attempts: give up after so many starts even if the policy allows more, or None.
    usage: a pipeline.hooks.Usage, the cost of an AI provider's call although its answer is useless.
    provider: the provider of the call; the pipeline fills it in.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        spends_attempt: bool | None = None,
        max_attempts: int | None = None,
        usage: object | None = None,
    ) -> None:
        super().__init__(message, usage=usage)
        self.retry_after_seconds = _seconds(retry_after_seconds)
        self.spends_attempt = self.retry_after_seconds is None if spends_attempt is None else bool(spends_attempt)
        self.depends_on_cause = spends_attempt is None and self.retry_after_seconds is None
        self.max_attempts = None if max_attempts is None else int(max_attempts)
        self.provider = ""


class BudgetReached(RetryableJobError):
    """The AI budget of today is used up. A job waits for the next day, whatever its age."""


class NotReady(Exception):
    """A plugin cannot start or be called yet.

    reason: the reason, for operators.
    retry_after_seconds: the delay before the next try.
    """

    def __init__(self, reason: str, retry_after_seconds: float = 5) -> None:
        super().__init__(clean(reason)[:MAX_MESSAGE_LENGTH])
        is_number = 1 <= retry_after_seconds <= MAX_RETRY_AFTER_SECONDS
        self.retry_after_seconds = retry_after_seconds if is_number else 5.0


class SandboxLimit(RetryableJobError):
    """Work in a child process was ended: it took too long, needed too much memory, or its process crashed.

    limit: time | cpu | memory | crash.
    The work was tried, so the attempt is spent. It is tried at most twice: once a busy machine may be the reason.
    """

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message, max_attempts=2)
        self.limit = limit


class PermanentJobError(JobError):
    """A retry cannot help: other 4xx, an image that the provider refuses.

    usage: as in RetryableJobError; budgets and metrics count it.
    """


class NotStorable(PermanentJobError):
    """The asset store can never store this document.

    why: the fault of the document in plain words, such as "it is too large".
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"The asset store cannot hold this document: {why}")


def _seconds(asked: float | None) -> float | None:
    """Return the delay that another service asked for, bounded; None for values such as NaN."""
    return min(asked, MAX_RETRY_AFTER_SECONDS) if asked is not None and asked >= 0 else None


def asked_seconds(error: BaseException) -> float | None:
    """Return for how long the error asks not to call its plugin, None when it does not."""
    if isinstance(error, (RetryableJobError, NotReady)):
        return error.retry_after_seconds
    # getattr: a plugin's subclass may not have called our constructor.
    return getattr(error, "asked_seconds", None) if isinstance(error, DependencyUnavailable) else None


def plugin_error_text(error: BaseException) -> str:
    """Return a plugin's error as a text for operators: its own message, and its cause in brackets."""
    own = line_of(error)
    if not isinstance(error.__cause__, Exception):
        return own
    behind, text = cause_of(error), own.removeprefix(f"{type(error).__name__}: ")
    if text in behind:
        return behind
    if isinstance(error, (PipelineError, NotReady)):
        own = text
    return own if behind in own else f"{own} ({behind})"[:MAX_CAUSE_LENGTH]
