"""The same room on every process: Redis Pub/Sub, one channel per room, subscribed while a local socket is in it.

A message is the sender's id, a space and the event's JSON: no process encodes or parses an event twice, and the sender
knows its own echo. Channels carry the database number, because Pub/Sub itself knows no databases: two deployments on
one Redis would else hear each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from pipeline.metrics import Metrics
from pipeline.rooms.frames import encode, text_frame
from pipeline.rooms.publisher import Publisher
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.servers import Server, Servers, make_pool
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# The job that publishes holds a slot, and the socket that joins waits to hear that it is in.
PUBLISH_SECONDS = 1.0
SUBSCRIBE_SECONDS = 1.0
# A connection silent this long is asked for a sign of life, and given up after as long again.
HEALTH_SECONDS = 4.0
BACKOFF_SECONDS = (0.1, 5.0)


class RoomFanout:
    """Publishes events to a room wherever its sockets are. Failures of Redis are logged and counted, never raised.

    on_gap: called with a room that may have missed events of other processes since an instant, when it is heard again
    and whenever an event of our own reaches it before that; who is in the room is to get them from elsewhere.
    is_lost: Redis cannot be listened to just now.
    """

    def __init__(
        self, rooms: Rooms, redis_url: str, *, metrics: Metrics, health_seconds: float = HEALTH_SECONDS
    ) -> None:
        self.on_gap: Callable[[str, datetime], None] | None = None
        self._rooms = rooms
        self._metrics = metrics
        self._health_seconds = health_seconds
        self._origin = secrets.token_hex(8).encode()
        self._pool = make_pool(redis_url)
        self._publisher = Publisher(self._pool)
        self._prefix = f"pipeline:{self._pool.connection_kwargs.get('db') or 0}:room:"
        self._tasks: list[asyncio.Task[None]] = []
        self.is_lost = False
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

    async def start(self) -> None:
        """Begin to listen to the other processes; Redis need not be there yet."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="room_fanout"),
            asyncio.create_task(self._publisher.run(), name="room_fanout_publisher"),
        ]

    async def stop(self) -> None:
        """End all connections."""
        # Asked again, because the Redis client can take a cancellation for a failed connection.
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.5)

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room: here at once, elsewhere when Redis has it.

        Returns then, or after a second: what other processes cannot be told now they are told when Redis is back.
        """
        payload = encode(event)
        self._metrics.events_published.inc()
        if self.on_gap and (since := self._gaps.get(room)):
            # Or a client that hears this one and leaves would never ask for an older one that it did not hear.
            self.on_gap(room, since)
        self._rooms.deliver(room, text_frame(payload))
        published = self._publisher.publish(self._prefix + room, self._origin + b" " + payload)
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

    def _vacate(self, room: str) -> None:
        self._note(room)
        self._gaps.pop(room, None)

    def _note(self, room: str) -> None:
        self._changed.add(room)
        self._change.set()

    async def _listen(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        pause = shortest
        while True:
            # Not redis-py's PubSub: that one reconnects on its own, and the gap would go unnoticed.
            servers = Servers(self._pool)
            try:
                await servers.connect()
                pause = shortest
                self._asked.clear()
                self._unconfirmed.clear()
                self._changed.update(self._rooms.names())
                self._change.set()
                if self.is_lost:
                    log.info("fanout_reconnected", rooms=len(self._rooms.names()))
                    self.is_lost = False
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._ask(servers))
                    group.create_task(self._watch(servers))
                    for server in servers.all:
                        group.create_task(self._read(server))
            except* (RedisError, OSError) as group_error:
                if not self.is_lost:
                    log.warning("fanout_disconnected", error=cause_of(group_error.exceptions[0]))
                    self.is_lost = True
            finally:
                await servers.disconnect()
            self._open_gaps(max((server.silent_seconds for server in servers.all), default=0))
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, longest)

    def _open_gaps(self, silent_seconds: float) -> None:
        since = datetime.now(UTC) - timedelta(seconds=silent_seconds)
        for room in self._rooms.names():
            self._gaps.setdefault(room, since)
        self._release(list(self._waiters))

    async def _ask(self, servers: Servers) -> None:
        """Keep the subscriptions what the rooms are."""
        shard = "S" if servers.is_sharded else ""
        while True:
            await self._change.wait()
            self._change.clear()
            changed, self._changed = self._changed, set()
            entered = [room for room in changed if room in self._rooms and room not in self._asked]
            left = [room for room in changed if room not in self._rooms]
            unwanted = [room for room in left if room in self._asked]
            self._asked.update(entered)
            self._asked.difference_update(left)
            self._unconfirmed.update(entered)
            self._release(left)
            commands: dict[Server, list[tuple[str | bytes, ...]]] = {}
            for verb, rooms in (("SUBSCRIBE", entered), ("UNSUBSCRIBE", unwanted)):
                for channel in (self._prefix + room for room in rooms):
                    # One command each: those of one sharded command would have to be in one slot.
                    commands.setdefault(servers.of(channel), []).append((shard + verb, channel))
            for server, its_commands in commands.items():
                await server.send(its_commands)

    async def _read(self, server: Server) -> None:
        """Take in what Redis sends."""
        while True:
            reply = await server.read()
            if isinstance(reply, list) and len(reply) == 3:
                kind, channel, content = reply
                self._take(kind, channel.decode().removeprefix(self._prefix), content)

    async def _watch(self, servers: Servers) -> None:
        """Raise when a server has been silent for too long. Apart from _read: a timer for each message is dear."""
        while True:
            await asyncio.sleep(self._health_seconds / 2)
            for server in servers.all:
                if server.silent_seconds > 2 * self._health_seconds:
                    raise RedisConnectionError("Redis does not answer")
                if server.silent_seconds > self._health_seconds:
                    await server.send([("PING",)])

    def _take(self, kind: bytes, room: str, content: Any) -> None:
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
