"""The same room on every process: Redis Pub/Sub, one channel per room, subscribed while a local socket is in it.

A message is the sender's id, a space and the frame as the sockets get it: no process encodes or parses an event twice,
and the sender knows its own echo. Channels carry the database number, because Pub/Sub itself knows no databases: two
deployments on one Redis would else hear each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from pipeline.metrics import Metrics
from pipeline.rooms.rooms import Rooms

log = structlog.get_logger(__name__)

# The job that publishes holds a slot, and the socket that joins waits to hear that it is in.
PUBLISH_SECONDS = 1.0
SUBSCRIBE_SECONDS = 1.0
CONNECT_SECONDS = 5.0
# A connection silent this long is asked for a sign of life, and given up after as long again.
HEALTH_SECONDS = 5.0
BACKOFF_SECONDS = (0.1, 5.0)


class RoomFanout:
    """Publishes events to a room wherever its sockets are. Failures of Redis are logged and counted, never raised."""

    def __init__(
        self,
        rooms: Rooms,
        redis_url: str,
        *,
        metrics: Metrics,
        on_reconnect: Callable[[], None] | None = None,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        """on_reconnect: called once all rooms are subscribed again after events may have been missed."""
        self._rooms = rooms
        self._metrics = metrics
        self._on_reconnect = on_reconnect
        self._health_seconds = health_seconds
        self._origin = secrets.token_hex(8).encode()
        # One blind retry: an event that comes twice does no harm, one lost to a stale pooled connection does.
        self._publisher = _client(redis_url, retries=1, socket_timeout=CONNECT_SECONDS)
        # No timeout of its own: redis-py keeps it with wait_for, which can swallow a cancellation. We keep it here.
        self._subscriber = _client(redis_url, retries=0, socket_timeout=None)
        self._prefix = f"pipeline:{self._publisher.connection_pool.connection_kwargs.get('db') or 0}:room:"
        self._task: asyncio.Task[None] | None = None
        self._has_gap = False
        self._changed: set[str] = set()
        self._change = asyncio.Event()
        # As of this connection: rooms asked for, and requests for them that Redis has not confirmed.
        self._asked: set[str] = set()
        self._unconfirmed: Counter[str] = Counter()
        self._waiters: dict[str, asyncio.Future[None]] = {}
        rooms.on_occupied = self._subscribe
        rooms.on_vacated = self._note

    async def start(self) -> None:
        """Begin to listen to the other processes; Redis need not be there yet."""
        self._task = asyncio.create_task(self._listen(), name="room_fanout")

    async def stop(self) -> None:
        """End both connections."""
        # Asked again, because the Redis client can take a cancellation for a failed connection.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.5)
        await self._publisher.aclose()
        await self._subscriber.aclose()

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room: here at once, elsewhere within a second unless Redis fails."""
        frame = json.dumps(event, separators=(",", ":")).encode()
        self._metrics.events_published.inc()
        self._rooms.deliver(room, frame)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._publisher.publish(self._prefix + room, self._origin + b" " + frame)
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.fanout_errors.inc()
            log.warning("event_not_published", error=repr(error))

    async def _subscribe(self, room: str) -> None:
        """Return when Redis has confirmed the room's channel; at once or after a second when it does not."""
        self._note(room)
        if self._has_gap or self._is_subscribed(room):
            return
        waiter = self._waiters.setdefault(room, asyncio.get_running_loop().create_future())
        done, _ = await asyncio.wait([waiter], timeout=SUBSCRIBE_SECONDS)
        if not done:
            self._has_gap = True

    def _is_subscribed(self, room: str) -> bool:
        return room in self._asked and not self._unconfirmed[room]

    def _note(self, room: str) -> None:
        self._changed.add(room)
        self._change.set()

    async def _listen(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        pause = shortest
        while True:
            # Not redis-py's PubSub: that one reconnects on its own, and the gap would go unnoticed.
            pool = self._subscriber.connection_pool
            connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
            self._asked.clear()
            self._unconfirmed.clear()
            self._changed = set(self._rooms.names())
            self._change.set()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.connect()  # type: ignore[no-untyped-call]
                pause = shortest
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._ask(connection))
                    group.create_task(self._read(connection))
            except* (RedisError, OSError) as group_error:
                if not self._has_gap:
                    log.warning("fanout_disconnected", error=repr(group_error.exceptions[0]))
            finally:
                await connection.disconnect(nowait=True)
            self._has_gap = True
            self._release(list(self._waiters))
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, longest)

    async def _ask(self, connection: AbstractConnection) -> None:
        """Keep the subscriptions what the rooms are."""
        while True:
            await self._change.wait()
            self._change.clear()
            changed, self._changed = self._changed, set()
            entered = [room for room in changed if room in self._rooms and room not in self._asked]
            left = [room for room in changed if room not in self._rooms and room in self._asked]
            self._asked.update(entered)
            self._asked.difference_update(left)
            self._unconfirmed.update(entered)
            self._release(left)
            if entered:
                await connection.send_command("SUBSCRIBE", *(self._prefix + room for room in entered))
            if left:
                await connection.send_command("UNSUBSCRIBE", *(self._prefix + room for room in left))
            self._close_gap()

    async def _read(self, connection: AbstractConnection) -> None:
        """Take in what Redis sends; raise when it has been silent for too long."""
        is_asked = False
        while True:
            reply = await connection.read_response(timeout=self._health_seconds, disconnect_on_error=False)
            if reply is None and is_asked:
                raise RedisConnectionError("Redis does not answer")
            is_asked = reply is None
            if is_asked:
                await connection.send_command("PING", check_health=False)
            elif isinstance(reply, list):
                kind, channel, content = reply if len(reply) == 3 else (reply[0], b"", b"")
                self._take(kind, channel.decode().removeprefix(self._prefix), content)

    def _take(self, kind: bytes, room: str, content: Any) -> None:
        if kind == b"subscribe":
            self._unconfirmed[room] -= 1
            if self._unconfirmed[room] <= 0:
                del self._unconfirmed[room]
                self._release([room])
                self._close_gap()
        elif kind == b"message":
            origin, _, frame = content.partition(b" ")
            if origin != self._origin:
                self._rooms.deliver(room, frame)

    def _release(self, rooms: list[str]) -> None:
        for room in rooms:
            waiter = self._waiters.pop(room, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _close_gap(self) -> None:
        if self._has_gap and not self._unconfirmed and not self._changed:
            self._has_gap = False
            log.info("fanout_reconnected", rooms=len(self._asked))
            if self._on_reconnect:
                self._on_reconnect()


def _client(url: str, *, retries: int, socket_timeout: float | None) -> Redis:
    # Protocol 3 would bring redis-py's maintenance notices, which nobody here wants.
    retry = Retry(NoBackoff(), retries)
    return Redis.from_url(url, protocol=2, socket_connect_timeout=2, socket_timeout=socket_timeout, retry=retry)
