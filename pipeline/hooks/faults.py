"""What an exception of a provider or durable notifier means: for the job, and for those who would ask the same one.

Whether the work was tried at all is the question on which queue/attempt.py decides what it costs. Pure but for the
breaker that it is told of.
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
from pipeline.hooks.running import PluginBusy, PluginOverrun
from pipeline.texts import cause_of, clean, mask

HOOK_FAILED, NOT_READY = "The hook failed", "Not ready"


def job_error(raised: Exception, name: str, service: str) -> JobError:
    """Return the exception as the job's error. name: of the plugin; service: what owners know it as."""
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


def note(breaker: Breaker, error: JobError, raised: Exception, *, counts: bool) -> None:
    """Tell the breaker of what was raised. counts: so many failures in a row, whatever they are, hold the plugin, but
    not those of which it said when this one is to be tried again.
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
        return  # that was the photo, and says nothing of the provider
    elif isinstance(error, RetryableJobError) and counts and error.retry_after_seconds is None:
        breaker.failed(error.message, cause)
    elif not isinstance(raised, PluginOverrun):
        breaker.answered()


def note_hook(breaker: Breaker, raised: Exception, name: str) -> None:
    """Tell the breaker of what a filter or observer raised, which is about no job: a time that it gives is its own."""
    error = job_error(raised, name, "The hook")
    if not isinstance(error, RetryableJobError) or isinstance(error, SandboxLimit):
        error = RetryableJobError(HOOK_FAILED)
    if error.retry_after_seconds is not None:
        error.spends_attempt = False
    if isinstance(raised, PipelineError):
        error.message = mask(clean(str(getattr(raised, "message", "")))) or HOOK_FAILED
    else:
        error.message = NOT_READY if isinstance(raised, NotReady) else HOOK_FAILED
    note(breaker, error, raised, counts=True)


def cause_beside(error: JobError, raised: Exception) -> str:
    """Return what operators are told of what was raised, where the error's message stands beside it."""
    return cause_of(raised) if error.message == getattr(raised, "message", None) else plugin_error_text(raised)


def held(name: str, breaker: Breaker) -> RetryableJobError:
    """Return the error of a job that did not ask the plugin because it is held."""
    error = RetryableJobError(breaker.reason, spends_attempt=False)
    error.provider = name
    error.__cause__ = Held(breaker.cause) if breaker.cause else None
    return error


class Held(Exception):
    """The plugin was not asked: what it failed of before."""
