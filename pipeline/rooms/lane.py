"""The way from the publisher to one server: tells it what is owed, batch by batch, and follows it when it is left.

Everything that has gathered while one batch was on its way goes in the next, so that many events at once cost few
calls. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError, ResponseError, TryAgainError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pipeline.delays import retry_delays
from pipeline.link.connection import CALL_SECONDS, PING_SECONDS, Link
from pipeline.link.nodes import Address

if TYPE_CHECKING:
    from pipeline.rooms.publisher import Publisher

BATCH = 200
RETRY_SECONDS = (0.05, 3.0)
# After that long with nothing to publish a server is asked whether it is still there, and a master.
CHECK_SECONDS = 4.0
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


class Lane:
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
        """Publish a message that need not arrive: with the next batch or not at all."""
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
        delays, failures, found = retry_delays(*RETRY_SECONDS), 0, -1
        while not self._is_retired:
            link = None
            try:
                if failures:
                    await channels.find(found)
                    if self._is_retired:
                        return
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
                found = channels.searches
                failures += 1
                channels.skip(self._address)
                if not self._is_needed(error, failures):
                    return
            finally:
                if link is not None:
                    link.close()
            await asyncio.sleep(next(delays))
            self._offered.clear()  # too old by now

    def _is_needed(self, error: Exception, failures: int) -> bool:
        """Take in that the server cannot be told; whether to go on with it."""
        if self._is_retired:
            return False
        is_home = self._publisher.is_home(self._address)
        if is_home:
            self._publisher.failure = error
        elif not self.owed:
            self._publisher.forget(self._address)
            return False
        # A connection that died while idle is no news, and one line for an outage is enough.
        if failures == 2:
            self._publisher.report(error)
        return True

    async def _tell(self, link: Link) -> None:
        """Publish what is owed; without anything ask for a sign of life. RedisError, OSError or TimeoutError."""
        channels = self._publisher.channels
        batch = list(islice(self.owed, BATCH))
        offered, self._offered = self._offered, []
        verb = "SPUBLISH" if channels.is_sharded else "PUBLISH"
        # In a cluster a replica sends us to its master.
        guard = () if channels.is_cluster else (self._publisher.guard,)
        messages = ((verb, each.channel, each.message) for each in batch)
        asked = link.ask_each([("PING",), *guard, *messages, *((verb, *each) for each in offered)])
        try:
            # The first is answered even while writing is paused: without it the connection was cut without a word.
            await _replied(asked[0], PING_SECONDS)
            # Replies come in order.
            await _replied(asked[-1], CALL_SECONDS)
            replies: list[Any] = [each.exception() or each.result() for each in asked]
        finally:
            for each in asked:
                each.cancel()
        if isinstance(replies[0], Exception) and not isinstance(replies[0], ResponseError):
            raise replies[0]
        if guard and isinstance(replies[1], ReadOnlyError):
            self._publisher.on_demoted(self._address, replies[1])
            raise replies[1]
        if self._publisher.is_home(self._address):
            self._publisher.failure = None
        first = 1 + len(guard)
        self._settle(batch, replies[first : first + len(batch)])

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


async def _replied(asked: asyncio.Future[Any], seconds: float) -> None:
    """Return when it has come, as a reply or as an error."""
    _, pending = await asyncio.wait([asked], timeout=seconds)
    if pending:
        raise RedisTimeoutError("Redis does not answer")
