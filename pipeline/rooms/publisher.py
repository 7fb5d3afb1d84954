"""Publishes events to other processes. An event that cannot be published now is published when Redis is back.

There is a lane to each server, so that a server that is away delays only its own channels. Runs on the event loop.

Many methods because publishing, assigning messages to lanes and dropping them all change the same lists.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from itertools import count
from typing import NoReturn

import structlog
from redis.exceptions import RedisError

from pipeline.clock import utc_now
from pipeline.delays import retry_delays
from pipeline.link.channels import Channels
from pipeline.link.nodes import Address
from pipeline.rooms.lane import MAX_OFFERED, RETRY_SECONDS, Lane, PendingMessage
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

REFUSED_SECONDS = 5.0
# Far more than a process can have: without Redis it gets no new jobs.
MAX_PENDING = 10_000


class Publisher:
    """Publishes messages, those of one channel in the order they came, each at least once while the process lives."""

    def __init__(
        self,
        channels: Channels,
        probe: str,
        *,
        home: bytes,
        on_demoted: Callable[[Address, Exception], None],
        missed: Callable[[datetime], tuple[bytes, bytes]],
        on_dropped: Callable[[int], None],
    ) -> None:
        """probe: a key that never exists
        home: a channel whose server is watched even while nothing is published
        on_demoted: called when a server has become a replica
        missed: returns the channel and the message that announce to all processes that events since an instant are
            missing; published instead of the pending messages when there are too many
        on_dropped: called with the number of messages that were dropped then
        """
        self.channels = channels
        self.on_demoted = on_demoted
        # A write that changes nothing. A replica refuses it, but accepts a PUBLISH that then reaches no process.
        self.guard = ("PERSIST", probe)
        # Why the home channel cannot be published to, None when it can.
        self.failure: Exception | None = None
        self._home = home
        self._missed = missed
        self._on_dropped = on_dropped
        self._numbers = count()
        self._lanes: dict[Address, Lane] = {}
        self._unassigned: deque[PendingMessage] = deque()
        self._refused: list[PendingMessage] = []
        # Messages that need not arrive, for servers that have no lane yet.
        self._offered: list[tuple[bytes, bytes]] = []
        self._change = asyncio.Event()
        channels.on_changed.append(self._assign_anew)

    def publish(self, channel: bytes, message: bytes) -> asyncio.Future[None]:
        """Return a future that is done when Redis has the message; the caller limits how long it waits."""
        pending = self._new_pending(channel, message, utc_now())
        if self.pending >= MAX_PENDING:
            self._drop_all()
        lane = self._lane_of(channel)
        if lane is not None:
            lane.add(pending)
        else:
            self._unassigned.append(pending)
            self._change.set()
        return pending.published

    def offer(self, channel: bytes, message: bytes) -> None:
        """Publish a message that need not arrive: at once, behind the pending messages, or not at all."""
        if self.channels.is_known:
            lane = self._lanes.get(self.channels.address_of(channel))
            if lane is not None:
                lane.offer(channel, message)
            elif len(self._offered) < MAX_OFFERED:
                self._offered.append((channel, message))
                self._change.set()

    async def run(self) -> NoReturn:
        """Publish for ever. After an exception it may be called again: the pending messages are still pending."""
        delays, failures = retry_delays(*RETRY_SECONDS), 0
        try:
            async with asyncio.TaskGroup() as group:
                while not self.channels.is_known:
                    try:
                        await self.channels.find(self.channels.searches)
                    except (RedisError, OSError) as error:
                        self.failure = error
                        failures += 1
                        if failures == 2:
                            self.report(error)
                        await asyncio.sleep(next(delays))
                while True:
                    self._assign(group)
                    await self._change.wait()
                    self._change.clear()
        finally:
            self._collect_pending()
            self._lanes.clear()

    @property
    def pending(self) -> int:
        """How many messages Redis does not have yet."""
        return len(self._unassigned) + len(self._refused) + sum(len(lane.pending) for lane in self._lanes.values())

    def _new_pending(self, channel: bytes, message: bytes, at: datetime) -> PendingMessage:
        return PendingMessage(next(self._numbers), channel, message, at, asyncio.get_running_loop().create_future())

    def is_home(self, address: Address) -> bool:
        """Whether the home channel is on that server."""
        return self.channels.is_known and self.channels.address_of(self._home) == address

    def forget(self, address: Address) -> None:
        """Remove the lane of a server that cannot be reached and has no pending message: the next one connects anew."""
        del self._lanes[address]

    def report(self, error: Exception) -> None:
        """Log that a server cannot be reached."""
        log.warning("publisher_disconnected", error=cause_of(error), pending=self.pending)

    def refuse(self, refused: PendingMessage, error: Exception) -> None:
        """Publish a message later, so that the messages behind it are published now."""
        if not self._refused:
            log.warning("event_refused", error=cause_of(error))
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._retry_refused)
        if refused.channel == self._home:
            self.failure = error
        self._refused.append(refused)

    def _retry_refused(self) -> None:
        self._unassigned.extendleft(reversed(self._refused))
        self._refused.clear()
        self._change.set()

    def _lane_of(self, channel: bytes) -> Lane | None:
        if not self.channels.is_known or self._unassigned:
            return None
        return self._lanes.get(self.channels.address_of(channel))

    def _assign(self, group: asyncio.TaskGroup) -> None:
        """Give each message without a lane its lane."""
        self._open_lane(self._home, group)
        while self._unassigned:
            pending = self._unassigned.popleft()
            self._open_lane(pending.channel, group).add(pending)
        while self._offered:
            channel, message = self._offered.pop(0)
            self._open_lane(channel, group).offer(channel, message)

    def _open_lane(self, channel: bytes, group: asyncio.TaskGroup) -> Lane:
        address = self.channels.address_of(channel)
        if address not in self._lanes:
            self._lanes[address] = lane = Lane(self, address)
            group.create_task(lane.run())
        return self._lanes[address]

    def _assign_anew(self) -> None:
        """Give all messages new lanes: channels may be on other servers now."""
        self._collect_pending()
        for lane in self._lanes.values():
            lane.retire()
        self._lanes.clear()
        self._change.set()

    def _collect_pending(self) -> None:
        """Take the pending messages from all lanes."""
        collected = [*self._unassigned, *(pending for lane in self._lanes.values() for pending in lane.pending)]
        self._unassigned = deque(sorted(collected, key=lambda pending: pending.number))
        for lane in self._lanes.values():
            lane.pending.clear()

    def _drop_all(self) -> None:
        """Replace all pending messages by one message to all processes."""
        self._collect_pending()
        dropped = [*self._refused, *self._unassigned]
        self._refused.clear()
        since = min(pending.at for pending in dropped)
        channel, message = self._missed(since)
        substitute = self._new_pending(channel, message, since)
        # Only the futures: dropping the messages has to free their memory.
        futures = [pending.published for pending in dropped]
        substitute.published.add_done_callback(lambda _: _settle_all(futures))
        self._unassigned = deque([substitute])
        self._on_dropped(len(dropped))
        self._change.set()


class Unpublished:
    """The newest event of each asset that Redis does not have yet.

    Redis gets the events of one asset in order: when it has the newest, it has all. Until then the job that made the
    event is not over.
    """

    def __init__(self) -> None:
        self._events: dict[object, asyncio.Future[None]] = {}

    def add(self, asset_id: object, published: asyncio.Future[None]) -> None:
        """Note an event of the asset that is being published. asset_id: None for events that are not about an asset"""
        if asset_id is not None and not published.done():
            self._events[asset_id] = published
            published.add_done_callback(partial(self._remove, asset_id))

    def of(self, asset_id: str) -> asyncio.Future[None] | None:
        """Return a future that is done when Redis has the asset's newest event; None when it has all."""
        return self._events.get(asset_id)

    def _remove(self, asset_id: object, published: asyncio.Future[None]) -> None:
        if self._events.get(asset_id) is published:
            del self._events[asset_id]


def _settle_all(futures: Iterable[asyncio.Future[None]]) -> None:
    for published in futures:
        if not published.done():
            published.set_result(None)
