"""What a job is and when it is tried again. Pure: no Redis, no clock; the payload is opaque here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pipeline.errors import JobError, PermanentJobError, RetryableJobError


class JobState(StrEnum):
    """Where a job is: waiting (list), delayed (backoff), active (leased), completed or failed (dead letter)."""

    WAITING = "waiting"
    DELAYED = "delayed"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"


class Outcome(StrEnum):
    """How a slot is done with a job; each requires the lease still to be held."""

    COMPLETED = "completed"
    RETRY = "retry"
    FAILED = "failed"
    RELEASED = "released"


class Verdict(StrEnum):
    """What the end of a job says of what all jobs lean on: it works, it does not, or nothing at all."""

    GOOD = "good"
    BAD = "bad"
    NONE = ""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be enqueued; JobQueue.enqueue says what the fields mean."""

    id: str
    data: Mapping[str, Any]
    request_id: str = ""
    trace_context: str = ""
    group: str = ""
    revive: bool = False


class Job(NamedTuple):
    """A job as it was claimed.

    data: the payload, exactly as it was enqueued. attempt: starts so far including this one, from 1. stalls: how often
    its process was lost. lease: what proves that this claim still holds. error: why the last attempt failed. is_probe:
    it was let through to see whether what all jobs lean on works again.
    """

    id: str
    data: Mapping[str, Any]
    attempt: int
    stalls: int
    lease: str
    enqueued_at_ms: int
    claimed_at_ms: int
    request_id: str = ""
    trace_context: str = ""
    error: str = ""
    group: str = ""
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A dead letter: a job that failed for good. Its record may be damaged: then what is not known is {}, "", 0 or
    None.

    data: the payload. error: the reason. attempts: starts; stalls: how often its process was lost.
    """

    id: str
    failed_at: datetime
    data: Mapping[str, Any]
    error: str
    attempts: int
    stalls: int
    enqueued_at: datetime | None
    request_id: str


@dataclass(frozen=True, slots=True)
class FailedPage:
    """Some dead letters, newest first. older: how many follow."""

    jobs: Sequence[FailedJob]
    older: int

    @property
    def next_after(self) -> tuple[datetime, str] | None:
        """(failed_at, id) after which the next page begins, None on the last."""
        return (self.jobs[-1].failed_at, self.jobs[-1].id) if self.older else None


class Finish(NamedTuple):
    """The end of one claim, to be acknowledged with the next step.

    delay_ms: wait before the next attempt. gives_back: the attempt is not counted. error: the reason, for retry and
    failed. hold_ms: nobody claims for that long.
    """

    job: Job
    outcome: Outcome
    delay_ms: int = 0
    gives_back: bool = False
    error: str = ""
    verdict: Verdict = Verdict.NONE
    hold_ms: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. lost: leases that were no longer ours. has_more: jobs are left waiting. next_due_ms: until the
    next delayed job, or None. held_ms: until jobs are claimed again, 0 when they are.
    """

    claimed: list[Job] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    has_more: bool = False
    next_due_ms: int | None = None
    is_paused: bool = False
    held_ms: int = 0
    is_breaker_open: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts, backoff and time limit of a queue's jobs.

    Source: queue configuration in the specification (3 attempts, exponential from 2000 ms, timeout 120 s).
    """

    attempts: int = 3
    backoff_ms: int = 2000
    timeout_seconds: float = 120
    max_stalls: int = 3

    def decide(self, error: Exception, attempt: int) -> int | None:
        """Return the wait before the next attempt in milliseconds, or None to give up.

        attempt: how many times the job has been started, from 1. Doubles from backoff_ms: 2000, 4000. The last attempt
        and any PermanentJobError give None. Unknown errors are retried.
        """
        if isinstance(error, PermanentJobError) or attempt >= self.attempts:
            return None
        if isinstance(error, RetryableJobError) and error.max_attempts is not None and attempt >= error.max_attempts:
            return None
        delay_ms: int = self.backoff_ms * 2 ** (attempt - 1)
        return delay_ms

    def spent(self, job: Job) -> str | None:
        """Return why this claim must not run at all, or None. A start beyond the limit means the process was lost
        giving it up.
        """
        if job.stalls >= self.max_stalls:
            return f"Processing stalled {job.stalls} times"
        if job.attempt > self.attempts:
            return job.error or f"Processing failed after {self.attempts} attempts"
        return None


def reason(error: Exception, attempt: int) -> str:
    """Return what the owner is told of a job's last error: its own text when it was raised on purpose, never an
    internal one.
    """
    text = error.message if isinstance(error, JobError) else "Processing failed"
    # A service may send half a surrogate pair, which no database takes.
    text = text.encode("utf-8", "replace").decode()
    if isinstance(error, PermanentJobError):
        return text
    return f"{text} after {attempt} attempt{'' if attempt == 1 else 's'}"
