"""Tells other processes about events. What cannot be told now is told when Redis is back: late, not lost.

There is a lane to each server, so that one that is away keeps back only the channels it has. Runs on the event loop.
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
from pipeline.rooms.lane import MAX_OFFERED, RETRY_SECONDS, Lane, Owed
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

REFUSED_SECONDS = 5.0
# Far more than a process can have: without Redis it gets no new jobs.
MAX_OWED = 10_000


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
        """probe: a key that never exists. home: a channel whose server is watched even while nothing is published.

        on_demoted: called when a server turns out to be a replica by now.
        missed: returns the channel and the message that let all processes know what they have missed since an instant;
        when too much is owed it is told instead, and on_dropped is called with the number of messages.
        """
        self.channels = channels
        self.on_demoted = on_demoted
        # A write that writes nothing. A server that became a replica refuses it; a PUBLISH it takes, and tells nobody.
        self.guard = ("PERSIST", probe)
        # Why what goes to the home channel is not told, if it is not.
        self.failure: Exception | None = None
        self._home = home
        self._missed = missed
        self._on_dropped = on_dropped
        self._numbers = count()
        self._lanes: dict[Address, Lane] = {}
        self._unassigned: deque[Owed] = deque()
        self._refused: list[Owed] = []
        # Messages that need not arrive, to servers that have no lane yet.
        self._offered: list[tuple[bytes, bytes]] = []
        self._change = asyncio.Event()
        channels.on_changed.append(self._assign_anew)

    def publish(self, channel: bytes, message: bytes) -> asyncio.Future[None]:
        """Return a future that is done when Redis has the message; whoever waits for it keeps the time."""
        owed = self._owe(channel, message, utc_now())
        if self.owed >= MAX_OWED:
            self._drop_all()
        lane = self._lane_of(channel)
        if lane is not None:
            lane.add(owed)
        else:
            self._unassigned.append(owed)
            self._change.set()
        return owed.published

    def offer(self, channel: bytes, message: bytes) -> None:
        """Publish a message that need not arrive: it goes at once or not at all, and what is owed goes first."""
        if self.channels.is_known:
            lane = self._lanes.get(self.channels.address_of(channel))
            if lane is not None:
                lane.offer(channel, message)
            elif len(self._offered) < MAX_OFFERED:
                self._offered.append((channel, message))
                self._change.set()

    async def run(self) -> NoReturn:
        """Publish for ever; after an exception it may be run again, and what was owed is still owed."""
        delays, failures = retry_delays(*RETRY_SECONDS), 0
        try:
            async with asyncio.TaskGroup() as group:
                while not self.channels.is_known:
                    try:
                        await self.channels.find(self.channels.found)
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
            self._take_back()
            self._lanes.clear()

    @property
    def owed(self) -> int:
        """How many messages Redis does not have yet."""
        return len(self._unassigned) + len(self._refused) + sum(len(lane.owed) for lane in self._lanes.values())

    def _owe(self, channel: bytes, message: bytes, at: datetime) -> Owed:
        return Owed(next(self._numbers), channel, message, at, asyncio.get_running_loop().create_future())

    def is_home(self, address: Address) -> bool:
        """Whether the home channel lives there."""
        return self.channels.is_known and self.channels.address_of(self._home) == address

    def forget(self, address: Address) -> None:
        """Nothing is owed to this server, and it cannot be reached: the next message for it connects anew."""
        del self._lanes[address]

    def report(self, error: Exception) -> None:
        """Say that a server cannot be told now."""
        log.warning("publisher_disconnected", error=cause_of(error), owed=self.owed)

    def refuse(self, refused: Owed, error: Exception) -> None:
        """Put a message aside, so that those behind it are told, and try it again later."""
        if not self._refused:
            log.warning("event_refused", error=cause_of(error))
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._owe_refused)
        if refused.channel == self._home:
            self.failure = error
        self._refused.append(refused)

    def _owe_refused(self) -> None:
        self._unassigned.extendleft(reversed(self._refused))
        self._refused.clear()
        self._change.set()

    def _lane_of(self, channel: bytes) -> Lane | None:
        if not self.channels.is_known or self._unassigned:
            return None
        return self._lanes.get(self.channels.address_of(channel))

    def _assign(self, group: asyncio.TaskGroup) -> None:
        """Give each message without one its lane."""
        self._open_lane(self._home, group)
        while self._unassigned:
            owed = self._unassigned.popleft()
            self._open_lane(owed.channel, group).add(owed)
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
        """Channels may live elsewhere now."""
        self._take_back()
        for lane in self._lanes.values():
            lane.retire()
        self._lanes.clear()
        self._change.set()

    def _take_back(self) -> None:
        kept = [*self._unassigned, *(owed for lane in self._lanes.values() for owed in lane.owed)]
        self._unassigned = deque(sorted(kept, key=lambda owed: owed.number))
        for lane in self._lanes.values():
            lane.owed.clear()

    def _drop_all(self) -> None:
        """Let one message to all processes stand for all that is owed."""
        self._take_back()
        dropped = [*self._refused, *self._unassigned]
        self._refused.clear()
        since = min(owed.at for owed in dropped)
        channel, message = self._missed(since)
        standing = self._owe(channel, message, since)
        # Not the messages: dropping them is to free their memory.
        waiting = [owed.published for owed in dropped]
        standing.published.add_done_callback(lambda _: _settle_all(waiting))
        self._unassigned = deque([standing])
        self._on_dropped(len(dropped))
        self._change.set()


class Unpublished:
    """The newest such event of each asset. Redis gets the events of one asset in order, so the newest tells of all."""

    def __init__(self) -> None:
        self._events: dict[object, asyncio.Future[None]] = {}

    def add(self, asset_id: object, published: asyncio.Future[None]) -> None:
        """An event was published about the asset. asset_id: None for events about none."""
        if asset_id is not None and not published.done():
            self._events[asset_id] = published
            published.add_done_callback(partial(self._remove, asset_id))

    def of(self, asset_id: str) -> asyncio.Future[None] | None:
        """Return what is done when Redis has the asset's newest event; None when it has all."""
        return self._events.get(asset_id)

    def _remove(self, asset_id: object, published: asyncio.Future[None]) -> None:
        if self._events.get(asset_id) is published:
            del self._events[asset_id]


def _settle_all(waiting: Iterable[asyncio.Future[None]]) -> None:
    for published in waiting:
        if not published.done():
            published.set_result(None)
