"""Long polls: an HTTP request that waits in its user's room, like a socket, until its answer is ready.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipeline.errors import DependencyUnavailable, RateLimited
from pipeline.rooms.codes import TOO_MANY_CONNECTIONS, CloseCode
from pipeline.usecases.admission import CROWDED_RETRY_SECONDS, Admission
from pipeline.usecases.replay import RESYNC

T = TypeVar("T")
MAX_WAIT_SECONDS = 60
# One preference of a Prefer header: the value may be quoted, its parameters are ignored. RFC 7240, section 2.
PREFERENCE = re.compile(r'\s*([^=;,\s"]+)\s*(?:=\s*(?:"([^"]*)"|([^;,\s"]*)))?\s*(?:;[^,]*)?', re.ASCII)


class Polling:
    """One request that may wait. It counts as a connection of its user, as a socket does; a drain ends the wait."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._has_changed = asyncio.Event()
        self._code: int | None = None

    @property
    def is_draining(self) -> bool:
        """True when this process is shutting down."""
        return self._admission.is_draining

    async def until(
        self,
        read: Callable[[], Awaitable[T]],
        is_enough: Callable[[T], bool],
        *,
        user_id: str,
        seconds: float,
        asset_id: str = "",
    ) -> T:
        """Return the result of `read` as soon as it is enough; after the time limit, the last result.

        read: reads the current state.
        is_enough: says whether a result needs no more waiting.
        seconds: the time limit.
        asset_id: only events of this asset are a reason to read again; "": every event is.
        RateLimited when the user has too many connections, DependencyUnavailable when the process has.
        """
        self._asset_id = asset_id.encode()
        deadline = asyncio.get_running_loop().time() + seconds
        result = await read()
        if is_enough(result) or seconds <= 0 or self._admission.is_draining or self._code is not None:
            return result
        rooms = self._admission.rooms
        connection = rooms.open(self._on_frame, self._close, self._has_changed.set, transport="poll")
        try:
            if self._admission.is_full:
                raise DependencyUnavailable(TOO_MANY_CONNECTIONS)
            await self._admission.enter(user_id, connection)
            connection.start()
            # After joining the room: an asset that finished before is in the store, a later event comes to the room.
            while not is_enough(result := await read()) and await self._wait(deadline):
                pass
            if self._code == CloseCode.TRY_LATER and not is_enough(result):
                raise RateLimited(TOO_MANY_CONNECTIONS, retry_after_seconds=CROWDED_RETRY_SECONDS)
            return result
        finally:
            rooms.forget(connection)

    def abandon(self) -> None:
        """End the wait: the client has disconnected."""
        self._close(CloseCode.DRAIN)

    async def _wait(self, deadline: float) -> bool:
        """Wait for an event or the deadline; False when no more read is needed."""
        if self._code is not None:
            return False
        try:
            async with asyncio.timeout_at(deadline):
                await self._has_changed.wait()
        except TimeoutError:
            # Read a last time: an event may have been lost, if its process cannot reach Redis.
            self._code = CloseCode.DRAIN
        self._has_changed.clear()
        return True

    def _on_frame(self, frame: bytes) -> None:
        if self._asset_id in frame or RESYNC in frame:
            self._has_changed.set()

    def _close(self, code: int) -> None:
        self._code = code
        self._has_changed.set()


def preferred_wait(header: str) -> int | None:
    """Return the seconds of `wait` in a Prefer header, at most MAX_WAIT_SECONDS; None without a valid `wait`."""
    for preference in PREFERENCE.finditer(header):
        if preference[1].lower() == "wait":
            value = preference[2] or preference[3] or ""
            if re.fullmatch(r"[0-9]{1,6}", value) and int(value) > 0:
                return min(int(value), MAX_WAIT_SECONDS)
            return None
    return None
