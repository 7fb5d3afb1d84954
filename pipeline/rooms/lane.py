"""The connection from the publisher to one Redis server: publishes the pending messages, batch by batch.

All messages that come while one batch is under way go into the next, so that many events at once cost few calls. Runs
on the event loop.
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
# A server with nothing to publish is asked so often whether it is still there, and still a master.
CHECK_SECONDS = 4.0
# Messages that need not arrive: so many at most.
MAX_OFFERED = 1000
# The channel is on another server (a MovedError is an AskError) or will be. Any other refusal is about one message.
NOT_HERE = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)


@dataclass(slots=True, eq=False)
class PendingMessage:
    """A message that Redis does not have yet.

    number: counts all messages of the process, so that they can be sorted
    published: done when Redis has the message
    """

    number: int
    channel: bytes
    message: bytes
    at: datetime
    published: asyncio.Future[None]

    def settle(self) -> None:
        """Redis has the message."""
        if not self.published.done():
            self.published.set_result(None)


class Lane:
    """The connection to one server, and the messages for it."""

    def __init__(self, publisher: Publisher, address: Address) -> None:
        self.pending: deque[PendingMessage] = deque()
        self._offered: list[tuple[bytes, bytes]] = []
        self._publisher = publisher
        self._address = address
        self._added = asyncio.Event()
        self._is_retired = False

    def add(self, pending: PendingMessage) -> None:
        self.pending.append(pending)
        self._added.set()

    def offer(self, channel: bytes, message: bytes) -> None:
        """Publish a message that need not arrive: with the next batch or not at all."""
        if len(self._offered) < MAX_OFFERED:
            self._offered.append((channel, message))
            self._added.set()

    def retire(self) -> None:
        """Publish nothing here any more."""
        self._is_retired = True
        self._added.set()

    async def run(self) -> None:
        """Publish the pending messages until retired."""
        channels = self._publisher.channels
        delays, failures, version = retry_delays(*RETRY_SECONDS), 0, -1
        while not self._is_retired:
            link = None
            try:
                if failures:
                    await channels.find(version)
                    if self._is_retired:
                        return
                link = await channels.open(self._address)
                while not self._is_retired:
                    self._added.clear()
                    await self._publish(link)
                    delays, failures = retry_delays(*RETRY_SECONDS), 0
                    if not (self.pending or self._offered):
                        with suppress(TimeoutError):
                            async with asyncio.timeout(CHECK_SECONDS):
                                await self._added.wait()
                return
            except (RedisError, OSError) as error:
                version = channels.searches
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
        """Note that the server cannot be reached; return whether it is still needed."""
        if self._is_retired:
            return False
        is_home = self._publisher.is_home(self._address)
        if is_home:
            self._publisher.failure = error
        elif not self.pending:
            self._publisher.forget(self._address)
            return False
        # The first failure may be a connection that died while idle; one log line for an outage is enough.
        if failures == 2:
            self._publisher.report(error)
        return True

    async def _publish(self, link: Link) -> None:
        """Publish a batch of pending messages, or only ping the server. RedisError, OSError or TimeoutError."""
        channels = self._publisher.channels
        batch = list(islice(self.pending, BATCH))
        offered, self._offered = self._offered, []
        verb = "SPUBLISH" if channels.is_sharded else "PUBLISH"
        # In a cluster a replica redirects to its master, so no guard is needed.
        guard = () if channels.is_cluster else (self._publisher.guard,)
        messages = ((verb, each.channel, each.message) for each in batch)
        futures = link.ask_each([("PING",), *guard, *messages, *((verb, *each) for each in offered)])
        try:
            # PING is answered even while writes are paused: no answer means that the connection is dead.
            await _wait_for(futures[0], PING_SECONDS)
            # Replies come in order.
            await _wait_for(futures[-1], CALL_SECONDS)
            replies: list[Any] = [each.exception() or each.result() for each in futures]
        finally:
            for each in futures:
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

    def _settle(self, batch: Sequence[PendingMessage], replies: Iterable[Any]) -> None:
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
        self.pending = deque(each for each in self.pending if each not in settled)
        if failure:
            raise failure


async def _wait_for(future: asyncio.Future[Any], seconds: float) -> None:
    """Return when the reply or an error has come; RedisTimeoutError otherwise."""
    _, pending = await asyncio.wait([future], timeout=seconds)
    if pending:
        raise RedisTimeoutError("Redis does not answer")
