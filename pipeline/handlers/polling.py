"""Long polls: an HTTP request that waits in its user's room, like a socket, until there is something to answer.

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
# One preference of the header; a value may stand in quotes, parameters after it are not ours. RFC 7240, section 2.
PREFERENCE = re.compile(r'\s*([^=;,\s"]+)\s*(?:=\s*(?:"([^"]*)"|([^;,\s"]*)))?\s*(?:;[^,]*)?', re.ASCII)


class Polling:
    """One request that may wait. It is a connection of its user like a socket, and freed when the process goes away."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._news = asyncio.Event()
        self._code: int | None = None

    @property
    def is_draining(self) -> bool:
        """Whether this process goes away."""
        return self._admission.is_draining

    async def until(
        self,
        read: Callable[[], Awaitable[T]],
        is_enough: Callable[[T], bool],
        *,
        user_id: str,
        seconds: float,
        about: str = "",
    ) -> T:
        """Return what `read` returns as soon as that is enough; when the time is over, whatever it is.

        about: an asset id; only events that hold it are a reason to read again.
        RateLimited when the user has too many connections, DependencyUnavailable when the process has.
        """
        self._about = about.encode()
        deadline = asyncio.get_running_loop().time() + seconds
        found = await read()
        if is_enough(found) or seconds <= 0 or self._admission.is_draining or self._code is not None:
            return found
        rooms = self._admission.rooms
        connection = rooms.open(self._take, self._close, self._news.set, transport="poll")
        try:
            if self._admission.is_full:
                raise DependencyUnavailable(TOO_MANY_CONNECTIONS)
            await self._admission.enter(user_id, connection)
            connection.start()
            # What was finished while it joined is in the store, what is finished from now on comes to the room.
            while not is_enough(found := await read()) and await self._has_news(deadline):
                pass
            if self._code == CloseCode.TRY_LATER and not is_enough(found):
                raise RateLimited(TOO_MANY_CONNECTIONS, retry_after_seconds=CROWDED_RETRY_SECONDS)
            return found
        finally:
            rooms.forget(connection)

    def abandon(self) -> None:
        """The client is gone: wait no longer."""
        self._close(CloseCode.DRAIN)

    async def _has_news(self, deadline: float) -> bool:
        """Return when something has come to the room; False when it is time to answer with what there is."""
        if self._code is not None:
            return False
        try:
            async with asyncio.timeout_at(deadline):
                await self._news.wait()
        except TimeoutError:
            # It may have been told in vain, or by a process that cannot reach us: one last look.
            self._code = CloseCode.DRAIN
        self._news.clear()
        return True

    def _take(self, frame: bytes) -> None:
        if self._about in frame or RESYNC in frame:
            self._news.set()

    def _close(self, code: int) -> None:
        self._code = code
        self._news.set()


def preferred_wait(header: str) -> int | None:
    """Return the seconds of `wait` in a Prefer header, at most MAX_WAIT_SECONDS; None when it asks for none."""
    for found in PREFERENCE.finditer(header):
        if found[1].lower() == "wait":
            value = found[2] or found[3] or ""
            if re.fullmatch(r"[0-9]{1,6}", value) and int(value) > 0:
                return min(int(value), MAX_WAIT_SECONDS)
            return None
    return None
