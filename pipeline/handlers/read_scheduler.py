"""Shares the event loop between request bodies, so that a large body does not delay everything else.

A client that sends faster than the server reads would otherwise occupy the loop until its whole body is read. Runs on
the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

# The most bytes of one read. Each read releases the interpreter's lock to the threads: with 64 KB, Tornado's default, a
# large body takes a third longer.
PIECE_BYTES = 256 * 1024
# After so many bytes a body waits until the scheduler lets it continue.
SHARE_BYTES = 512 * 1024


class ReadScheduler:
    """Lets waiting bodies continue in the order of their calls, one per iteration of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def next(self) -> asyncio.Future[None]:
        """Return a future that is done when the caller may continue to read."""
        permission = asyncio.get_running_loop().create_future()
        self._waiting.append(permission)
        if len(self._waiting) == 1:
            self._schedule()
        return permission

    def _schedule(self) -> None:
        asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        permission = self._waiting.popleft()
        if not permission.done():
            permission.set_result(None)
        if self._waiting:
            self._schedule()
