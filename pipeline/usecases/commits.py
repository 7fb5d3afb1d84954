"""Writes that a job has to make: repeated while the asset store is away, and finished when the job is cancelled.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

T = TypeVar("T")
RETRY_SECONDS = (0.2, 5.0)
LATE_SECONDS = 5.0


async def until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `write` once the store answers; the caller's lease, or a cancellation, ends the retries."""
    for delay in retry_delays(*RETRY_SECONDS):
        try:
            return await write()
        except DependencyUnavailable as error:
            log.warning("commit_deferred", delayMs=round(delay * 1000), cause=cause_of(error))
            await asyncio.sleep(delay)
    raise AssertionError("the delays never end")


class LateCommits:
    """Commits that go on for LATE_SECONDS when their job is cancelled.

    A job that loses its lease is cancelled. The store may still accept the commit that is under way, if its fence
    allows it. Only this run can then send the event: another run sees the commit only while Redis knows the job.
    """

    def __init__(self) -> None:
        self._late: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work. If the caller is cancelled, the work has LATE_SECONDS more to end."""
        task = asyncio.create_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                self._late.add(task)
                task.add_done_callback(self._ended)
                asyncio.get_running_loop().call_later(LATE_SECONDS, task.cancel)
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("late_commit_failed", cause=cause_of(error))
