"""Claim: a job that this process has claimed. Its lease ends in loop time, which no change of the clock moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from math import inf
from typing import TypeVar

from pipeline.queue.job import Job

T = TypeVar("T")


class Claim:
    """A claimed job, from the step that brought it to the step that acknowledges it."""

    __slots__ = (
        *("job", "lease_ends_at", "claimed_at", "work_ends_at", "scope"),
        *("started_at", "ended_at", "cause", "is_ended", "is_released", "is_cancelled", "is_lost"),
    )

    def __init__(self, job: Job, lease_ends_at: float) -> None:
        self.job = job
        self.lease_ends_at = lease_ends_at
        self.claimed_at = asyncio.get_running_loop().time()  # when the reply of the step arrived
        self.work_ends_at = 0.0
        self.scope: asyncio.Timeout | None = None  # set while the handler runs
        self.started_at = self.ended_at = 0.0  # time.monotonic(), 0 before that
        self.cause = ""  # of the error it ended with, for the log
        self.is_ended = False
        self.is_released = self.is_cancelled = self.is_lost = False

    async def bounded(self, work: Awaitable[T], seconds: float = inf) -> T:
        """Await the handler for that long and no longer than the lease lasts; TimeoutError when either is over.

        `enforce` ends it: a timer for each job would cost more than all else here.
        """
        now = asyncio.get_running_loop().time()
        self.work_ends_at = now + seconds
        try:
            async with asyncio.timeout(None) as self.scope:
                self.enforce(now)
                return await work
        finally:
            self.scope = None

    def enforce(self, now: float) -> None:
        """Cancel the handler if its time is over; to be called often. now: in loop time."""
        if self.scope is not None and now >= min(self.lease_ends_at, self.work_ends_at) and not self.scope.expired():
            self.scope.reschedule(now)

    def renewed(self, lease_ends_at: float) -> None:
        """Adopt the new end of the lease."""
        if not self.is_ended:
            self.lease_ends_at = lease_ends_at

    def end(self) -> None:
        """Cancel the handler now, as if the lease had ended; a renewal that is under way does not undo it."""
        self.is_ended = True
        self.lease_ends_at = asyncio.get_running_loop().time()
        self.enforce(self.lease_ends_at)

    def cancel(self) -> None:
        """Cancel the handler now: its result is not wanted any more. The lease goes on until the acknowledgement."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self.end()

    @property
    def has_lease(self) -> bool:
        """True while no other process can have claimed the job."""
        return asyncio.get_running_loop().time() < self.lease_ends_at
