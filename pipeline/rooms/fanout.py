"""The same room on every process: Redis Pub/Sub, one channel per room, subscribed only while a socket here listens to
it.

Sockets of this process get an event directly, also while Redis is away; the echo of what this process published is
dropped. Pub/Sub keeps nothing, so an event published while our connection was down is late until replay makes up for
it: `on_reconnect` is its place.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from pipeline.metrics import Metrics
from pipeline.rooms.rooms import Rooms

log = structlog.get_logger(__name__)

PUBLISH_SECONDS = 1.0
SUBSCRIBE_SECONDS = 1.0
SILENCE_SECONDS = 5.0  # then a ping; twice as long without a sound, and the connection is given up
RECONNECT_SECONDS = (0.1, 2.0)


class RoomFanout:
    """Publishes events to rooms on all processes; the RoomPublisher that notifiers get."""

    def __init__(
        self,
        rooms: Rooms,
        redis: Redis,
        metrics: Metrics,
        *,
        prefix: str = "pipeline:room:",
        on_reconnect: Callable[[], None] = lambda: None,
    ) -> None:
        """redis: decodes replies; closed by `stop`. on_reconnect: called after Pub/Sub was away and is back."""
        self._rooms = rooms
        self._redis = redis
        self._metrics = metrics
        self._prefix = prefix
        self._on_reconnect = on_reconnect
        self._origin = secrets.token_hex(8)
        self._listeners: dict[str, int] = {}
        self._subscribed: dict[str, asyncio.Future[None]] = {}
        self._lock = asyncio.Lock()
        self._pubsub: PubSub | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect in the background; Redis need not be there."""
        self._task = asyncio.create_task(self._run(), name="fanout")

    async def stop(self) -> None:
        """Disconnect."""
        tasks = {*self._leaving, *([self._task] if self._task else [])}
        while tasks:
            for task in tasks:
                task.cancel()
            # Asked again, because the Redis client can take a cancellation for a failed connection.
            _, tasks = await asyncio.wait(tasks, timeout=0.5)
        await self._redis.aclose()

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room, here first and then on the other processes."""
        frame = json.dumps(event)
        self._metrics.events_published.inc()
        self._rooms.deliver(room, frame)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._redis.publish(self._prefix + room, f"{self._origin} {frame}")
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.fanout_errors.inc()
            log.warning("event_not_fanned_out", room=room, error=repr(error))

    async def listen(self, room: str) -> None:
        """Hear the room's events of other processes from now on; returns once Redis has confirmed, or is away."""
        self._listeners[room] = self._listeners.get(room, 0) + 1
        try:
            async with asyncio.timeout(SUBSCRIBE_SECONDS):
                async with self._lock:
                    if self._pubsub is None:
                        return  # subscribed with all others when the connection is back
                    confirmed = self._subscribed.get(room)
                    if confirmed is None:
                        confirmed = self._subscribed[room] = asyncio.get_running_loop().create_future()
                        await self._pubsub.subscribe(self._prefix + room)
                await asyncio.shield(confirmed)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("room_not_subscribed", room=room, error=repr(error))

    def unlisten(self, room: str) -> None:
        """One `listen` less; with the last one the subscription ends."""
        self._listeners[room] -= 1
        if not self._listeners[room]:
            del self._listeners[room]
            task = asyncio.create_task(self._unsubscribe(room))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unsubscribe(self, room: str) -> None:
        async with self._lock:
            if room in self._listeners or self._pubsub is None or self._subscribed.pop(room, None) is None:
                return
            try:
                await self._pubsub.unsubscribe(self._prefix + room)
            except (RedisError, OSError) as error:
                log.debug("room_not_unsubscribed", room=room, error=repr(error))

    async def _run(self) -> None:
        delay, longest = RECONNECT_SECONDS
        was_connected = False
        while True:
            pubsub = self._redis.pubsub()
            try:
                await self._subscribe_all(pubsub)
                if was_connected:
                    log.info("fanout_reconnected", rooms=len(self._subscribed))
                    self._on_reconnect()
                was_connected = True
                delay = RECONNECT_SECONDS[0]
                await self._read(pubsub)
            except (RedisError, OSError, TimeoutError) as error:
                if self._pubsub is not None or not was_connected:
                    log.warning("fanout_disconnected", error=repr(error))
                    was_connected = True
            finally:
                self._pubsub = None
                for confirmed in self._subscribed.values():
                    if not confirmed.done():
                        confirmed.set_result(
                            None
                        )  # whoever waits goes on; the room is subscribed with the next connection
                self._subscribed.clear()
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(delay)
            delay = min(longest, delay * 2)

    async def _subscribe_all(self, pubsub: PubSub) -> None:
        async with self._lock:
            # A channel of our own keeps the connection open while no room is wanted.
            await pubsub.subscribe(self._prefix + self._origin, *(self._prefix + room for room in self._listeners))
            self._pubsub = pubsub
            loop = asyncio.get_running_loop()
            self._subscribed = {room: loop.create_future() for room in self._listeners}

    async def _read(self, pubsub: PubSub) -> None:
        silent = 0
        while True:
            message = await pubsub.get_message(timeout=SILENCE_SECONDS)
            if message is None:
                silent += 1
                if silent > 1:
                    raise TimeoutError("no answer to a ping")
                await pubsub.ping()
                continue
            silent = 0
            if message["type"] == "subscribe":
                confirmed = self._subscribed.get(message["channel"].removeprefix(self._prefix))
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)
            elif message["type"] == "message":
                origin, _, frame = message["data"].partition(" ")
                if origin != self._origin:
                    self._rooms.deliver(message["channel"].removeprefix(self._prefix), frame)
