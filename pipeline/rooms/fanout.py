"""The same room on every process: Redis Pub/Sub, one channel per room, subscribed while a local socket is in it.

A message is the sender's id, a space and the event's JSON: no process encodes or parses an event twice, and the sender
knows its own echo. Channels carry the database number, because Pub/Sub itself knows no databases: two deployments on
one Redis would else hear each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from pipeline.delays import retry_delays
from pipeline.link.channels import Channels
from pipeline.link.nodes import Address, Nodes
from pipeline.metrics import Metrics
from pipeline.rooms.frames import encode, text_frame
from pipeline.rooms.publisher import Publisher
from pipeline.rooms.rooms import Rooms
from pipeline.supervision import Supervisor, Watched
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# The job that publishes holds a slot, and the socket that joins waits to hear that it is in.
PUBLISH_SECONDS = 1.0
SUBSCRIBE_SECONDS = 1.0
# A connection silent this long is asked for a sign of life, and given up after as long again.
HEALTH_SECONDS = 4.0
RETRY_SECONDS = (0.1, 5.0)


class RoomFanout:
    """Publishes events to a room wherever its sockets are. Failures of Redis are logged and counted, never raised.

    on_gap: called with a room that may have missed events of other processes since an instant, when it is heard again
    and whenever an event of our own reaches it before that; who is in the room is to get them from elsewhere.
    is_lost: Redis cannot be listened to just now.
    """

    def __init__(
        self,
        rooms: Rooms,
        redis_url: str,
        *,
        metrics: Metrics,
        prefix: str = "pipeline",
        supervisor: Supervisor | None = None,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        """prefix: of all channels, so that several services may share a Redis.

        supervisor: keeps the tasks running that listen and publish; default: one of its own.
        """
        self.on_gap: Callable[[str, datetime], None] | None = None
        self._rooms = rooms
        self._metrics = metrics
        self._health_seconds = health_seconds
        self._origin = secrets.token_hex(8).encode()
        self._nodes = Nodes(redis_url)
        self._probe = f"{prefix}:probe"
        self._prefix = f"{prefix}:{self._nodes.database}:room:"
        self._publisher = Publisher(lambda: Channels(self._nodes, self._probe), self._probe)
        self._supervisor = supervisor or Supervisor()
        self._watched: list[Watched] = []
        self.is_lost = False
        self._delays = retry_delays(*RETRY_SECONDS)
        self._changed: set[str] = set()
        self._change = asyncio.Event()
        # As of this connection: rooms asked for, and requests for them that Redis has not confirmed.
        self._asked: set[str] = set()
        self._unconfirmed: Counter[str] = Counter()
        self._waiters: dict[str, asyncio.Future[None]] = {}
        # Rooms that are not heard, or not known to be, and since when.
        self._gaps: dict[str, datetime] = {}
        rooms.on_occupied = self._subscribe
        rooms.on_vacated = self._vacate
        rooms.is_heard = self._is_heard

    async def start(self) -> None:
        """Begin to listen to the other processes; Redis need not be there yet."""
        self._watched = [
            self._supervisor.start("subscriptions", self.listen),
            self._supervisor.start("publisher", self.publish_owed),
        ]

    async def stop(self) -> None:
        """End all connections."""
        await self._supervisor.stop(self._watched)

    async def publish_owed(self) -> None:
        """Tell Redis what `publish` owes it, for ever. After an exception it may be called again; nothing is lost."""
        await self._publisher.run()

    async def listen(self) -> None:
        """Hear the other processes, for ever. After an exception it may be called again, and the gap is asked for."""
        while True:
            # Not redis-py's PubSub: that one reconnects on its own, and the gap would go unnoticed.
            channels = Channels(self._nodes, self._probe, self._take)
            try:
                await channels.connect()
                await self._subscribe_all(channels)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(channels))
                    group.create_task(channels.watch(self._health_seconds))
            except* (RedisError, OSError) as group_error:
                if not self.is_lost:
                    log.warning("fanout_disconnected", error=cause_of(group_error.exceptions[0]))
            finally:
                self.is_lost = True
                channels.close()
                self._open_gaps(channels.silent_seconds)
            await asyncio.sleep(next(self._delays))

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room: here at once, elsewhere when Redis has it.

        Returns then, or after a second: what other processes cannot be told now they are told when Redis is back.
        An event or a name of a room that cannot be encoded is a ValueError or TypeError, and is sent to nobody.
        """
        channel, payload = self._channel(room), encode(event)
        self._metrics.events_published.inc()
        if self.on_gap and (since := self._gaps.get(room)):
            # Or a client that hears this one and leaves would never ask for an older one that it did not hear.
            self.on_gap(room, since)
        self._rooms.deliver(room, text_frame(payload))
        published = self._publisher.publish(channel, self._origin + b" " + payload)
        published.add_done_callback(lambda _: self._note_age(event.get("timestamp")))
        done, _ = await asyncio.wait([published], timeout=PUBLISH_SECONDS)
        if not done:
            self._metrics.fanout_errors.inc()
            log.warning("event_published_late")

    def _note_age(self, timestamp: object) -> None:
        """Take in how old an event was when everybody could be told; one of a plugin's own may have no timestamp."""
        with suppress(TypeError, ValueError):
            age = datetime.now(UTC) - datetime.fromisoformat(timestamp)  # type: ignore[arg-type]
            self._metrics.event_seconds.observe(max(0.0, age.total_seconds()))

    async def _subscribe(self, room: str) -> None:
        """Return when Redis has confirmed the room's channel; at once or after a second when it does not."""
        joined_at = datetime.now(UTC)
        self._note(room)
        if self.is_lost:
            self._gaps.setdefault(room, joined_at)
        elif room not in self._asked or self._unconfirmed[room]:
            waiter = self._waiters.setdefault(room, asyncio.get_running_loop().create_future())
            done, _ = await asyncio.wait([waiter], timeout=SUBSCRIBE_SECONDS)
            if not done and room in self._rooms:
                self._gaps.setdefault(room, joined_at)

    def _is_heard(self, room: str) -> bool:
        return not self.is_lost and room not in self._gaps

    def _vacate(self, room: str) -> None:
        self._note(room)
        self._gaps.pop(room, None)

    def _note(self, *rooms: str) -> None:
        self._changed.update(rooms)
        self._change.set()

    def _open_gaps(self, silent_seconds: float) -> None:
        since = datetime.now(UTC) - timedelta(seconds=silent_seconds)
        for room in self._rooms.names():
            self._gaps.setdefault(room, since)
        self._release(list(self._waiters))

    async def _subscribe_all(self, channels: Channels) -> None:
        """Ask a new set of connections for every room somebody is in."""
        self._asked.clear()
        self._unconfirmed.clear()
        self._note(*self._rooms.names())
        await self._ask(channels)
        self._note_success()

    def _note_success(self) -> None:
        """When Redis has confirmed every room, and not before: it may refuse what it is asked on every connection."""
        if self.is_lost and not self._unconfirmed:
            log.info("fanout_reconnected", rooms=len(self._rooms.names()))
            self.is_lost = False
            self._delays = retry_delays(*RETRY_SECONDS)

    async def _follow(self, channels: Channels) -> None:
        """Keep the subscriptions what the rooms are."""
        while True:
            await self._change.wait()
            await self._ask(channels)

    async def _ask(self, channels: Channels) -> None:
        self._change.clear()
        changed, self._changed = self._changed, set()
        entered = [room for room in changed if room in self._rooms and room not in self._asked]
        left = [room for room in changed if room not in self._rooms]
        unwanted = [room for room in left if room in self._asked]
        self._asked.update(entered)
        self._asked.difference_update(left)
        self._unconfirmed.update(entered)
        self._release(left)
        shard = "S" if channels.is_sharded else ""
        commands: dict[Address, list[tuple[str, bytes]]] = {}
        for verb, rooms in (("SUBSCRIBE", entered), ("UNSUBSCRIBE", unwanted)):
            for channel in map(self._channel, rooms):
                # One command each: those of one sharded command would have to be in one slot.
                commands.setdefault(channels.address_of(channel), []).append((shard + verb, channel))
        for address, its_commands in commands.items():
            (await channels.link_to(address)).send(its_commands)

    def _channel(self, room: str) -> bytes:
        """Return the channel of a room; ValueError when its name holds half a surrogate pair."""
        return f"{self._prefix}{room}".encode()

    def _take(self, said: list[Any]) -> None:
        """Take in what Redis sends."""
        if len(said) != 3:
            return  # a sign of life
        kind, channel, content = said
        room = channel.decode().removeprefix(self._prefix)
        if kind in (b"message", b"smessage"):
            origin, _, payload = content.partition(b" ")
            if origin != self._origin:
                self._rooms.deliver(room, text_frame(payload))
        elif kind in (b"subscribe", b"ssubscribe"):
            self._unconfirmed[room] -= 1
            if self._unconfirmed[room] <= 0:
                del self._unconfirmed[room]
                self._release([room])
                self._close_gap(room)
                self._note_success()
        elif room in self._asked and not self._unconfirmed[room]:
            raise RedisConnectionError("the channel has moved to another server of the cluster")

    def _release(self, rooms: list[str]) -> None:
        for room in rooms:
            waiter = self._waiters.pop(room, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _close_gap(self, room: str) -> None:
        since = self._gaps.pop(room, None)
        if since is not None and self.on_gap:
            self.on_gap(room, since)
