"""Use case: a client joins its user's room, and leaves it. The same for sockets, streams and polls.

The number of connections has bounds. Of a user's connections the newest ones stay: a client that changes its network
leaves dead connections behind, and these must not keep the user out. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random

from pipeline.errors import DependencyUnavailable
from pipeline.rooms.codes import TOO_MANY_CONNECTIONS, CloseCode
from pipeline.rooms.frames import event_frame
from pipeline.rooms.rooms import Connection, Rooms
from pipeline.settings import Settings
from pipeline.usecases.replay import ROOM_PREFIX, Replay

# Sockets that may wait for their token or for their end at the same time: a flood of them takes no slot from users.
MAX_SOCKETS_WITHOUT_TOKEN = 1000
# A connection has so long to answer a ping when its user has too many.
PROBE_SECONDS = 2.0
# A user may have so many times the limit until the dead connections are closed.
MAX_CROWD = 2
# A restart takes a second or two. Its clients must not reconnect all at once, nor faster than a process that is still
# warming up can accept them.
RETRY_MS = (500, 5000)
LONGEST_RETRY_MS = 60_000
RETRIES_PER_MS = 0.5
# A client that was closed because its user has too many reconnects as the newest and replaces another: not too often.
CROWDED_RETRY_SECONDS = 30
CROWDED_RETRY_MS = (1000 * CROWDED_RETRY_SECONDS, 60_000)


class Admission:
    """Puts connections into rooms, and closes them when there are too many or the process ends.

    is_leaving: this process will drain soon; it serves as before, but /readyz answers 503
    is_draining: this process drains; polls are answered at once
    is_closed: every connection is being closed; no stream begins any more
    """

    def __init__(self, rooms: Rooms, replay: Replay, settings: Settings) -> None:
        self.rooms = rooms
        self.replay = replay
        self.is_leaving = self.is_draining = self.is_closed = False
        self._max_connections = settings.max_sockets
        self._max_unauthenticated = MAX_SOCKETS_WITHOUT_TOKEN
        self._max_of_user = settings.max_sockets_per_user
        self._crowded: set[str] = set()

    @property
    def is_full(self) -> bool:
        """Whether this process has more connections than it may have."""
        return len(self.rooms.connections) > self._max_connections

    @property
    def is_full_of_unauthenticated(self) -> bool:
        """Whether this process has more connections without a token than it may have."""
        return self.rooms.unauthenticated > self._max_unauthenticated

    async def check(self) -> None:
        """Return while load balancers may send clients to this process; DependencyUnavailable otherwise."""
        if self.is_leaving or self.is_draining:
            raise DependencyUnavailable("draining")

    async def enter(self, user_id: str, connection: Connection) -> str:
        """Put the connection in the user's room and return the room's name; from now on it misses nothing."""
        room = ROOM_PREFIX + user_id
        self._make_way(room)
        await self.rooms.join(room, connection)
        return room

    def _make_way(self, room: str) -> None:
        """Close connections of the user if the next one is one too many: the dead ones first, then the oldest."""
        members = self.rooms.members(room)
        if len(members) < self._max_of_user:
            return
        self._end_oldest(room, MAX_CROWD * self._max_of_user - 1)
        if room not in self._crowded:
            self._crowded.add(room)
            for connection in members:
                connection.probe()
            asyncio.get_running_loop().call_later(PROBE_SECONDS, self._thin_out, room)

    def _thin_out(self, room: str) -> None:
        self._crowded.discard(room)
        self._end_oldest(room, self._max_of_user)

    def _end_oldest(self, room: str, remaining: int) -> None:
        for connection in self.rooms.members(room)[:-remaining]:
            notice = _close_notice(CROWDED_RETRY_MS)
            error = event_frame({"event": "error", "message": TOO_MANY_CONNECTIONS})
            self.rooms.end(connection, CloseCode.TRY_LATER, notice + error)

    def end_polls(self) -> None:
        """Answer all polls now: this process drains."""
        self.is_draining = True
        for connection in list(self.rooms.connections):
            if connection.transport == "poll":
                self.rooms.end(connection, CloseCode.DRAIN)

    async def drain(self, seconds: float) -> None:
        """Send every client a close notice, close with 1012, and wait so long at most for the closes."""
        self.end_polls()
        self.is_closed = True
        connections = list(self.rooms.connections)
        shortest, longest = RETRY_MS
        longest = min(LONGEST_RETRY_MS, max(longest, round(len(connections) / RETRIES_PER_MS)))
        for connection in connections:
            self.rooms.end(connection, CloseCode.DRAIN, _close_notice((shortest, longest)))
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=seconds)


def _close_notice(retry_ms: tuple[int, int]) -> bytes:
    return event_frame({"event": "goodbye", "retryInMs": random.randint(*retry_ms)})
