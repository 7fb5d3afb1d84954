"""Tells other processes about events. What cannot be told now is told when Redis is back: late, not lost.

There is a lane to each server, so that one that is away keeps back only the channels it has. Everything that has
gathered in a lane while one batch was on its way goes in the next, so that many events at once cost few calls. Runs on
the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from typing import Any, NoReturn

import structlog
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError, ResponseError, TryAgainError

from pipeline.delays import retry_delays
from pipeline.link.channels import Channels
from pipeline.link.connection import CALL_SECONDS, Link
from pipeline.link.nodes import Address
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

BATCH = 200
RETRY_SECONDS = (0.05, 3.0)
REFUSED_SECONDS = 5.0
# After that long with nothing to publish a server is asked whether it is still there, and a master.
CHECK_SECONDS = 4.0
# A connection that said nothing for so long may have been cut without a word: it is asked before it is used.
TRUSTED_SECONDS = 1.0
SIGN_SECONDS = 0.5
# Far more than a process can have: without Redis it gets no new jobs.
MAX_OWED = 10_000
# Of messages that need not arrive.
MAX_OFFERED = 1000
# The channel is elsewhere (a MovedError is an AskError) or will be. Any other refusal is about one message.
NOT_HERE = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)


@dataclass(slots=True, eq=False)
class Owed:
    """A message that Redis does not have yet. number: its place among all. published: done when Redis has it."""

    number: int
    channel: bytes
    message: bytes
    at: datetime
    published: asyncio.Future[None]

    def settle(self) -> None:
        """Redis has it."""
        if not self.published.done():
            self.published.set_result(None)


class Publisher:
    """Publishes messages, those of one channel in the order they came, each at least once while the process lives."""

    def __init__(
        self,
        channels: Channels,
        probe: str,
        *,
        on_demoted: Callable[[Address, Exception], None],
        missed: Callable[[datetime], tuple[bytes, bytes]],
        on_dropped: Callable[[int], None],
    ) -> None:
        """probe: a key that never exists. on_demoted: called when a server turns out to be a replica by now.

        missed: returns the channel and the message that let all processes know what they have missed since an instant;
        when too much is owed it is told instead, and on_dropped is called with the number of messages.
        """
        self.channels = channels
        self.on_demoted = on_demoted
        # A write that writes nothing. A server that became a replica refuses it; a PUBLISH it takes, and tells nobody.
        self.guard = ("PERSIST", probe)
        self._missed = missed
        self._on_dropped = on_dropped
        self._numbers = count()
        self._lanes: dict[Address, _Lane] = {}
        self._unassigned: deque[Owed] = deque()
        self._refused: list[Owed] = []
        # Messages that need not arrive, to servers that have no lane yet.
        self._offered: list[tuple[bytes, bytes]] = []
        self._change = asyncio.Event()
        channels.on_changed.append(self._assign_anew)

    def publish(self, channel: bytes, message: bytes) -> asyncio.Future[None]:
        """Return a future that is done when Redis has the message; whoever waits for it keeps the time."""
        owed = self._owe(channel, message, datetime.now(UTC))
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

    def report(self, error: Exception) -> None:
        """Say that a server cannot be told now."""
        log.warning("publisher_disconnected", error=cause_of(error), owed=self.owed)

    def refuse(self, refused: Owed, error: Exception) -> None:
        """Put a message aside, so that those behind it are told, and try it again later."""
        if not self._refused:
            log.warning("event_refused", error=cause_of(error))
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._owe_refused)
        self._refused.append(refused)

    def _owe_refused(self) -> None:
        self._unassigned.extendleft(reversed(self._refused))
        self._refused.clear()
        self._change.set()

    def _lane_of(self, channel: bytes) -> _Lane | None:
        if not self.channels.is_known or self._unassigned:
            return None
        return self._lanes.get(self.channels.address_of(channel))

    def _assign(self, group: asyncio.TaskGroup) -> None:
        """Give each message without one its lane."""
        while self._unassigned:
            owed = self._unassigned.popleft()
            self._lane_to(self.channels.address_of(owed.channel), group).add(owed)
        while self._offered:
            channel, message = self._offered.pop(0)
            self._lane_to(self.channels.address_of(channel), group).offer(channel, message)

    def _lane_to(self, address: Address, group: asyncio.TaskGroup) -> _Lane:
        if address not in self._lanes:
            self._lanes[address] = lane = _Lane(self, address)
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
        standing.published.add_done_callback(lambda _: [owed.settle() for owed in dropped])
        self._unassigned = deque([standing])
        self._on_dropped(len(dropped))
        self._change.set()


class _Lane:
    """The way to one server."""

    def __init__(self, publisher: Publisher, address: Address) -> None:
        self.owed: deque[Owed] = deque()
        self._offered: list[tuple[bytes, bytes]] = []
        self._publisher = publisher
        self._address = address
        self._added = asyncio.Event()
        self._is_retired = False

    def add(self, owed: Owed) -> None:
        self.owed.append(owed)
        self._added.set()

    def offer(self, channel: bytes, message: bytes) -> None:
        if len(self._offered) < MAX_OFFERED:
            self._offered.append((channel, message))
            self._added.set()

    def retire(self) -> None:
        """Nothing is told here any more."""
        self._is_retired = True
        self._added.set()

    async def run(self) -> None:
        """Tell the server what is owed, until retired."""
        channels = self._publisher.channels
        delays, failures = retry_delays(*RETRY_SECONDS), 0
        while not self._is_retired:
            found, link = channels.found, None
            try:
                link = await channels.open(self._address)
                while not self._is_retired:
                    self._added.clear()
                    await self._tell(link)
                    delays, failures = retry_delays(*RETRY_SECONDS), 0
                    if not (self.owed or self._offered):
                        with suppress(TimeoutError):
                            async with asyncio.timeout(CHECK_SECONDS):
                                await self._added.wait()
                return
            except (RedisError, OSError) as error:
                failures += 1
                # A connection that died while idle is no news, and one line for an outage is enough.
                if failures == 2:
                    self._publisher.report(error)
            finally:
                if link is not None:
                    link.close()
            await asyncio.sleep(next(delays))
            self._offered.clear()  # too old by now
            channels.leave(self._address)
            with suppress(RedisError, OSError):
                await channels.find(found)

    async def _tell(self, link: Link) -> None:
        """Publish what is owed; without anything ask for a sign of life. RedisError, OSError or TimeoutError."""
        channels = self._publisher.channels
        batch = list(islice(self.owed, BATCH))
        offered, self._offered = self._offered, []
        verb = "SPUBLISH" if channels.is_sharded else "PUBLISH"
        # In a cluster a replica sends us to its master.
        guard = ("PING",) if channels.is_cluster else self._publisher.guard
        if link.silent_seconds > TRUSTED_SECONDS:
            async with asyncio.timeout(SIGN_SECONDS):
                await link.ask("PING")
        async with asyncio.timeout(CALL_SECONDS):
            owed = ((verb, each.channel, each.message) for each in batch)
            asked = link.ask_each([guard, *owed, *((verb, *each) for each in offered)])
            replies: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        if isinstance(replies[0], ReadOnlyError):
            self._publisher.on_demoted(self._address, replies[0])
            raise replies[0]
        self._settle(batch, replies[1 : 1 + len(batch)])

    def _settle(self, batch: Sequence[Owed], replies: Iterable[Any]) -> None:
        failure = None
        settled = set()
        for each, reply in zip(batch, replies, strict=True):
            if isinstance(reply, ResponseError) and not isinstance(reply, NOT_HERE):
                self._publisher.refuse(each, reply)
            elif isinstance(reply, Exception):
                failure = failure or reply
                continue
            else:
                each.settle()
            settled.add(each)
        self.owed = deque(each for each in self.owed if each not in settled)
        if failure:
            raise failure
