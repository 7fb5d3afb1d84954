"""Use case: the sockets of operators that ask are sent the overview, whenever it has changed.

Found out once for all of them, and not at all while there is none. Runs on the event loop.
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
# Without a change it is sent this often, so that its reader knows that it is up to date.
REPEAT_SECONDS = 10.0
# They change all the time and say nothing new.
RESTLESS = {"serverTime", "usedBytes", "tookMs", "nextTryInSeconds"}


class ConsoleFrames:
    """The room `operators` of this process."""

    def __init__(self, rooms: Rooms, overview: Overview) -> None:
        self._rooms = rooms
        self._overview = overview
        self._came = asyncio.Event()
        rooms.on_operator = self._came.set

    async def run(self) -> None:
        """Send what has changed while an operator's socket asks, for ever."""
        now = asyncio.get_running_loop().time
        said: Any = None
        said_at = float("-inf")
        while True:
            if not self._rooms.operators:
                await self._came.wait()
            # One that has just come is sent the overview at once; all others get it with it.
            is_new = self._came.is_set()
            self._came.clear()
            overview = await self._overview.read()
            steady = _without_restless(overview)
            if is_new or steady != said or now() - said_at >= REPEAT_SECONDS:
                said, said_at = steady, now()
                self._rooms.offer_operators(event_frame({"event": "overview"} | overview))
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._came.wait()


def _without_restless(shown: Any) -> Any:
    """Return the same without the members that change all the time."""
    if isinstance(shown, Mapping):
        return {name: _without_restless(each) for name, each in shown.items() if name not in RESTLESS}
    return [_without_restless(each) for each in shown] if isinstance(shown, list) else shown
