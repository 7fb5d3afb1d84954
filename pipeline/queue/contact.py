"""Whether a worker reaches its queue: when Redis last replied, and the retry delay while it does not.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

RECONNECT_SECONDS = (0.1, 2.0)
# Longer than an idle worker blocks and than two renewals are apart: without a reply for so long a worker is not ready.
SILENT_SECONDS = 10.0


class Contact:
    """The contact of one worker with Redis."""

    def __init__(self, renew_seconds: float, on_reconnect: Callable[[], None]) -> None:
        """renew_seconds: between two renewals of leases.
        on_reconnect: called when Redis replies after an outage.
        """
        self.is_connected = True
        self._longest_silence_seconds = max(SILENT_SECONDS, 2 * renew_seconds)
        self._on_reconnect = on_reconnect
        self._error: BaseException | None = None
        self._delays = retry_delays(*RECONNECT_SECONDS)
        self._last_reply_at = 0.0

    def check(self) -> None:
        """Return when Redis has replied lately; DependencyUnavailable otherwise."""
        silent_seconds = asyncio.get_running_loop().time() - self._last_reply_at
        if not self.is_connected or silent_seconds > self._longest_silence_seconds:
            raise DependencyUnavailable(f"The queue has not answered for {silent_seconds:.0f} s") from self._error

    def replied(self) -> None:
        """Redis has replied."""
        self._last_reply_at = asyncio.get_running_loop().time()

    def reconnected(self) -> None:
        """The queue can be used: log it and call on_reconnect if that was not so before."""
        if not self.is_connected:
            self.is_connected, self._error = True, None
            log.info("queue_reconnected")
            self._on_reconnect()

    def lost(self, error: BaseException) -> None:
        """A call has failed: log it if the queue could be used before."""
        self._error = error.__cause__ or error
        if self.is_connected:
            log.warning("queue_unreachable", error=cause_of(error))
            self.is_connected = False
            self._delays = retry_delays(*RECONNECT_SECONDS)

    async def wait(self) -> None:
        """Wait for the next retry delay."""
        await asyncio.sleep(next(self._delays))
