"""When a job is retried, and which reason of a failure its owner gets."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.queue.attempt import RetryPolicy, reason
from pipeline.queue.job import Job
from pipeline.settings import Settings

POLICY = RetryPolicy(attempts=3, backoff_ms=2000)


def make_job(**fields: Any) -> Job:
    """Return a job in its first attempt, with these fields changed."""
    return Job(
        **{"id": "q:1", "data": {}, "attempt": 1, "stalls": 0, "lease": "", "enqueued_at_ms": 0}
        | {"claimed_at_ms": 0}
        | fields
    )


@pytest.mark.spec("T019")
def test_policy_has_the_specified_options_by_default() -> None:
    """The defaults are three attempts, a backoff from 2000 ms, 120 s for a job, and 24 h and 7 days of retention."""
    settings = Settings()
    assert (settings.job_attempts, settings.backoff_ms, settings.job_timeout_seconds) == (3, 2000, 120)
    assert (settings.keep_completed_seconds, settings.keep_failed_seconds, settings.concurrency) == (86_400, 604_800, 5)
    assert RetryPolicy() == RetryPolicy(attempts=3, backoff_ms=2000, timeout_seconds=120, max_stalls=3)


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (RetryableJobError("x"), 1, 2000),
        (RetryableJobError("x"), 2, 4000),
        (RetryableJobError("x"), 3, None),  # the third attempt is the last
        (PermanentJobError("x"), 1, None),
        (KeyError("x"), 1, 2000),  # an unknown error is not permanent
        (DependencyUnavailable("x"), 2, 4000),
        (RetryableJobError("x", retry_after_seconds=30), 1, 2000),  # the requested delay is not the backoff
        (RetryableJobError("x", max_attempts=2), 1, 2000),
        (RetryableJobError("x", max_attempts=2), 2, None),  # a second invalid result is permanent
    ],
)
def test_policy_decides_by_error_and_attempt(error: Exception, attempt: int, expected: int | None) -> None:
    """The retry delay starts at the backoff and doubles; a permanent error and the last attempt give no delay."""
    assert POLICY.decide(error, attempt) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"attempt": 3}, None),
        ({"attempt": 4, "error": "AI service unavailable after 3 attempts"}, "AI service unavailable after 3 attempts"),
        ({"attempt": 4}, "Processing failed after 3 attempts"),
        ({"stalls": 2}, None),
        ({"stalls": 3}, "Processing stalled 3 times"),
    ],
)
def test_policy_refuses_claims_that_must_not_run(fields: dict[str, Any], expected: str | None) -> None:
    """A job beyond its attempts or its stalls is refused with a reason."""
    assert POLICY.refusal(make_job(**fields)) == expected


def test_reason_names_the_attempts_and_hides_unknown_errors() -> None:
    """The reason has the text of our own errors only: another text could contain a path or a secret."""
    assert reason(RetryableJobError("AI service unavailable"), 3) == "AI service unavailable after 3 attempts"
    assert reason(RetryableJobError("AI service unavailable"), 1) == "AI service unavailable after 1 attempt"
    assert reason(PermanentJobError("Not an image"), 1) == "Not an image"
    assert reason(PermanentJobError("bad \ud800 text"), 1) == "bad ? text"
    assert reason(OSError("/root/secret"), 2) == "Processing failed after 2 attempts"
