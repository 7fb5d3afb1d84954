"""Every error this service raises on purpose, in one tree.

Pure. `code` is part of the contract with clients, `message` is for people.
Only handlers/base.py turns these into replies; only queue/attempt.py decides from them whether a job is tried again.
"""

import errno
import math
import socket
import ssl
from collections.abc import Iterator

from pipeline.texts import MAX_CAUSE_LENGTH, MAX_CHAIN, cause_of, clean, line_of

# What the network says before anything has been asked.
UNREACHABLE = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)
# TLS that ends early does so before the question or while its answer is awaited: nobody can tell.
NOT_UNREACHABLE = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
# The last three: our own side can open no connection.
UNREACHABLE_NUMBERS = {
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ECONNREFUSED),
    *(errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE),
}
# As aiohttp, httpx, requests, urllib3 and botocore call it when no connection came about, also for lack of time: not
# those of waiting for the answer.
UNREACHABLE_NAMES = {
    *("ClientConnectorError", "ConnectionTimeoutError", "ConnectError", "ConnectTimeout", "ConnectTimeoutError"),
    *("NewConnectionError", "NameResolutionError", "EndpointConnectionError"),
}
# asyncio's word for an OSError at each address of a host.
AT_EACH_ADDRESS = "Multiple exceptions: "
MAX_DEPTH = 3
# What one of an error's details has.
DETAIL = ("field", "message")
MAX_MESSAGE_LENGTH = 1000
MAX_RETRY_AFTER_SECONDS = 86_400.0


class PipelineError(Exception):
    """Root of the tree: an error with the code, text and HTTP status a client is shown.

    details: a list of {"field", "message"}, or None.
    """

    code = "INTERNAL_ERROR"
    http_status = 500

    def __init__(self, message: str, *, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


def shown_to_client(error: PipelineError, otherwise: str) -> tuple[str, list[dict[str, str]] | None]:
    """Return the error's message and details as a reply has them: plugins put anything there, and so do names that a
    client has sent. otherwise: the message of one that has none.
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
        """Return the error for one field; without `message` the detail is the message too."""
        return cls(message or detail, details=[{"field": field, "message": detail}])

    def also(self, field: str, detail: str) -> "ValidationError":
        """Add what else is wrong, if there is a detail, and return the error."""
        if detail:
            self.details = [*(self.details or ()), {"field": field, "message": detail}]
        return self


class UnsupportedEncoding(ValidationError):
    """The body comes in a Content-Encoding that is not taken."""

    http_status = 415


class ExpectationFailed(ValidationError):
    """An Expect header asks for something that is not known."""

    http_status = 417


class IdempotencyKeyReused(ValidationError):
    """The same Idempotency-Key came with another payload."""

    http_status = 422


class Unauthorized(PipelineError):
    """No token, or one that does not hold: "Authentication required" or "Invalid token"."""

    code = "UNAUTHORIZED"
    http_status = 401


class Forbidden(PipelineError):
    """The caller is known and may not do this."""

    code = "FORBIDDEN"
    http_status = 403


class NotFound(PipelineError):
    """It is not there, or it is somebody else's: the caller cannot tell which."""

    code = "NOT_FOUND"
    http_status = 404


class Conflict(PipelineError):
    """The thing is there but not in a state that allows this."""

    code = "CONFLICT"
    http_status = 409


class RateLimited(PipelineError):
    """The caller has asked for as much as one caller may; retry_after_seconds: when to try again."""

    code = "RATE_LIMITED"
    http_status = 429

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DependencyUnavailable(PipelineError):
    """Redis, the store, the storage or the AI service cannot be reached; the cause is chained, never shown.

    retry_after_seconds: what the client is told in Retry-After, and for how long a plugin that says so is left alone;
    None: the client is told 5 s, and single calls try the plugin.
    asked_seconds: what was given, or None.
    """

    code = "UNAVAILABLE"
    http_status = 503

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.asked_seconds = _seconds(retry_after_seconds)
        self.retry_after_seconds = 5 if self.asked_seconds is None else max(1, math.ceil(self.asked_seconds))


class OutcomeUnknown(DependencyUnavailable):
    """No answer came to a write that may have been carried out all the same, or may yet be."""


class ConfigurationError(PipelineError):
    """The service cannot start as configured; the message says what to change."""


class JobError(PipelineError):
    """A job's work failed; the message, cut to MAX_MESSAGE_LENGTH, is stored with the asset and shown to its owner.

    usage: a pipeline.hooks.Usage, what the call of an AI provider cost although its answer is of no use; None when it
    cost nothing, or nobody knows.
    """

    # Whether the work was tried: see RetryableJobError.
    spends_attempt = True

    def __init__(self, message: str, *, usage: object | None = None) -> None:
        super().__init__(clean(message)[:MAX_MESSAGE_LENGTH])
        self.usage = usage


class RetryableJobError(JobError):
    """Trying again may help: connection errors, timeouts, 5xx, 408, 429, unreadable replies.

    retry_after_seconds: the least wait the other side asked for, or None.
    spends_attempt: False when the work was not tried at all, because the other side could not be asked; True when it
    was. None: True, unless there is a retry_after_seconds or the error comes from a connection that did not come about.
    An attempt that is not spent holds the provider: nobody asks it for retry_after_seconds or, without one, but for
    single probes.
    max_attempts: give up after this many starts even if the policy allows more, or None.
    usage: a pipeline.hooks.Usage: what a call of an AI provider took that was billed although its answer is of no use.
    provider: whom this is about; the pipeline fills it in.
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
    """What AI may cost today is spent. A job waits for the next day, however old it gets."""


class NotReady(Exception):
    """A plugin cannot start or be called yet. reason: why, for operators; retry_after_seconds: when to try again, each
    time as it says.
    """

    def __init__(self, reason: str, retry_after_seconds: float = 5) -> None:
        super().__init__(clean(reason)[:MAX_MESSAGE_LENGTH])
        is_number = 1 <= retry_after_seconds <= MAX_RETRY_AFTER_SECONDS
        self.retry_after_seconds = retry_after_seconds if is_number else 5.0


class SandboxLimit(RetryableJobError):
    """Work in a child process was ended: it took too long, needed too much memory, or its process crashed.

    limit: time | cpu | memory | crash. The work was tried, so the attempt is spent. It is tried twice at most: a busy
    machine may have been the reason once.
    """

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message, max_attempts=2)
        self.limit = limit


class PermanentJobError(JobError):
    """Trying again cannot help: other 4xx, an image the provider refuses.

    usage: as of RetryableJobError; budgets and metrics count it.
    """


class NotStorable(PermanentJobError):
    """The asset store will never hold this document; its text says why in the store's own words, not in the driver's.

    why: what is wrong with the document, e.g. "it is too large".
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"The asset store cannot hold this document: {why}")


def _seconds(asked: float | None) -> float | None:
    """Return what another service asks for as far as it is heeded: "nan" and "1e999" come too."""
    return min(asked, MAX_RETRY_AFTER_SECONDS) if asked is not None and asked >= 0 else None


def asked_seconds(error: BaseException) -> float | None:
    """Return how long the error says that its plugin is to be left alone, None when it says nothing of that."""
    if isinstance(error, (RetryableJobError, NotReady)):
        return error.retry_after_seconds
    # A plugin's own class need not have called ours.
    return getattr(error, "asked_seconds", None) if isinstance(error, DependencyUnavailable) else None


def plugin_error_text(error: BaseException) -> str:
    """Return what operators are told of a plugin's error: its author's words, and in brackets what they came from."""
    own = line_of(error)
    if not isinstance(error.__cause__, Exception):
        return own
    behind, text = cause_of(error), own.removeprefix(f"{type(error).__name__}: ")
    if text in behind:
        return behind
    if isinstance(error, (PipelineError, NotReady)):
        own = text
    return own if behind in own else f"{own} ({behind})"[:MAX_CAUSE_LENGTH]


def is_unreachable(error: BaseException, depth: int = MAX_DEPTH) -> bool:
    """True when the error, or what it came from, says that the other side was not reached at all.

    depth: how many groups of errors, one in the other, are looked into; every error of a group has to say so.
    """
    return any(_is_unreachable(each, depth) for each in _chain(error))


def _is_unreachable(error: BaseException, depth: int) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return depth > 0 and all(is_unreachable(each, depth - 1) for each in error.exceptions)
    if isinstance(error, NOT_UNREACHABLE):
        return False
    if isinstance(error, UNREACHABLE) or any(each.__name__ in UNREACHABLE_NAMES for each in type(error).__mro__):
        return True
    return isinstance(error, OSError) and (
        error.errno in UNREACHABLE_NUMBERS or (error.errno is None and str(error).startswith(AT_EACH_ADDRESS))
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from, as far as anybody would follow it."""
    following: BaseException | None = error
    for _ in range(MAX_CHAIN):
        if following is None:
            return
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
