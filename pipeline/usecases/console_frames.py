"""Use case: operators' sockets that want it get the overview whenever it changes.

The overview is read once for all of them, and not at all while there is none. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.rooms.frames import event_frame
from pipeline.rooms.rooms import Rooms
from pipeline.usecases.overview import Overview

EVERY_SECONDS = 2.0
# Without a change it is sent this often, so that its reader knows that the connection works.
REPEAT_SECONDS = 10.0
# These members change all the time; their change alone is no reason to send the overview.
RESTLESS = {"serverTime", "usedBytes", "tookMs", "nextTryInSeconds"}


class ConsoleFrames:
    """Sends the overview to the operators of this process."""

    def __init__(self, rooms: Rooms, overview: Overview) -> None:
        self._rooms = rooms
        self._overview = overview
        self._came = asyncio.Event()
        rooms.on_operator = self._came.set

    async def run(self) -> None:
        """Send changes while there are operators' sockets, for ever."""
        now = asyncio.get_running_loop().time
        sent: Any = None
        sent_at = float("-inf")
        while True:
            if not self._rooms.operators:
                await self._came.wait()
            # A new socket gets the overview at once, and so do all others.
            is_new = self._came.is_set()
            self._came.clear()
            overview = await self._overview.read()
            steady = _without_restless(overview)
            if is_new or steady != sent or now() - sent_at >= REPEAT_SECONDS:
                sent, sent_at = steady, now()
                self._rooms.offer_operators(event_frame({"event": "overview"} | overview))
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._came.wait()


def _without_restless(shown: Any) -> Any:
    """Return the overview without the members that change all the time."""
    if isinstance(shown, Mapping):
        return {name: _without_restless(each) for name, each in shown.items() if name not in RESTLESS}
    return [_without_restless(each) for each in shown] if isinstance(shown, list) else shown
