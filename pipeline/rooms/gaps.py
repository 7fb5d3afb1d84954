"""The channels of the rooms of this process, and which rooms may have missed events of other processes.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.clock import utc_now
from pipeline.link.channels import Channels
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.subscriptions import Subscriptions

# A socket that joins a room waits so long at most for its channel.
SUBSCRIBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ChannelNames:
    """The names of the Redis channels.

    rooms: prefix of the channels of rooms
    progress: prefix of the channels that carry progress
    common: the channel of all processes
    """

    rooms: bytes
    progress: bytes
    common: bytes

    @classmethod
    def of(cls, prefix: str, database: int, home: str) -> ChannelNames:
        """Return the names of an installation. For the parameters see RoomFanout."""
        rooms = f"{prefix}:{database}:room:"
        return cls(rooms.encode(), f"{prefix}:{database}:progress:".encode(), f"{rooms}{home}".encode())

    def of_room(self, room: str) -> bytes:
        """Return the channel of a room; ValueError when its name holds half a surrogate pair."""
        return self.rooms + room.encode()

    def of_progress(self, room: str) -> bytes:
        """Return the channel that carries the progress of a room's jobs."""
        return self.progress + room.encode()

    def room_of(self, channel: bytes) -> str:
        """Return the room of a channel."""
        return channel.decode().removeprefix(self.rooms.decode())


class RoomGaps:
    """Subscribes to the channel of each occupied room, and keeps the instant since which a room may miss events."""

    def __init__(
        self,
        rooms: Rooms,
        channels: Channels,
        names: ChannelNames,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_gap: Callable[[str, datetime], None],
        health_seconds: float,
    ) -> None:
        """on_message: called with a channel and a message that was published to it
        on_gap: called with a room that may have missed events since an instant
        health_seconds: see Subscriptions
        """
        self._rooms = rooms
        self._names = names
        self._on_gap = on_gap
        self.subscriptions = Subscriptions(
            channels,
            on_message=on_message,
            on_confirmed=self._end,
            on_lost=self._begin,
            health_seconds=health_seconds,
        )
        self.subscriptions.want(names.common)
        # By channel: done when the channel is confirmed or lost.
        self._waiters: dict[bytes, asyncio.Future[None]] = {}
        # By room: since when its channel is not confirmed.
        self._since: dict[str, datetime] = {}
        rooms.on_occupied = self._subscribe
        rooms.on_vacated = self._unsubscribe
        rooms.is_confirmed = lambda room: not self.is_lost and room not in self._since

    @property
    def is_lost(self) -> bool:
        """Whether this process cannot receive events of the other processes now."""
        return self.subscriptions.is_lost(self._names.common)

    def report(self, room: str) -> None:
        """Call `on_gap` if the room may have missed events."""
        if since := self._since.get(room):
            self._on_gap(room, since)

    def report_all(self, since: datetime) -> None:
        """Call `on_gap` for every room: all may have missed events since then."""
        for room in self._rooms.names():
            self._on_gap(room, since)

    async def until_confirmed(self) -> None:
        """Return when this process receives the messages that are for all processes."""
        while not self.subscriptions.is_confirmed(self._names.common):
            await asyncio.wait([self._waiter(self._names.common)])

    async def _subscribe(self, room: str) -> None:
        """Return when Redis has confirmed the room's channel; at once or after a second when it does not."""
        joined_at, channel = utc_now(), self._names.of_room(room)
        self.subscriptions.want(channel)
        if self.subscriptions.is_lost(channel):
            self._since.setdefault(room, joined_at)
        elif not self.subscriptions.is_confirmed(channel):
            done, _ = await asyncio.wait([self._waiter(channel)], timeout=SUBSCRIBE_SECONDS)
            if not done and room in self._rooms:
                self._since.setdefault(room, joined_at)

    def _unsubscribe(self, room: str) -> None:
        channel = self._names.of_room(room)
        self.subscriptions.unwant(channel)
        self._since.pop(room, None)
        self._release(channel)

    def _begin(self, channels: Collection[bytes], seconds: float) -> None:
        """Note that the rooms of these channels miss events, perhaps for so many seconds already."""
        since = utc_now() - timedelta(seconds=seconds)
        for channel in channels:
            self._release(channel)
            if channel.startswith(self._names.rooms) and channel != self._names.common:
                self._since.setdefault(self._names.room_of(channel), since)

    def _end(self, channel: bytes) -> None:
        """The channel is confirmed: report the gap of its room, if there was one."""
        if channel.startswith(self._names.progress):
            return  # missed progress is not replayed
        self._release(channel)
        room = self._names.room_of(channel)
        since = self._since.pop(room, None)
        if since is not None:
            self._on_gap(room, since)

    def _waiter(self, channel: bytes) -> asyncio.Future[None]:
        """Return a future that is done when the channel is confirmed or lost."""
        return self._waiters.setdefault(channel, asyncio.get_running_loop().create_future())

    def _release(self, channel: bytes) -> None:
        waiter = self._waiters.pop(channel, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
