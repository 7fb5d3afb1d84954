"""Bodies of requests take turns at the event loop, so that it is not late for all the others.

A client that sends faster than we read would otherwise keep the loop until its whole body is in. Runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

# How much is read from a socket at once. Each read gives the interpreter's lock to the threads: with 64 KB, Tornado's
# default, a large body takes a third longer.
PIECE_BYTES = 256 * 1024
# How much of a body is read before others have their turn, of which there is one in each step of the event loop.
TURN_BYTES = 512 * 1024


class ReadScheduler:
    """Lets those who wait go on one after the other, one in each step of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def next(self) -> asyncio.Future[None]:
        """Return what is done when the caller may go on."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._grant_soon()
        return turn

    def _grant_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        turn = self._waiting.popleft()
        if not turn.done():
            turn.set_result(None)
        if self._waiting:
            self._grant_soon()
