"""Use case: a user's client is let into the user's room, and sees the end of it. The same for sockets, streams, polls.

Bounds how many there are. Of a user's connections the newest wins: a network that changes leaves connections behind
that nobody uses any more, and these must not keep the user out. Runs on the event loop.
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

# Sockets that may wait for their token or for their end at a time: a flood of them takes no place from users.
MAX_SOCKETS_WITHOUT_TOKEN = 1000
# How long a connection has to give a sign of life when its user has too many.
PROBE_SECONDS = 2.0
# A user's connections may be so many times the limit until those without a sign of life are gone.
MAX_CROWD = 2
# A restart takes a second or two; its clients must not come back all in the same moment, nor faster than a process
# that is just warming up can let them in.
RETRY_MS = (500, 5000)
LONGEST_RETRY_MS = 60_000
RETRIES_PER_MS = 0.5
# A client of whose user there are too many comes back as the newest and replaces another one: not too often.
CROWDED_RETRY_SECONDS = 30
CROWDED_RETRY_MS = (1000 * CROWDED_RETRY_SECONDS, 60_000)


class Admission:
    """Lets connections into rooms and out again.

    is_leaving: this process is about to drain. It serves as before, and /readyz says 503.
    is_draining: this process goes away; polls are answered at once.
    is_closed: every client has been told to go; no stream begins any more.
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
        """Whether there is one connection more than this process may have."""
        return len(self.rooms.connections) > self._max_connections

    @property
    def is_full_of_unauthenticated(self) -> bool:
        """Whether there is one connection more without a token than this process may have."""
        return self.rooms.unauthenticated > self._max_unauthenticated

    async def check(self) -> None:
        """Return while load balancers may send clients here; DependencyUnavailable otherwise."""
        if self.is_leaving or self.is_draining:
            raise DependencyUnavailable("draining")

    async def enter(self, user_id: str, connection: Connection) -> str:
        """Put the connection in the user's room and return the room's name. From now on it misses nothing."""
        room = ROOM_PREFIX + user_id
        self._make_way(room)
        await self.rooms.join(room, connection)
        return room

    def _make_way(self, room: str) -> None:
        """Let the user's oldest connections go if the next one is one too many: first those that nobody uses."""
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

    def _end_oldest(self, room: str, left: int) -> None:
        for connection in self.rooms.members(room)[:-left]:
            goodbye = _goodbye(CROWDED_RETRY_MS)
            error = event_frame({"event": "error", "message": TOO_MANY_CONNECTIONS})
            self.rooms.end(connection, CloseCode.TRY_LATER, goodbye + error)

    def end_polls(self) -> None:
        """Let everyone who waits for an HTTP reply have it now: this process goes away."""
        self.is_draining = True
        for connection in list(self.rooms.connections):
            if connection.transport == "poll":
                self.rooms.end(connection, CloseCode.DRAIN)

    async def drain(self, seconds: float) -> None:
        """Tell every client to come back later, close with 1012, and wait so long at most for the closes."""
        self.end_polls()
        self.is_closed = True
        connections = list(self.rooms.connections)
        shortest, longest = RETRY_MS
        longest = min(LONGEST_RETRY_MS, max(longest, round(len(connections) / RETRIES_PER_MS)))
        for connection in connections:
            self.rooms.end(connection, CloseCode.DRAIN, _goodbye((shortest, longest)))
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=seconds)


def _goodbye(retry_ms: tuple[int, int]) -> bytes:
    return event_frame({"event": "goodbye", "retryInMs": random.randint(*retry_ms)})
