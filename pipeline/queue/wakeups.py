"""What wakes a worker that waits: a marker in Redis, a timer, or a change in its own process.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio

import structlog

from pipeline.errors import DependencyUnavailable
from pipeline.queue.contact import Contact
from pipeline.queue.queue import JobQueue
from pipeline.supervision import cancel

log = structlog.get_logger(__name__)


class Wakeups:
    """The wake-ups of one worker."""

    def __init__(self, queue: JobQueue, contact: Contact) -> None:
        self._queue = queue
        self._contact = contact
        self._is_set = asyncio.Event()
        self._marker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Wake the worker now."""
        self._is_set.set()

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        self._is_set.clear()

    async def wait(self) -> None:
        """Return at the next wake-up."""
        await self._is_set.wait()

    def set_in(self, *seconds: float | None) -> None:
        """Wake the worker after the least of these times, instead of the time that was set before; None: never."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if waits := [each for each in seconds if each is not None]:
            # One more millisecond: Redis rounds down, and a step that comes too early would spin.
            self._timer = asyncio.get_running_loop().call_later(min(waits) + 0.001, self.set)

    def listen(self) -> None:
        """Block on the wake-up marker beside the running jobs; the call is never cancelled, so no marker is lost."""
        if self._marker is None or self._marker.done():
            self._marker = asyncio.create_task(self._queue.wait_for_work(), name="wait_for_work")
            self._marker.add_done_callback(self._marker_done)

    async def close(self) -> None:
        """Stop listening, and the timer."""
        await cancel([self._marker] if self._marker else [])
        if self._timer:
            self._timer.cancel()

    def _marker_done(self, marker: asyncio.Task[None]) -> None:
        if not marker.cancelled():
            if (error := marker.exception()) is None:
                self._contact.replied()
            else:
                # The step that follows may reach a Redis that shows no trace of its restart.
                self._contact.lost(error)
                if not isinstance(error, DependencyUnavailable):
                    log.error("waiting_failed", exc_info=error)
        self.set()
