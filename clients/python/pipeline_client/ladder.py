"""The choice of the transport: at the top the socket, below it the event stream, below that long polling.

A transport that cannot be opened twice in a row, or is open and mute, is replaced by the one below. While a lower one
is in use, the higher ones are tried from time to time. Knows no frames and no tokens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

from .access import ClientError, Fault, Unavailable
from .connection import Connection

TRANSPORTS = ("socket", "sse", "poll")
# How long until the higher transports are tried again: first and longest delay; it doubles.
CLIMB_SECONDS = (60.0, 600.0)
# The same after the service was down: then no transport was at fault.
QUICK_CLIMB_SECONDS = 1.0


class Ladder:
    """Opens the transport in use, and changes to a lower or a higher one."""

    def __init__(self, open_: Callable[[str], Awaitable[Connection]]) -> None:
        self._open = open_
        self._rung = 0
        self._faults = 0
        self._was_down = False
        self._delays = climb_delays()
        self._climbed_at = -CLIMB_SECONDS[1]
        self._climb_at: float | None = None  # None until the next climb is planned

    @property
    def transport(self) -> str:
        """The transport that is in use, or that is tried next."""
        return TRANSPORTS[self._rung]

    @property
    def is_at_top(self) -> bool:
        """True while there is no higher transport."""
        return self._rung == 0

    async def connect(self) -> Connection:
        """Return an open connection of the transport in use; Unavailable after its fault has been counted."""
        try:
            connection = await self._open(self.transport)
        except Unavailable as error:
            self.count(error)
            raise
        self._faults = 0
        return connection

    def count(self, error: Unavailable) -> None:
        """Add the error's points. With two change to the transport below, and from the last one to the top."""
        self._was_down = self._was_down or error.is_gateway
        # An error without points proves that this transport reaches the service, so the count begins again.
        self._faults = self._faults + error.fault if error.fault else 0
        if self._faults < Fault.MUTE:
            return
        self._faults = 0
        if time.monotonic() - self._climbed_at >= CLIMB_SECONDS[1]:
            self._delays = climb_delays()
        self._rung = (self._rung + 1) % len(TRANSPORTS)
        self._climb_at = None
        # No transport works: the service is down.
        self._was_down = self._was_down or self.is_at_top

    async def climb(self) -> Connection:
        """Return a connection of a higher transport, as soon as one can be opened.

        May be cancelled and called again: a reconnection in between does not delay the next try.
        """
        while True:
            await asyncio.sleep(self._seconds_to_climb())
            self._was_down, self._climb_at = False, None
            for rung, transport in enumerate(TRANSPORTS[: self._rung]):
                try:
                    connection = await self._open(transport)
                except ClientError:  # the transport in use will report it, if it affects that one too
                    continue
                self._rung, self._faults, self._climbed_at = rung, 0, time.monotonic()
                return connection

    def _seconds_to_climb(self) -> float:
        if self._was_down:
            return QUICK_CLIMB_SECONDS
        if self._climb_at is None:
            self._climb_at = time.monotonic() + next(self._delays)
        return self._climb_at - time.monotonic()


def climb_delays() -> Iterator[float]:
    """Yield the delay in seconds before each climb."""
    delay, longest = CLIMB_SECONDS
    while True:
        yield delay * random.uniform(0.8, 1)
        delay = min(delay * 2, longest)
