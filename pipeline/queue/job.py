"""What a job is, from its enqueue to the end of one start. Pure: no Redis, no clock; the payload is opaque here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pipeline.hold import BACKGROUND, Hold, Reservation


class JobState(StrEnum):
    """Where a job is: waiting (list), delayed (backoff), active (leased), completed or failed (dead letter)."""

    WAITING = "waiting"
    DELAYED = "delayed"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"


class Mode(StrEnum):
    """Whether jobs of the queue may be claimed, as lua/owner.lua says."""

    RUNNING = "running"
    PAUSED = "paused"
    UNOWNED = "unowned"
    FOREIGN = "foreign"


class Outcome(StrEnum):
    """How an attempt ended; each outcome requires that the lease is still held.

    PARKED: the job waits until its lane opens.
    CANCELLED: as COMPLETED, without a result.
    """

    COMPLETED = "completed"
    RETRY = "retry"
    PARKED = "parked"
    FAILED = "failed"
    RELEASED = "released"
    CANCELLED = "cancelled"


# After these a job is not run again.
ENDS = (Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be enqueued; its fields are explained at JobQueue.enqueue."""

    id: str
    data: Mapping[str, Any]
    request_id: str = ""
    trace_context: str = ""
    group: str = ""
    lane: str = ""
    revive: bool = False
    submitted_at_ms: int = 0


class Job(NamedTuple):
    """A job as it was claimed.

    data: the payload, exactly as it was enqueued.
    attempt: starts so far including this one, from 1.
    stalls: how often its process was lost.
    lease: the name of this claim; an acknowledgement needs it.
    error: why the last attempt failed.
    submitted_at_ms: when it was first enqueued, however often Redis has lost it since.
    tries: the held provider that this job alone may ask, to see whether it works again; "" as a rule.
    reservation: the call that it has reserved, of a provider with a pace.
    is_first: as far as Redis knows the job was never claimed, and Redis has not lost it.
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
    submitted_at_ms: int = 0
    tries: str = ""
    reservation: Reservation | None = None
    is_first: bool = False

    @property
    def first_wait_seconds(self) -> float | None:
        """How long it has waited for its first start; None at a later start, and for a job in the background."""
        is_first = self.attempt == 1 and not self.stalls and self.group != BACKGROUND
        return (self.claimed_at_ms - self.enqueued_at_ms) / 1000 if is_first else None


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A dead letter: a job that failed for good. Fields of a damaged record are {}, "", 0 or None.

    data: the payload.
    error: the reason.
    attempts: how often it was started.
    stalls: how often its process was lost.
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
    """A page of dead letters, newest first. older: how many follow."""

    jobs: Sequence[FailedJob]
    older: int

    @property
    def next_after(self) -> tuple[datetime, str] | None:
        """(failed_at, id) after which the next page begins, None on the last."""
        return (self.jobs[-1].failed_at, self.jobs[-1].id) if self.older else None


class Finish(NamedTuple):
    """The end of one claim, to be acknowledged with the next step.

    delay_ms: wait before the next attempt; doubled by each start that was given back.
    refunds_attempt: the attempt is not counted.
    error: the reason, "" for completed and released.
    """

    job: Job
    outcome: Outcome
    delay_ms: int = 0
    refunds_attempt: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step.

    lost: leases that this worker no longer held.
    has_more: jobs are left waiting.
    next_due_ms: until the next delayed or parked job may be claimed, or None.
    holds: all providers that are held.
    """

    claimed: list[Job] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    has_more: bool = False
    next_due_ms: int | None = None
    mode: Mode = Mode.RUNNING
    holds: Sequence[Hold] = ()
