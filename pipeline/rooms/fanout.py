"""The same room on every process: Redis Pub/Sub, one channel per room, subscribed while a local socket is in it.

A message is the sender's id, a space and the event's JSON: no process encodes or parses an event twice, and the sender
knows its own echo. Channels carry the database number, because Pub/Sub itself knows no databases: two deployments on
one Redis would else hear each other. One more channel is every process's: there each hears its own probe, and what
others could not tell the rooms. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog
from redis.exceptions import NoPermissionError

from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.link.channels import Channels
from pipeline.link.nodes import Address, Nodes
from pipeline.metrics import Metrics
from pipeline.rooms.frames import encode, text_frame
from pipeline.rooms.lane import CHECK_SECONDS
from pipeline.rooms.publisher import Publisher
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.subscriptions import Subscriptions
from pipeline.rooms.unpublished import Unpublished
from pipeline.supervision import Supervisor, SupervisedTask

log = structlog.get_logger(__name__)

# The job that publishes holds a slot, and the socket that joins waits to hear that it is in.
PUBLISH_SECONDS = 1.0
SUBSCRIBE_SECONDS = 1.0
PROBE_SECONDS = 1.5
# A connection silent this long is asked for a sign of life, and given up after as long again.
HEALTH_SECONDS = 2.0
MISSED = b"missed since "
PROBE = b"probe "


class RoomFanout:
    """Publishes events to a room wherever its sockets are. Failures of Redis are logged and counted, never raised.

    on_progress: called with a room and what another process has offered it.
    on_gap: called with a room that may have missed events of other processes since an instant, when it is heard again
    and whenever an event of our own reaches it before that; who is in the room is to get them from elsewhere.
    """

    def __init__(
        self,
        rooms: Rooms,
        redis_url: str,
        *,
        metrics: Metrics,
        prefix: str = "pipeline",
        home: str = "{ai-processing}",
        supervisor: Supervisor | None = None,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        """prefix: of all channels, so that several services may share a Redis.

        home: the name of a room that nobody is in, whose channel is every process's; in a cluster it lives where a
        queue of that hash tag does, which this process needs anyway. supervisor: keeps the tasks running that listen
        and publish; default: one of its own.
        """
        self.on_gap: Callable[[str, datetime], None] | None = None
        self.on_progress: Callable[[str, bytes], None] = lambda room, message: None
        self._rooms = rooms
        self._metrics = metrics
        self._origin = secrets.token_hex(8).encode()
        nodes = Nodes(redis_url)
        self._prefix = f"{prefix}:{nodes.database}:room:".encode()
        self._progress_prefix = f"{prefix}:{nodes.database}:progress:".encode()
        self._common = self._prefix + home.encode()
        probe = f"{prefix}:probe"
        self._channels = Channels(nodes, probe)
        self._publisher = Publisher(
            self._channels,
            probe,
            home=self._common,
            on_demoted=self._leave,
            missed=self._missed,
            on_dropped=self._note_dropped,
        )
        self._subscriptions = Subscriptions(
            self._channels,
            on_message=self._take,
            on_heard=self._note_heard,
            on_lost=self._note_lost,
            health_seconds=health_seconds,
        )
        self._subscriptions.want(self._common)
        self._supervisor = supervisor or Supervisor()
        self._watched: list[SupervisedTask] = []
        # By channel: those who wait for it to be heard.
        self._waiters: dict[bytes, asyncio.Future[None]] = {}
        # Rooms that are not heard, or not known to be, and since when.
        self._gaps: dict[str, datetime] = {}
        self._unpublished = Unpublished()
        self._probing: asyncio.Future[None] | None = None
        self._probe_told: asyncio.Future[None] | None = None
        rooms.on_occupied = self._subscribe
        rooms.on_vacated = self._vacate
        rooms.is_confirmed = self._is_confirmed

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
        await self._subscriptions.run()

    @property
    def is_lost(self) -> bool:
        """Whether the other processes cannot be heard just now."""
        return self._subscriptions.is_lost(self._common)

    async def check(self) -> None:
        """Return when what is published is heard, by this process for one; DependencyUnavailable says why it is not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                while not self._subscriptions.is_confirmed(self._common):
                    await asyncio.wait([self._waiter(self._common)])
                await asyncio.wait([self._probe()])
                return
        cause = self._publisher.failure or self._subscriptions.failure(self._common)
        raise DependencyUnavailable(self._advice(cause)) from cause

    def _probe(self) -> asyncio.Future[None]:
        """Return what is done when this process hears itself."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_future()
        # One that is still owed will be told; one that was told and not heard was told in vain.
        if self._probe_told is None or self._probe_told.done():
            self._probe_told = self._publisher.publish(self._common, self._origin + b" " + PROBE)
        return self._probing

    def _advice(self, cause: Exception | None) -> str:
        if isinstance(cause, NoPermissionError):
            prefix = self._prefix.decode().partition(":")[0]
            needed = f"it needs the ACL rules &{prefix}:* and +@pubsub"
            return f"Redis does not let this user publish or subscribe (NOPERM): {needed}"
        return "What is published for other processes does not arrive"

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
        try:
            is_published = await _is_done(published, PUBLISH_SECONDS)
        finally:
            self._unpublished.add(event.get("assetId"), published)
        if not is_published:
            self._metrics.fanout_errors.inc()
            log.warning("event_published_late")

    def offer(self, room: str, message: bytes) -> None:
        """Send a message about progress to the processes that listen for it; it may be lost."""
        self._publisher.offer(self._progress_prefix + room.encode(), self._origin + b" " + message)

    def listen_for_progress(self, room: str) -> None:
        """Take what other processes offer the room."""
        self._subscriptions.want(self._progress_prefix + room.encode())

    def ignore_progress(self, room: str) -> None:
        """Take it no more."""
        self._subscriptions.unwant(self._progress_prefix + room.encode())

    def unpublished(self, asset_id: str) -> asyncio.Future[None] | None:
        """Return what is done when Redis has the newest event about the asset; None when it has all."""
        return self._unpublished.of(asset_id)

    def _note_age(self, timestamp: object) -> None:
        """Take in how old an event was when everybody could be told; one of a plugin's own may have no timestamp."""
        with suppress(TypeError, ValueError):
            age = utc_now() - datetime.fromisoformat(timestamp)  # type: ignore[arg-type]
            self._metrics.event_seconds.observe(max(0.0, age.total_seconds()))

    async def _subscribe(self, room: str) -> None:
        """Return when Redis has confirmed the room's channel; at once or after a second when it does not."""
        joined_at, channel = utc_now(), self._channel(room)
        self._subscriptions.want(channel)
        if self._subscriptions.is_lost(channel):
            self._gaps.setdefault(room, joined_at)
        elif not self._subscriptions.is_confirmed(channel):
            done, _ = await asyncio.wait([self._waiter(channel)], timeout=SUBSCRIBE_SECONDS)
            if not done and room in self._rooms:
                self._gaps.setdefault(room, joined_at)

    def _is_confirmed(self, room: str) -> bool:
        return not self.is_lost and room not in self._gaps

    def _vacate(self, room: str) -> None:
        channel = self._channel(room)
        self._subscriptions.unwant(channel)
        self._gaps.pop(room, None)
        self._release(channel)

    def _leave(self, address: Address, error: Exception) -> None:
        """Stop listening to a server that is a replica by now: other processes tell the new master."""
        # For so long it may have been one.
        self._subscriptions.leave(address, error, 2 * CHECK_SECONDS)

    def _missed(self, since: datetime) -> tuple[bytes, bytes]:
        return self._common, self._origin + b" " + MISSED + since.isoformat().encode()

    def _note_dropped(self, number: int) -> None:
        self._metrics.events_dropped.inc(number)
        log.warning("events_dropped", events=number)

    def _channel(self, room: str) -> bytes:
        """Return the channel of a room; ValueError when its name holds half a surrogate pair."""
        return self._prefix + room.encode()

    def _room(self, channel: bytes) -> str:
        return channel.decode().removeprefix(self._prefix.decode())

    def _take(self, channel: bytes, content: bytes) -> None:
        """Take in what a process has published."""
        origin, _, payload = content.partition(b" ")
        if channel == self._common:
            self._take_common(origin, payload)
        elif channel.startswith(self._progress_prefix):
            if origin != self._origin:
                self.on_progress(channel.removeprefix(self._progress_prefix).decode(), payload)
        elif origin != self._origin:
            self._rooms.deliver(self._room(channel), text_frame(payload))

    def _take_common(self, origin: bytes, payload: bytes) -> None:
        if payload.startswith(MISSED) and origin != self._origin:
            since = datetime.fromisoformat(payload.removeprefix(MISSED).decode())
            log.warning("events_missed", since=since.isoformat())
            if self.on_gap:
                for room in self._rooms.names():
                    self.on_gap(room, since)
        elif payload == PROBE and origin == self._origin and self._probing and not self._probing.done():
            self._probing.set_result(None)

    def _note_heard(self, channel: bytes) -> None:
        if channel.startswith(self._progress_prefix):
            return  # what was missed of progress is not asked for
        self._release(channel)
        since = self._gaps.pop(self._room(channel), None)
        if since is not None and self.on_gap:
            self.on_gap(self._room(channel), since)

    def _note_lost(self, channels: Collection[bytes], seconds: float) -> None:
        since = utc_now() - timedelta(seconds=seconds)
        for channel in channels:
            self._release(channel)
            if channel.startswith(self._prefix) and channel != self._common:
                self._gaps.setdefault(self._room(channel), since)

    def _waiter(self, channel: bytes) -> asyncio.Future[None]:
        """Return what is done when the channel is heard or lost."""
        return self._waiters.setdefault(channel, asyncio.get_running_loop().create_future())

    def _release(self, channel: bytes) -> None:
        waiter = self._waiters.pop(channel, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


async def _is_done(future: asyncio.Future[None], seconds: float) -> bool:
    """Wait so long at most, and return whether it is done; asyncio.wait takes twice the time for a single one."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    future.add_done_callback(end)
    timer = loop.call_later(seconds, end)
    try:
        await over
    finally:
        timer.cancel()
        future.remove_done_callback(end)
    return future.done()
