"""The same room on every process: Redis Pub/Sub, one channel per room, subscribed while a local socket is in it.

A message is the sender's id, a space and the event's JSON. So no process encodes or parses an event twice, and the
sender recognizes its own messages. Channel names contain the database number, because Pub/Sub ignores databases: two
deployments on one Redis would receive each other's events. Every process subscribes to one more channel, the common
one: there it receives its own probe, and messages about events that could not be published. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog
from redis.exceptions import NoPermissionError

from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.link.channels import Channels
from pipeline.link.nodes import Nodes
from pipeline.metrics import Metrics
from pipeline.rooms.frames import encode, text_frame
from pipeline.rooms.gaps import ChannelNames, RoomGaps
from pipeline.rooms.lane import CHECK_SECONDS
from pipeline.rooms.publisher import Publisher, Unpublished
from pipeline.rooms.rooms import Rooms
from pipeline.supervision import Supervisor, SupervisedTask

log = structlog.get_logger(__name__)

# The job that publishes holds a slot.
PUBLISH_SECONDS = 1.0
PROBE_SECONDS = 1.5
# A connection that is silent this long is pinged, and closed after as long again.
HEALTH_SECONDS = 2.0
MISSED = b"missed since "
PROBE = b"probe "


class RoomFanout:
    """Publishes events to a room wherever its sockets are. Failures of Redis are logged and counted, never raised.

    on_progress: called with a room and a progress message of another process
    on_gap: called with a room that may have missed events of other processes, and since when. Called when the room's
        channel is confirmed again, and before that whenever an event of this process reaches the room. The callee
        gets the room's clients the events they missed.
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
        """prefix: of all channels, so that several services may share a Redis
        home: the name of an empty room, whose channel is the common one; its hash tag places it on the cluster node
            of that queue, which this process needs in any case
        supervisor: keeps the tasks that listen and publish running; default: one of its own
        """
        self.on_gap: Callable[[str, datetime], None] = lambda room, since: None
        self.on_progress: Callable[[str, bytes], None] = lambda room, message: None
        self._rooms = rooms
        self._metrics = metrics
        self._origin = secrets.token_hex(8).encode()
        nodes = Nodes(redis_url)
        self._names = ChannelNames.of(prefix, nodes.database, home)
        probe = f"{prefix}:probe"
        channels = Channels(nodes, probe)
        self._publisher = self._make_publisher(channels, probe)
        self._gaps = RoomGaps(
            rooms,
            channels,
            self._names,
            on_message=self._take,
            on_gap=lambda room, since: self.on_gap(room, since),
            health_seconds=health_seconds,
        )
        self._probe = SelfProbe(lambda: self._publisher.publish(self._names.common, self._message(PROBE)))
        self._supervisor = supervisor or Supervisor()
        self._watched: list[SupervisedTask] = []
        self._unpublished = Unpublished()

    def _make_publisher(self, channels: Channels, probe: str) -> Publisher:
        return Publisher(
            channels,
            probe,
            home=self._names.common,
            # For so long the server may have been a replica already; other processes publish to the new master.
            on_demoted=lambda address, error: self._gaps.subscriptions.leave(address, error, 2 * CHECK_SECONDS),
            missed=lambda since: (self._names.common, self._message(MISSED + since.isoformat().encode())),
            on_dropped=self._note_dropped,
        )

    async def start(self) -> None:
        """Begin to listen to the other processes; Redis need not be there yet."""
        self._watched = [
            self._supervisor.start("subscriptions", self.listen),
            self._supervisor.start("publisher", self._publisher.run),
        ]

    async def stop(self) -> None:
        """Close all connections."""
        await self._supervisor.stop(self._watched)

    async def listen(self) -> None:
        """Receive events of the other processes, for ever. After an exception it may be called again."""
        await self._gaps.subscriptions.run()

    @property
    def is_lost(self) -> bool:
        """Whether this process cannot receive events of the other processes now."""
        return self._gaps.is_lost

    async def check(self) -> None:
        """Return when this process receives its own probe; DependencyUnavailable says why it does not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                await self._gaps.until_confirmed()
                await asyncio.wait([self._probe.send()])
                return
        cause = self._publisher.failure or self._gaps.subscriptions.failure(self._names.common)
        raise DependencyUnavailable(_advice(cause, self._names)) from cause

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room: here at once, on other processes when Redis has it.

        Returns when Redis has the event, or after a second: it is then published when Redis is back. ValueError or
        TypeError when the event or the room's name cannot be encoded: no socket gets it.
        """
        channel, payload = self._names.of_room(room), encode(event)
        self._metrics.events_published.inc()
        # Before the event: a client that got this one and left would never ask for an older one that it missed.
        self._gaps.report(room)
        self._rooms.deliver(room, text_frame(payload))
        published = self._publisher.publish(channel, self._message(payload))
        published.add_done_callback(lambda _: _observe_age(self._metrics, event.get("timestamp")))
        try:
            is_published = await _is_done(published, PUBLISH_SECONDS)
        finally:
            self._unpublished.add(event.get("assetId"), published)
        if not is_published:
            self._metrics.fanout_errors.inc()
            log.warning("event_published_late")

    def offer(self, room: str, message: bytes) -> None:
        """Send a progress message to the processes that listen for the room's progress; it may be lost."""
        self._publisher.offer(self._names.of_progress(room), self._message(message))

    def listen_for_progress(self, room: str) -> None:
        """Receive the progress messages that other processes send to the room."""
        self._gaps.subscriptions.want(self._names.of_progress(room))

    def ignore_progress(self, room: str) -> None:
        """Receive the room's progress messages no longer."""
        self._gaps.subscriptions.unwant(self._names.of_progress(room))

    def unpublished(self, asset_id: str) -> asyncio.Future[None] | None:
        """Return a future that is done when Redis has the newest event of the asset; None when Redis has all."""
        return self._unpublished.of(asset_id)

    def _message(self, payload: bytes) -> bytes:
        return self._origin + b" " + payload

    def _note_dropped(self, number: int) -> None:
        self._metrics.events_dropped.inc(number)
        log.warning("events_dropped", events=number)

    def _take(self, channel: bytes, content: bytes) -> None:
        """Handle a message that a process has published."""
        origin, _, payload = content.partition(b" ")
        is_own = origin == self._origin
        if channel == self._names.common:
            if payload.startswith(MISSED) and not is_own:
                since = datetime.fromisoformat(payload.removeprefix(MISSED).decode())
                log.warning("events_missed", since=since.isoformat())
                self._gaps.report_all(since)
            elif payload == PROBE and is_own:
                self._probe.answer()
        elif is_own:
            return
        elif channel.startswith(self._names.progress):
            self.on_progress(channel.removeprefix(self._names.progress).decode(), payload)
        else:
            self._rooms.deliver(self._names.room_of(channel), text_frame(payload))


class SelfProbe:
    """A message that a process publishes to receive it itself."""

    def __init__(self, publish: Callable[[], asyncio.Future[None]]) -> None:
        """publish: publishes the message; the future is done when Redis has it"""
        self._publish = publish
        self._answered: asyncio.Future[None] | None = None
        self._published: asyncio.Future[None] | None = None

    def send(self) -> asyncio.Future[None]:
        """Return a future that is done when this process receives its own message."""
        if self._answered is None or self._answered.done():
            self._answered = asyncio.get_running_loop().create_future()
        # A message that is not published yet need not be published twice; one that is published may have got lost.
        if self._published is None or self._published.done():
            self._published = self._publish()
        return self._answered

    def answer(self) -> None:
        """This process has received its own message."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)


def _observe_age(metrics: Metrics, timestamp: object) -> None:
    """Measure how old an event is when Redis has it; an event of a plugin may have no timestamp."""
    with suppress(TypeError, ValueError):
        age = utc_now() - datetime.fromisoformat(timestamp)  # type: ignore[arg-type]
        metrics.event_seconds.observe(max(0.0, age.total_seconds()))


def _advice(cause: Exception | None, names: ChannelNames) -> str:
    if isinstance(cause, NoPermissionError):
        prefix = names.rooms.decode().partition(":")[0]
        needed = f"it needs the ACL rules &{prefix}:* and +@pubsub"
        return f"Redis does not let this user publish or subscribe (NOPERM): {needed}"
    return "What is published for other processes does not arrive"


async def _is_done(future: asyncio.Future[None], seconds: float) -> bool:
    """Wait so long at most, and return whether it is done; asyncio.wait takes twice the time for a single future."""
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
