"""The meaning of a plugin's exception: for the job, and for the breaker of the plugin.

queue/attempt.py decides what the attempt costs; it depends on whether the plugin worked on the job at all. Pure, except
that it changes the breaker.
"""

from __future__ import annotations

from pipeline.errors import (
    DependencyUnavailable,
    JobError,
    NotReady,
    PermanentJobError,
    PipelineError,
    RetryableJobError,
    SandboxLimit,
    asked_seconds,
    is_unreachable,
    plugin_error_text,
)
from pipeline.hooks.breaker import Breaker
from pipeline.hooks.running_calls import PluginBusy, PluginOverrun
from pipeline.texts import cause_of, clean, mask

HOOK_FAILED, NOT_READY = "The hook failed", "Not ready"


def job_error(raised: Exception, name: str, service: str) -> JobError:
    """Return the exception as the job's error.

    name: of the plugin.
    service: the word for it in messages to owners of photos.
    """
    if isinstance(raised, PermanentJobError):
        return raised
    if isinstance(raised, RetryableJobError):
        error = raised
        if error.depends_on_cause and is_unreachable(raised):
            error.spends_attempt = False
    elif isinstance(raised, PluginBusy):
        error = RetryableJobError(f"{service} is busy", spends_attempt=False)
    elif isinstance(raised, PluginOverrun):
        error = RetryableJobError(f"{service} timed out")
    elif isinstance(raised, NotReady):
        error = RetryableJobError(f"{service} is not ready", spends_attempt=False)
    elif isinstance(raised, DependencyUnavailable) or is_unreachable(raised):
        seconds = asked_seconds(raised)
        error = RetryableJobError(f"{service} unavailable", retry_after_seconds=seconds, spends_attempt=False)
    else:
        error = RetryableJobError(f"{service} failed")
    if not error.spends_attempt:
        error.provider = name
    return error


def record_failure(breaker: Breaker, error: JobError, raised: Exception, *, counts: bool) -> None:
    """Change the breaker after an exception.

    counts: failures of any kind in a row hold the plugin, except those that say when this job is to be tried again.
    """
    cause = cause_beside(error, raised)
    if isinstance(error, RetryableJobError) and not error.spends_attempt:
        if isinstance(raised, NotReady):
            breaker.unreachable(error.message, cause, raised.retry_after_seconds)
        elif error.retry_after_seconds is None:
            breaker.unreachable(error.message, cause)
        else:
            breaker.busy(error.retry_after_seconds, error.message, cause)
    elif isinstance(raised, SandboxLimit):
        return  # the photo was the reason, not the provider
    elif isinstance(error, RetryableJobError) and counts and error.retry_after_seconds is None:
        breaker.failed(error.message, cause)
    elif not isinstance(raised, PluginOverrun):
        breaker.answered()


def record_hook_failure(breaker: Breaker, raised: Exception, name: str) -> None:
    """Change the breaker after an exception of a filter or observer. A time in the exception concerns the plugin, since
    no job is retried because of it.
    """
    error = job_error(raised, name, "The hook")
    if not isinstance(error, RetryableJobError) or isinstance(error, SandboxLimit):
        error = RetryableJobError(HOOK_FAILED)
    if error.retry_after_seconds is not None:
        error.spends_attempt = False
    if isinstance(raised, PipelineError):
        error.message = mask(clean(str(getattr(raised, "message", "")))) or HOOK_FAILED
    else:
        error.message = NOT_READY if isinstance(raised, NotReady) else HOOK_FAILED
    record_failure(breaker, error, raised, counts=True)


def cause_beside(error: JobError, raised: Exception) -> str:
    """Return the cause of an error for operators, who see the error's message beside it."""
    return cause_of(raised) if error.message == getattr(raised, "message", None) else plugin_error_text(raised)


def held_error(name: str, breaker: Breaker) -> RetryableJobError:
    """Return the error of a job whose plugin was not called because it is held."""
    error = RetryableJobError(breaker.reason, spends_attempt=False)
    error.provider = name
    error.__cause__ = Held(breaker.cause) if breaker.cause else None
    return error


class Held(Exception):
    """The plugin was not called; the text says why it failed before."""
