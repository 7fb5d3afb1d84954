"""Work that goes on for a while when whoever waits for it is cancelled: a commit, and telling of it.

A run that loses its lease is cancelled. What it has sent to the store by then may stand all the same, as its fence
allows. Its owner has to hear of that from this run: another one hears of it only as long as Redis knows the job. Runs
on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

T = TypeVar("T")
LATE_SECONDS = 5.0


class LateCommits:
    """What is on its way to its end."""

    def __init__(self) -> None:
        self._late: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work. When that is cancelled the work has LATE_SECONDS more."""
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
